// The primitives that have no mechanism of their own, as public operators.
#include <foveate/merge_attention.h>
#include <torch/library.h>

namespace foveate::ops {

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("merge_attention(Tensor outs, Tensor lses) -> (Tensor out, Tensor lse)", [](const Tensor& outs, const Tensor& lses) {
    auto [out, lse] = merge_attention(outs, lses);
    return std::tuple(out, lse);
  });
}

}  // namespace foveate::ops
