// Elementwise feature maps of kernelised attention: phi of q.k becomes phi(q).phi(k).
#pragma once
#include <foveate/contract.h>

namespace foveate::layers {

enum class FeatureMap { elu_plus_one, relu, square, absolute, exp, sigmoid, tanh, cos, gelu, identity, relu_squared };

/// x [...,D] -> [...,D]
FOVEATE_API Tensor feature_map(const Tensor& x, FeatureMap map);

}  // namespace foveate::layers

namespace foveate {
template <> inline constexpr auto names<layers::FeatureMap> =
    std::array<std::string_view, 11>{"elu+1", "relu", "square", "abs", "exp", "sigmoid", "tanh", "cos", "gelu", "identity", "relu_squared"};
}  // namespace foveate
