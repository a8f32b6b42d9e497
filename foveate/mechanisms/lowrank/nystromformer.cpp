#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/heads.h>
#include <foveate/nystromformer.h>

namespace foveate {
namespace {

/// Landmarks of x [B,H,N,D], and which of them [B,m] stand for any token.
struct Landmarks {
  Tensor means;  // [B,H,m,D]
  optional<Tensor> valid;
};

Landmarks landmarks(const auto& o, const Tensor& x, const optional<Tensor>& mask) {
  const Tensor means = ops::segment_mean(x, o.num_landmarks, o.segments);
  if (!mask || o.masking != NystromMask::counted) return {.means = means, .valid = {}};
  const Tensor part = ops::segment_mean(mask->to(x.scalar_type()).unsqueeze(-1), o.num_landmarks, o.segments);  // [B,m,1] of the tokens
  const Tensor some = part > 0;
  return {.means = means / at::where(some, part, part.new_ones({})).unsqueeze(1), .valid = some.squeeze(-1)};
}

/// Z ~ A^-1, [B,H,m,m]: from A^T / c, each step multiplies I - A Z by itself thrice.
Tensor inverse(const Tensor& A, InverseInit init, int64_t steps) {
  const Tensor columns = A.sum(-2);                                                                              // entries are positive
  const auto largest = [](const Tensor& sums) { return at::cat({sums.flatten(), sums.new_zeros({1})}).max(); };  // of an empty batch, too
  const Tensor c = init == InverseInit::exact      ? columns.amax(-1, true).unsqueeze(-1)
                   : init == InverseInit::original ? largest(columns)
                                                   : largest(columns) * largest(A.sum(-1));
  const Tensor eye = at::eye(A.size(-1), A.options());
  Tensor Z = A.transpose(-1, -2) / c;
  for (int64_t t = 0; t < steps; ++t) {
    const Tensor Y = at::matmul(A, Z);
    Z = 0.25 * at::matmul(Z, 13 * eye - at::matmul(Y, 15 * eye - at::matmul(Y, 7 * eye - Y)));
  }
  return Z;
}

/// log of how many zeros left_padded segments put before the first of M keys.
Tensor log_padding(const Tensor& k, int64_t m) {
  const Tensor M = length_of(k.to(ops::accumulation_type(k.scalar_type())), 2);
  return (-M).remainder(static_cast<double>(m)).log();
}

/// softmax(scale q k~^T) Z softmax(scale q~ k^T) v
Tensor through_landmarks(const auto& o, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                         const optional<Tensor>& query_mask) {
  const auto [q_means, q_valid] = landmarks(o, q, query_mask);
  const auto [k_means, k_valid] = landmarks(o, k, key_mask);
  const bool padded = o.segments == ops::Segments::left_padded;

  ops::Attention over_keys{.key_mask = key_mask, .scale = o.scale};
  if (padded && !key_mask) over_keys.start = ops::Start{.logit = log_padding(k, o.num_landmarks)};  // zeros are keys like others
  Tensor read = ops::attention(q_means, k, v, over_keys).out;                                       // [B,H,m,Dv]

  const auto type = ops::accumulation_type(q.scalar_type());
  Tensor scores = at::matmul(q_means.to(type), k_means.to(type).transpose(-1, -2)) * o.scale.value_or(default_scale(q));
  if (k_valid) scores = scores.masked_fill(k_valid->logical_not().unsqueeze(1).unsqueeze(1), std::numeric_limits<float>::lowest());
  if (q_valid) {  // a landmark of no token reads all alike: it is nobody's query, but the inverse, which has not converged, mixes it in
    const Tensor nobody = q_valid->logical_not().unsqueeze(1).unsqueeze(-1);  // [B,1,m,1]
    scores = scores.masked_fill(nobody, 0);
    const Tensor all = (padded ? ops::segment_mean(v, o.num_landmarks, o.segments) : v).mean(2, true);
    read = at::where(nobody, all, read);
  }
  const Tensor W = at::matmul(inverse(scores.softmax(-1), o.inverse_init, o.pinv_iterations), read.to(type)).to(v.scalar_type());  // [B,H,m,Dv]
  return ops::attention(q, k_means, W, {.key_mask = k_valid, .scale = o.scale, .query_mask = query_mask}).out;
}

Tensor attend(const auto& o, const Tensor& q_given, const Tensor& k_given, const Tensor& v_given, const optional<layers::Convolution>& conv,
              const optional<Tensor>& key_mask, optional<Tensor> query_mask) {
  const bool zeroes = o.masking != NystromMask::keys;
  if (!zeroes) query_mask = {};
  const Tensor q = masked_rows(q_given, query_mask);
  const Tensor k = zeroes ? masked_rows(k_given, key_mask) : k_given;
  const Tensor v = zeroes ? masked_rows(v_given, key_mask) : v_given;
  const bool few = o.exact_when_short && (extent(q, 2) <= o.num_landmarks || extent(k, 2) <= o.num_landmarks);
  Tensor out = few ? ops::attention(q, k, v, {.key_mask = key_mask, .scale = o.scale, .query_mask = query_mask}).out
                   : through_landmarks(o, q, k, v, key_mask, query_mask);
  if (!conv) return out;
  TORCH_CHECK_VALUE(extent(q, 2) == extent(k, 2), "nystrom_attention: conv_kernel_size needs as many keys as queries, got ", extent(k, 2), " and ",
                    extent(q, 2));
  const int64_t heads = plain_extent(v, 1), half = conv->weight.size(2) / 2;
  return out + at::convolution(v, conv->weight, conv->bias, {1, 1}, {half, 0}, {1, 1}, /*transposed=*/false, {0, 0}, heads);
}

void check_options(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.num_landmarks > 0 && o.num_heads > 0, form, ": num_landmarks and num_heads must be positive, got ", o.num_landmarks, " and ",
                    o.num_heads);
  TORCH_CHECK_VALUE(o.pinv_iterations >= 0, form, ": pinv_iterations must not be negative, got ", o.pinv_iterations);
  TORCH_CHECK_VALUE(o.conv_kernel_size == 0 || o.conv_kernel_size % 2 == 1, form, ": conv_kernel_size must be odd, or 0 for none, got ",
                    o.conv_kernel_size);
}

optional<layers::Convolution> filters(const auto& o) {
  if (o.conv_kernel_size == 0) return {};
  const std::vector<int64_t> taps{o.conv_kernel_size, 1};
  return layers::Convolution::init(1, o.num_heads, taps, /*bias=*/false);
}

}  // namespace

