// The primitives that have no mechanism of their own, and patterns, as public operators.
#include <foveate/linear_attention.h>
#include <foveate/lowering.h>
#include <foveate/merge_attention.h>
#include <foveate/rules.h>
#include <foveate/sparse_attention.h>
#include <torch/library.h>

namespace foveate::ops {
namespace {

std::tuple<Tensor, Tensor> public_merge_attention(const Tensor& outs, const Tensor& lses) {
  auto [out, lse] = merge_attention(outs, lses);
  return {std::move(out), std::move(lse)};
}

std::tuple<Tensor, Tensor> public_sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view pattern, at::TensorList tables,
                                                   const optional<Tensor>& mask, const optional<Tensor>& key_mask,
                                                   const optional<Tensor>& key_lengths, const optional<Tensor>& bias, optional<double> scale,
                                                   optional<Size> offset) {
  auto [out, lse] =
      sparse_attention(q, k, v, {std::string(pattern), tables.vec()},
                       {.mask = mask, .key_mask = key_mask, .key_lengths = key_lengths, .bias = bias, .scale = scale, .offset = std::move(offset)});
  return {std::move(out), std::move(lse)};
}

/// bool [n,m], or [H,n,m] where the pattern tells heads apart
Tensor pattern_to_dense(std::string_view pattern, at::TensorList tables, Size n, Size m, optional<int64_t> heads) {
  const auto rule = patterns::parse(std::string(pattern));
  const int64_t count = patterns::check_heads(*rule, tables, heads);
  const auto whole = at::TensorOptions(tables.empty() ? at::Device(at::kCPU) : tables[0].device()).dtype(at::kLong);
  const Tensor h = at::arange(count, whole).view({-1, 1, 1}), i = (at::arange(n, whole) + (m - n)).unsqueeze(1), j = at::arange(m, whole);
  const Tensor seen = rule->test({.h = h, .i = i, .j = j.unsqueeze(0)}, tables).expand_symint({count, n, m}).contiguous();
  return count == 1 ? seen.squeeze(0) : seen;
}

/// The table of blocks of n queries by m keys, as compressed rows: where each row starts, its key blocks, which of them are full.
std::tuple<Tensor, Tensor, Tensor> pattern_lower(std::string_view pattern, at::TensorList tables, int64_t n, int64_t m, int64_t block,
                                                 optional<int64_t> heads) {
  TORCH_CHECK_VALUE(n >= 0 && m >= 0 && block > 0, "pattern_lower: n and m must not be negative, block be positive, got ", n, ", ", m, " and ",
                    block);
  const patterns::Pattern whole{std::string(pattern), tables.vec()};
  const int64_t count = patterns::check_heads(*patterns::parse(whole.expression), tables, heads);
  const auto table = patterns::lower(whole, count, n, m, m - n, block);
  return {at::tensor(table->start, at::kLong), at::tensor(c10::ArrayRef(table->key_block), at::kLong),
          at::tensor(c10::ArrayRef(table->full), at::kByte).to(at::kBool)};
}

std::tuple<Tensor, Tensor, Tensor> public_linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                                                           const optional<Tensor>& key_lengths, const optional<Tensor>& log_decay,
                                                           const optional<Tensor>& state, const optional<Tensor>& key_sum, bool causal,
                                                           std::string_view normalizer, double eps, optional<Size> offset) {
  const auto rule = registry::find_choice("linear_attention: normalizer", normalizer, names<Normalizer>.data(), names<Normalizer>.size());
  auto [out, after] = linear_attention(q, k, v,
                                       {.causal = causal,
                                        .key_mask = key_mask,
                                        .key_lengths = key_lengths,
                                        .log_decay = log_decay,
                                        .state = {.S = state.value_or(Tensor()), .z = key_sum.value_or(Tensor())},
                                        .normalizer = static_cast<Normalizer>(rule),
                                        .eps = eps,
                                        .offset = std::move(offset)});
  return {std::move(out), std::move(after.S), std::move(after.z)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("merge_attention(Tensor outs, Tensor lses) -> (Tensor out, Tensor lse)", {at::Tag::pt2_compliant_tag});
  m.def(
      "sparse_attention(Tensor q, Tensor k, Tensor v, str pattern, Tensor[] tables, *, Tensor? mask=None, Tensor? key_mask=None, "
      "Tensor? key_lengths=None, Tensor? bias=None, float? scale=None, SymInt? offset=None) -> (Tensor out, Tensor lse)",
      {at::Tag::pt2_compliant_tag});
  m.def("pattern_to_dense(str pattern, Tensor[] tables, SymInt n, SymInt m, int? heads=None) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(torch::schema("linear_attention(Tensor q, Tensor k, Tensor v, *, Tensor? key_mask=None, Tensor? key_lengths=None, Tensor? log_decay=None, "
                      "Tensor? state=None, Tensor? key_sum=None, bool causal=False, str normalizer=\"add\", float eps=1e-06, SymInt? offset=None) "
                      "-> (Tensor out, Tensor state, Tensor key_sum)"),
        {at::Tag::pt2_compliant_tag});
  for (const auto key : {c10::DispatchKey::CompositeImplicitAutograd, c10::DispatchKey::FuncTorchBatchedDecomposition}) {
    m.impl("merge_attention", torch::dispatch(key, &public_merge_attention));
    m.impl("sparse_attention", torch::dispatch(key, &public_sparse_attention));
    m.impl("linear_attention", torch::dispatch(key, &public_linear_attention));
    m.impl("pattern_to_dense", torch::dispatch(key, &pattern_to_dense));
  }
  m.def("pattern_lower(str pattern, Tensor[] tables, int n, int m, int block, int? heads=None) -> (Tensor start, Tensor key_block, Tensor full)",
        &pattern_lower);
  m.def("pattern_check(str pattern) -> ()", [](std::string_view pattern) { patterns::parse(std::string(pattern)); });
}

}  // namespace foveate::ops
