// The primitives that have no mechanism of their own, and patterns, as public operators.
#include <foveate/linear_attention.h>
#include <foveate/lowering.h>
#include <foveate/merge_attention.h>
#include <foveate/op.h>
#include <foveate/rules.h>
#include <foveate/sparse_attention.h>
#include <torch/library.h>

namespace foveate::ops {
namespace {

std::tuple<Tensor, Tensor> public_merge_attention(const Tensor& outs, const Tensor& lses) {
  auto [out, lse] = merge_attention(outs, lses);
  return {std::move(out), std::move(lse)};
}

/// sparse_attention's arguments: a pattern, and how much distance counts, in plain types.
struct SparseAttentionArguments {
  Tensor q, k, v;
  std::string pattern;
  std::vector<Tensor> tables;
  optional<Tensor> mask, key_mask, query_mask, key_lengths, bias, slopes, table, rows, dropout_keep, dropout_seed, q_index, k_index;
  optional<double> scale, softcap;
  double dropout = 0;
  Size origin = 0;
  optional<Size> offset;

  void fields(auto&& f) {
    f("q", q, "queries");
    f("k", k, "keys");
    f("v", v, "values");
    f("pattern", pattern, "an expression", Role::required);
    f("tables", tables, "of the pattern");
    f("mask", mask, "bool");
    f("key_mask", key_mask, "bool");
    f("query_mask", query_mask, "bool");
    f("key_lengths", key_lengths, "int");
    f("bias", bias, "added to scores");
    f("slopes", slopes, "of distance");
    f("table", table, "by distance, added to scores");
    f("rows", rows, "by distance, scored by queries");
    f("dropout_keep", dropout_keep, "bool");
    f("dropout_seed", dropout_seed, "int");
    f("q_index", q_index, "int");
    f("k_index", k_index, "int");
    f("scale", scale, "of scores");
    f("softcap", softcap, "of scaled scores");
    f("dropout", dropout, "probability");
    f("origin", origin, "of tables");
    f("offset", offset, "of queries among keys");
  }
};

std::tuple<Tensor, Tensor> public_sparse_attention(const SparseAttentionArguments& c) {
  auto [out, lse] = sparse_attention(c.q, c.k, c.v, {c.pattern, c.tables},
                                     {.mask = c.mask,
                                      .key_mask = c.key_mask,
                                      .key_lengths = c.key_lengths,
                                      .bias = c.bias,
                                      .scale = c.scale,
                                      .position = {.slopes = c.slopes, .table = c.table, .rows = c.rows, .origin = c.origin},
                                      .offset = c.offset,
                                      .dropout_keep = c.dropout_keep,
                                      .dropout = c.dropout,
                                      .dropout_seed = c.dropout_seed,
                                      .softcap = c.softcap,
                                      .query_mask = c.query_mask,
                                      .q_index = c.q_index,
                                      .k_index = c.k_index});
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
  m.def(torch::schema((schema_of<SparseAttentionArguments>("sparse_attention") + " -> (Tensor out, Tensor lse)").c_str()),
        {at::Tag::pt2_compliant_tag});
  m.def("pattern_to_dense(str pattern, Tensor[] tables, SymInt n, SymInt m, int? heads=None) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(torch::schema("linear_attention(Tensor q, Tensor k, Tensor v, *, Tensor? key_mask=None, Tensor? key_lengths=None, Tensor? log_decay=None, "
                      "Tensor? state=None, Tensor? key_sum=None, bool causal=False, str normalizer=\"add\", float eps=1e-06, SymInt? offset=None) "
                      "-> (Tensor out, Tensor state, Tensor key_sum)"),
        {at::Tag::pt2_compliant_tag});
  for (const auto key : {c10::DispatchKey::CompositeImplicitAutograd, c10::DispatchKey::FuncTorchBatchedDecomposition}) {
    m.impl("merge_attention", torch::dispatch(key, &public_merge_attention));
    m.impl("sparse_attention", torch::dispatch(key, structured<&public_sparse_attention>().make()));
    m.impl("linear_attention", torch::dispatch(key, &public_linear_attention));
    m.impl("pattern_to_dense", torch::dispatch(key, &pattern_to_dense));
  }
  m.def("pattern_lower(str pattern, Tensor[] tables, int n, int m, int block, int? heads=None) -> (Tensor start, Tensor key_block, Tensor full)",
        &pattern_lower);
  m.def("pattern_check(str pattern) -> ()", [](std::string_view pattern) { patterns::parse(std::string(pattern)); });
}

}  // namespace foveate::ops
