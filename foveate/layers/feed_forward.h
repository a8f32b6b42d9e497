// The position-wise network of a Transformer block: W2 f(W1 x).
#pragma once
#include <foveate/linear.h>

namespace foveate::layers {

enum class Activation { relu, gelu, quick_gelu, gelu_tanh };

struct FOVEATE_API FeedForward {
  Linear up, down;

  void fields(auto&& f) {
    f("up", up, "W1, to the inner width");
    f("down", down, "W2, back");
  }
  static FeedForward init(int64_t width, int64_t inner);
  Tensor operator()(const Tensor& x, Activation activation = Activation::relu) const;
};

}  // namespace foveate::layers

namespace foveate {
template <> inline constexpr auto names<layers::Activation> = std::array<std::string_view, 4>{"relu", "gelu", "quick_gelu", "gelu_tanh"};
}  // namespace foveate
