#include <foveate/feed_forward.h>

namespace foveate::layers {

FeedForward FeedForward::init(int64_t width, int64_t inner) { return {.up = Linear::init(width, inner), .down = Linear::init(inner, width)}; }

Tensor FeedForward::operator()(const Tensor& x, Activation activation) const {
  const Tensor inner = up(x);
  switch (activation) {
    case Activation::relu: return down(inner.relu());
    case Activation::gelu: return down(at::gelu(inner));
    case Activation::quick_gelu: return down(inner * (inner * 1.702).sigmoid());
    case Activation::gelu_tanh: return down(at::gelu(inner, "tanh"));
  }
  TORCH_CHECK(false, "unreachable");
}

}  // namespace foveate::layers