// --- the bare function -------------------------------------------------------------------------------------------------------

void NystromAttention::check(const Options& o) { check_options("nystrom_attention", o); }

NystromAttention::Parameters NystromAttention::init(const Options& o) { return {.conv = filters(o)}; }

Tensor NystromAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  return attend(o, in.q, in.k, in.v, p.conv, in.key_mask, in.query_mask);
}

FOVEATE_MECHANISM(NystromAttention)

// --- the layer ---------------------------------------------------------------------------------------------------------------

void Nystromformer::check(const Options& o) {
  check_options("nystromformer", o);
  layers::check_heads("nystromformer", o.embed_dim, o.num_heads, o.head_dim);
  TORCH_CHECK_VALUE(!o.value_residual || o.out_projection, "nystromformer: value_residual needs out_projection");
}

Nystromformer::Parameters Nystromformer::init(const Options& o) {
  using layers::Linear;
  const int64_t E = o.embed_dim, inner = o.num_heads * o.head_dim.value_or(E / o.num_heads);
  Parameters p{.query = Linear::init(E, inner, o.bias), .key = Linear::init(E, inner, o.bias), .value = Linear::init(E, inner, o.bias)};
  if (o.out_projection) p.out = Linear::init(inner, o.value_residual ? inner : E);
  p.conv = filters(o);
  return p;
}

Tensor Nystromformer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor q = split_heads(p.query(in.x), o.num_heads), k = split_heads(p.key(in.x), o.num_heads), v = split_heads(p.value(in.x), o.num_heads);
  const Tensor attended = merge_heads(attend(o, q, k, v, p.conv, in.key_mask, in.key_mask));  // [B,N,H D]
  const Tensor out = p.out ? (*p.out)(attended) : attended;
  return o.value_residual ? merge_heads(v) + out : out;
}

FOVEATE_MECHANISM(Nystromformer)

}  // namespace foveate
