// A block that normalises before it attends and before its network: x <- x + attention(norm x); x <- x + network(norm x).
#pragma once
#include <foveate/dropout.h>
#include <foveate/feed_forward.h>
#include <foveate/norm.h>

namespace foveate::layers {

/// Attention: the parameters of what attends.
template <class Attention> struct PreNormBlock {
  LayerNorm attention_norm;
  Attention attention;
  LayerNorm network_norm;
  FeedForward network;

  void fields(auto&& f) {
    f("attention_norm", attention_norm, "before attention");
    f("attention", attention, "what attends");
    f("network_norm", network_norm, "before the network");
    f("network", network, "position-wise network");
  }
  static PreNormBlock init(int64_t width, int64_t inner, Attention attention) {
    return {.attention_norm = LayerNorm::init(width),
            .attention = std::move(attention),
            .network_norm = LayerNorm::init(width),
            .network = FeedForward::init(width, inner)};
  }
  /// x [B,N,E] with what the network adds; inner features are dropped in training.
  Tensor with_network(const Tensor& x, double dropout_of_inner, bool training) const {
    const Tensor inner = at::gelu(network.up(network_norm(x)));
    return x + network.down(dropout(inner, dropout_of_inner, std::nullopt, training));
  }
};

}  // namespace foveate::layers
