// The primitives that have no mechanism of their own, as public operators.
#include <foveate/linear_attention.h>
#include <foveate/merge_attention.h>
#include <torch/library.h>

namespace foveate::ops {

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("merge_attention(Tensor outs, Tensor lses) -> (Tensor out, Tensor lse)", [](const Tensor& outs, const Tensor& lses) {
    auto [out, lse] = merge_attention(outs, lses);
    return std::tuple(out, lse);
  });
}

namespace linear {

using Result = std::tuple<Tensor, Tensor, Tensor>;

Result attend(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask, const optional<Tensor>& key_lengths,
              const optional<Tensor>& log_decay, const optional<Tensor>& state, const optional<Tensor>& key_sum, bool causal,
              std::string_view normalizer, double eps, optional<Size> offset) {
  const auto rule = registry::find_choice("linear_attention: normalizer", normalizer, names<Normalizer>.data(), names<Normalizer>.size());
  auto [out, after] = linear_attention(q, k, v,
                                       {.causal = causal, .key_mask = key_mask, .key_lengths = key_lengths, .log_decay = log_decay,
                                        .state = {.S = state.value_or(Tensor()), .z = key_sum.value_or(Tensor())},
                                        .normalizer = static_cast<Normalizer>(rule), .eps = eps, .offset = std::move(offset)});
  return {std::move(out), std::move(after.S), std::move(after.z)};
}

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def(torch::schema("linear_attention(Tensor q, Tensor k, Tensor v, *, Tensor? key_mask=None, Tensor? key_lengths=None, Tensor? log_decay=None, "
                      "Tensor? state=None, Tensor? key_sum=None, bool causal=False, str normalizer=\"add\", float eps=1e-06, SymInt? offset=None) "
                      "-> (Tensor out, Tensor state, Tensor key_sum)"),
        {at::Tag::pt2_compliant_tag});
  for (const auto key : {c10::DispatchKey::CompositeImplicitAutograd, c10::DispatchKey::FuncTorchBatchedDecomposition}) {
    m.impl("linear_attention", torch::dispatch(key, &attend));
  }
}

}  // namespace linear
}  // namespace foveate::ops
