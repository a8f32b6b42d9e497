#include <foveate/init.h>
#include <foveate/xl.h>

namespace foveate {

ops::ScoreBias positions::xl(const Tensor& q, const Tensor& bias, const Tensor& rows, Size zero) {
  return {.rows = rows, .row_query = plus_bias(q, bias), .origin = std::move(zero)};
}

Tensor positions::sinusoid(const Tensor& distances, int64_t width) {
  const Tensor t = at::arange(width / 2, distances.options().dtype(at::kDouble));
  const Tensor angles = distances.to(at::kDouble).unsqueeze(-1) * at::exp(t * (-2 * std::log(10000.0) / static_cast<double>(width)));  // [L,width/2]
  return at::cat({angles.sin(), angles.cos()}, -1);
}

void XLNetAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.num_heads > 0, "xl_net_attention: num_heads must be positive, got ", o.num_heads);
  TORCH_CHECK_VALUE(o.head_dim > 0, "xl_net_attention: head_dim must be positive, got ", o.head_dim);
  TORCH_CHECK_VALUE(o.clamp_len.value_or(1) > 0, "xl_net_attention: clamp_len must be positive, got ", *o.clamp_len);
}

XLNetAttention::Parameters XLNetAttention::init(const Options& o) {
  return {.content_bias = layers::normal({o.num_heads, o.head_dim}, 0.02), .position_bias = layers::normal({o.num_heads, o.head_dim}, 0.02)};
}

Tensor XLNetAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Size M = extent(in.k, 2);
  TORCH_CHECK_VALUE(extent(in.r, 1) == extent(in.q, 2) + M, "xl_net_attention: r must be [H,N+M,D] with N + M = ", extent(in.q, 2) + M, ", got ",
                    in.r.sym_sizes());
  Tensor r = in.r;
  if (o.clamp_len) {  // row M - d is distance d
    const Tensor behind = (M - at::arange(extent(r, 1), r.options().dtype(at::kLong))).clamp(-*o.clamp_len, *o.clamp_len);
    r = r.index_select(1, M - behind);
  }
  const auto position = positions::xl(in.q, p.position_bias, r, M);
  return ops::attention(positions::plus_bias(in.q, p.content_bias), in.k, in.v,
                        {.key_mask = in.key_mask, .causal = o.causal, .scale = o.scale, .position = position})
      .out;
}

FOVEATE_MECHANISM(XLNetAttention)

}  // namespace foveate
