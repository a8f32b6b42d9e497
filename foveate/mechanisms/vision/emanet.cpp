#include <ATen/core/grad_mode.h>
#include <foveate/attention_formula.h>
#include <foveate/conv_norm_relu.h>
#include <foveate/em_round.h>
#include <foveate/emanet.h>
#include <foveate/init.h>

namespace foveate {
namespace {

/// Columns of unit length, about: x [...,C,K]
Tensor unit(const Tensor& x, double eps) { return x / (eps + at::linalg_vector_norm(x, 2, at::IntArrayRef{-2}, true)); }

struct Found {
  Tensor mu, z;  // [B,C,K], [B,N,K]; z is one round older
};

/// f [B,C,N]
Found expectation_maximisation(const EMAU::Options& o, const Tensor& f, const Tensor& start, const optional<Tensor>& mask) {
  Found found{.mu = start.expand_symint({extent(f, 0), -1, -1}), .z = {}};
  const optional<Tensor> seen = mask ? optional(mask->flatten(1)) : std::nullopt;  // [B,N]
  for (int64_t t = 0; t < o.iterations; ++t) {
    const auto round = ops::em_round(f, found.mu, seen, /*keep_z=*/t + 1 == o.iterations);
    found = {.mu = unit(round.sums / (o.norm_eps + round.mass), o.norm_eps), .z = round.z};
  }
  return found;
}

/// As the authors' code draws convolutions.
layers::Convolution convolution(int64_t channels, bool bias) {
  const std::vector<int64_t> one{1, 1};
  auto made = layers::Convolution::init(channels, channels, one, bias);
  made.weight = layers::normal(made.weight.sizes(), std::sqrt(2 / static_cast<double>(channels)));
  return made;
}

}  // namespace

void EMAU::check(const Options& o) {
  TORCH_CHECK_VALUE(o.in_channels > 0 && o.num_bases > 0 && o.iterations > 0, "emau: in_channels, num_bases and iterations must be positive, got ",
                    o.in_channels, ", ", o.num_bases, " and ", o.iterations);
}

EMAU::Parameters EMAU::init(const Options& o) {
  const Tensor start = layers::normal({1, o.in_channels, o.num_bases}, std::sqrt(2 / static_cast<double>(o.num_bases)));
  return {.conv_in = convolution(o.in_channels, true),
          .conv_out = convolution(o.in_channels, false),
          .norm = layers::BatchNorm::init(o.in_channels),
          .bases = unit(start, o.norm_eps)};
}

EMAU::Outputs EMAU::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  TORCH_CHECK_VALUE(extent(in.x, 1) == o.in_channels, "emau: x must have in_channels = ", o.in_channels, " channels, got ", in.x.sym_sizes());
  const auto type = ops::accumulation_type(in.x.scalar_type());
  const auto rounds = [&](const Tensor& x, const layers::Convolution& first) {
    return expectation_maximisation(o, first(x).flatten(2).to(type), p.bases.detach().to(type).clone(), in.mask);
  };
  const auto constant = [](const layers::Convolution& c) { return layers::Convolution{.weight = c.weight.detach(), .bias = c.bias->detach()}; };
  const auto [mu, z] = o.grad_through_em ? rounds(in.x, p.conv_in) : rounds(in.x.detach(), constant(p.conv_in));

  const Tensor rebuilt = at::matmul(mu, z.transpose(1, 2)).to(in.x.scalar_type()).reshape_symint(in.x.sym_sizes()).relu_();
  const Tensor out = (layers::normalised(p.conv_out, p.norm, rebuilt, training, o.bn_momentum, o.bn_eps) + in.x).relu_();
  if (training) {
    const Tensor now = mu.detach().mean(0, true).to(p.bases.scalar_type());
    p.bases.mul_(o.momentum).add_(now, 1 - o.momentum);
  }
  return {.out = out, .mu = mu.to(in.x.scalar_type())};
}

FOVEATE_MECHANISM(EMAU)

}  // namespace foveate
