#include <foveate/attention_formula.h>
#include <foveate/op.h>
#include <foveate/position_lambda.h>

#include <algorithm>

namespace foveate::ops {
namespace {

std::vector<int64_t> each(const Tensor& weight, int64_t value) { return std::vector<int64_t>(static_cast<std::size_t>(weight.dim() - 2), value); }

/// v [b,U,c,*R] -> [b c,U,*R]
Tensor as_images(const Tensor& v) { return v.transpose(1, 2).flatten(0, 1); }

/// The lambdas of as many images, [b c,K,*S].
Tensor lambdas_of(const Tensor& images, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) {
  return at::convolution(images, weight, bias, each(weight, 1), each(weight, padding), each(weight, 1), /*transposed=*/false, each(weight, 0), 1);
}

Tensor position_lambda_formula(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) {
  const Tensor lambdas = lambdas_of(as_images(v), weight, bias, padding).unflatten(0, {q.size(0), v.size(2)});  // [B,V,K,*S]
  return (q.unsqueeze(2) * lambdas.unsqueeze(1)).sum(3);
}

Tensor position_lambda_meta(const Tensor& q, const Tensor& v, const Tensor&, const optional<Tensor>&, int64_t) {
  auto shape = q.sym_sizes().vec();
  shape[2] = extent(v, 2);
  return q.new_empty_symint(shape);
}

/// Sequences and channels that are done together: their lambdas stay in a cache.
template <class F> void in_parts(const Tensor& q, const Tensor& v, const F& part) {
  constexpr int64_t most = int64_t{1} << 19;                                                                                // lambdas
  const int64_t B = q.size(0), V = v.size(2), one = std::max<int64_t>(q.numel() / std::max<int64_t>(B * q.size(1), 1), 1);  // K S
  const int64_t channels = std::clamp<int64_t>(most / one, 1, V), sequences = channels < V ? 1 : std::clamp<int64_t>(most / (one * V), 1, B);
  for (int64_t b = 0; b < B; b += sequences) {
    for (int64_t c = 0; c < V; c += channels) part(b, std::min(sequences, B - b), c, std::min(channels, V - c));
  }
}

Tensor position_lambda_parts(const Tensor& q_given, const Tensor& v_given, const Tensor& weight_given, const optional<Tensor>& bias_given,
                             int64_t padding) {
  const auto type = accumulation_type(q_given.scalar_type());
  const Tensor q = q_given.to(type), v = v_given.to(type), weight = weight_given.to(type);
  const optional<Tensor> bias = bias_given ? optional(bias_given->to(type)) : std::nullopt;
  const int64_t K = q.size(2);
  auto shape = q.sizes().vec();
  shape[2] = v.size(2);
  Tensor out = q.new_zeros(shape);
  if (out.numel() == 0) return out.to(q_given.scalar_type());
  in_parts(q, v, [&](int64_t b, int64_t sequences, int64_t c, int64_t channels) {
    const Tensor images = as_images(v.narrow(0, b, sequences).narrow(2, c, channels));
    const Tensor lambdas = lambdas_of(images, weight, bias, padding).unflatten(0, {sequences, channels});  // [b,c,K,*S]
    const Tensor queries = q.narrow(0, b, sequences);                                                      // [b,h,K,*S]
    Tensor sum = out.narrow(0, b, sequences).narrow(2, c, channels);                                       // [b,h,c,*S]
    for (int64_t k = 0; k < K; ++k) sum.addcmul_(queries.select(2, k).unsqueeze(2), lambdas.select(2, k).unsqueeze(1));
  });
  return out.to(q_given.scalar_type());
}

Gradients position_lambda_backward(const Backward& call, Tensor q, Tensor v, Tensor weight, optional<Tensor> bias, int64_t padding) {
  if (!call.gradients[0].defined() || call.gradients[0].numel() == 0) return std::nullopt;
  const auto type = accumulation_type(q.scalar_type());
  const Tensor queries = q.to(type), values = v.to(type), taps = weight.to(type), given = call.gradients[0].to(type);
  const optional<Tensor> shift = bias ? optional(bias->to(type)) : std::nullopt;
  const int64_t K = q.size(2);
  Wanted wanted(call);
  const bool of_q = wanted(q), of_v = wanted(v), of_weight = wanted(weight), of_bias = wanted(bias);
  Tensor d_q = at::zeros_like(queries), d_v = at::zeros_like(values), d_weight = at::zeros_like(taps);
  Tensor d_bias = taps.new_zeros({K});
  in_parts(queries, values, [&](int64_t b, int64_t sequences, int64_t c, int64_t channels) {
    const Tensor images = as_images(values.narrow(0, b, sequences).narrow(2, c, channels)), here = queries.narrow(0, b, sequences);
    const Tensor d_out = given.narrow(0, b, sequences).narrow(2, c, channels);  // [b,h,c,*S]
    if (of_q) {
      const Tensor lambdas = lambdas_of(images, taps, shift, padding).unflatten(0, {sequences, channels});  // [b,c,K,*S]
      Tensor sum = d_q.narrow(0, b, sequences);
      for (int64_t k = 0; k < K; ++k) sum.select(2, k).add_((d_out * lambdas.select(2, k).unsqueeze(1)).sum(2));
    }
    if (!of_v && !of_weight && !of_bias) return;
    std::vector<Tensor> of_feature;  // [b,c,*S]
    for (int64_t k = 0; k < K; ++k) of_feature.push_back((here.select(2, k).unsqueeze(2) * d_out).sum(1));
    const Tensor d_lambdas = at::stack(of_feature, 2).flatten(0, 1);  // [b c,K,*S]
    const auto [d_images, d_taps, d_shift] =
        at::convolution_backward(d_lambdas, images, taps, taps.sizes().slice(0, 1), each(taps, 1), each(taps, padding), each(taps, 1), false,
                                 each(taps, 0), 1, {of_v, of_weight, of_bias});
    if (of_v) d_v.narrow(0, b, sequences).narrow(2, c, channels).add_(d_images.unflatten(0, {sequences, channels}).transpose(1, 2));
    if (of_weight) d_weight.add_(d_taps);
    if (of_bias) d_bias.add_(d_shift);
  });
  std::vector<Tensor> found;
  give(found, of_q, q, [&] { return d_q; });
  give(found, of_v, v, [&] { return d_v; });
  give(found, of_weight, weight, [&] { return d_weight; });
  give(found, of_bias, bias, [&] { return d_bias; });
  return found;
}

}  // namespace

FOVEATE_OP(position_lambda, "_position_lambda(Tensor q, Tensor v, Tensor weight, Tensor? bias, int padding) -> Tensor",
           {.formula = &position_lambda_formula,
            .meta = &position_lambda_meta,
            .cpu = &position_lambda_parts,
            .cpu_backward = &position_lambda_backward,
            .any_device = true})

Tensor position_lambda(const Tensor& q, const Tensor& v, const Tensor& weight, const optional<Tensor>& bias, int64_t padding) {
  const int64_t taps = weight.dim() - 2;
  TORCH_CHECK_VALUE((taps == 1 || taps == 2) && q.dim() == taps + 3 && v.dim() == taps + 3,
                    "position_lambda: q must be [B,h,K,*S], v [B,U,V,*R] and weight [K,U,*taps] of one or two dimensions, got ", q.sym_sizes(), ", ",
                    v.sym_sizes(), " and ", weight.sym_sizes());
  TORCH_CHECK_VALUE(extent(q, 2) == extent(weight, 0) && extent(v, 1) == extent(weight, 1) && extent(q, 0) == extent(v, 0),
                    "position_lambda: q, v and weight must agree on B, K and U, got ", q.sym_sizes(), ", ", v.sym_sizes(), " and ",
                    weight.sym_sizes());
  for (int64_t d = 0; d < taps; ++d) {
    TORCH_CHECK_VALUE(extent(q, 3 + d) == extent(v, 3 + d) + 2 * padding + 1 - extent(weight, 2 + d), "position_lambda: q must have ",
                      "the positions that the convolution of v leaves, got ", q.sym_sizes(), " of ", v.sym_sizes());
  }
  return primitive<decltype(position_lambda_formula)>("foveate::_position_lambda").call(q, v, weight, bias, padding);
}

}  // namespace foveate::ops
