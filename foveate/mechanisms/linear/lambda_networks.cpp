#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/conv_norm_relu.h>
#include <foveate/init.h>
#include <foveate/lambda_networks.h>
#include <foveate/linear_attention.h>
#include <foveate/position_lambda.h>
#include <foveate/table_attention.h>

namespace foveate {
namespace {

/// lambdas [B,N or 1,K,V] on q [B,H,N,K] -> [B,H,N,V]
Tensor apply(const Tensor& lambdas, const Tensor& q) { return at::matmul(q.transpose(1, 2), lambdas).transpose(1, 2); }

/// [B,M,X,U] -> [B,M U,X]: a key or value for each u
Tensor each_u(const Tensor& x) { return x.transpose(2, 3).flatten(1, 2); }

/// keys normalised over all that are not hidden, [B,M,K,U]
Tensor normalised(const Tensor& k, const optional<Tensor>& key_mask) {
  if (!key_mask) return k.softmax(1);
  const Tensor seen = key_mask->unsqueeze(-1).unsqueeze(-1);
  const Tensor scores = k.to(ops::accumulation_type(k.scalar_type())).masked_fill(seen.logical_not(), std::numeric_limits<float>::lowest());
  return (scores.softmax(1) * seen).to(k.scalar_type());
}

/// sum_m kbar_m (q.kbar_m) v_m with kbar normalised over what the query sees. A feature k of a u is an attention of its own, whose scores
/// are the same for all queries: the softmax of attention over what is seen, for K U heads of width 1.
Tensor content_by_context(const Tensor& q, const Tensor& k, const Tensor& v, const ops::Attention& how) {
  const int64_t K = plain_extent(k, 2), U = plain_extent(k, 3);
  const Tensor keys = k.permute({0, 2, 3, 1}).flatten(1, 2).unsqueeze(-1);                                      // [B,K U,M,1]
  const Tensor values = v.permute({0, 3, 1, 2}).unsqueeze(1).expand_symint({-1, K, -1, -1, -1}).flatten(1, 2);  // [B,K U,M,V]
  const Tensor ones = k.new_ones_symint({extent(q, 0), K * U, extent(q, 2), 1});                                // [B,K U,N,1]
  const Tensor each = ops::attention(ones, keys, values, how).out.unflatten(1, {K, U}).sum(2);                  // [B,K,N,V]
  return apply(each.transpose(1, 2), q);
}

Tensor content(const LambdaAttention::Options& o, const LambdaAttention::Inputs& in) {
  if (o.key_norm == LambdaKeyNorm::context) {
    return content_by_context(in.q, in.k, in.v, {.mask = in.context_mask, .key_mask = in.key_mask, .causal = o.causal, .scale = 1});
  }
  const Tensor kbar = normalised(in.k, in.key_mask);
  if (!in.context_mask && !o.causal) return apply(at::matmul(each_u(kbar).transpose(1, 2), each_u(in.v)).unsqueeze(1), in.q);
  if (!in.context_mask) {
    Tensor out;
    for (int64_t u = 0; u < plain_extent(in.k, 3); ++u) {
      const auto one = [&](const Tensor& x) { return x.select(3, u).unsqueeze(1); };
      const Tensor part = ops::linear_attention(in.q, one(kbar), one(in.v), {.causal = true, .normalizer = ops::Normalizer::none}).out;
      out = out.defined() ? out + part : part;
    }
    return out;
  }
  // A mask for all sequences: a sum of k v^T over what each query sees.
  const Tensor outer = at::matmul(kbar, in.v.transpose(2, 3));  // [B,M,K,V]
  Tensor seen = *in.context_mask;
  if (o.causal) seen = seen & layers::causal_mask(seen);
  const Tensor sums = at::matmul(seen.to(outer.scalar_type()), outer.flatten(2));  // [B,N,K V]
  return apply(sums.unflatten(2, {plain_extent(in.k, 2), -1}), in.q);
}

/// lambda_n = sum_m e_nm v_m^T
Tensor by_table(const LambdaAttention::Options& o, const LambdaAttention::Inputs& in, const Tensor& v) {
  Tensor e = *in.table;  // [N,M,K,U]
  optional<Tensor> seen = in.context_mask;
  if (o.causal) seen = seen ? *seen & layers::causal_mask(*seen) : layers::causal_mask(e.select(3, 0).select(2, 0));
  if (seen) e = e * seen->to(e.scalar_type()).unsqueeze(-1).unsqueeze(-1);
  const Tensor rows = e.permute({0, 2, 1, 3}).flatten(2);                   // [N,K,M U]
  const Tensor columns = v.permute({1, 3, 0, 2}).flatten(2).flatten(0, 1);  // [M U,B V]
  const Tensor lambdas = at::matmul(rows, columns);                         // [N,K,B V]
  return apply(lambdas.unflatten_symint(2, {extent(v, 0), extent(v, 2)}).permute({2, 0, 1, 3}), in.q);
}

/// The same for embeddings by distance back: a convolution over the past. The last value stands at the last query.
Tensor by_taps(const Tensor& taps, const Tensor& q, const Tensor& v) {
  const int64_t R = plain_extent(taps, 0);
  const Tensor line = at::constant_pad_nd(v.permute({0, 3, 2, 1}), {R - 1, 0});  // [B,U,V,M + R - 1]
  const Size seen = extent(q, 2) + (R - 1);
  const Tensor recent = line.narrow_symint(3, extent(line, 3) - seen, seen);
  return ops::position_lambda(q.transpose(2, 3), recent, taps.flip(0).permute({1, 2, 0}), {}, 0).transpose(2, 3);
}

void check_inputs(const char* form, const LambdaAttention::Inputs& in) {
  TORCH_CHECK_VALUE(!in.table || !in.taps, form, ": table and taps exclude each other");
  TORCH_CHECK_VALUE(!in.taps || !in.context_mask, form, ": context_mask is not for taps, which see what lies before");
}

Tensor visible(const Tensor& v, const optional<Tensor>& key_mask) {
  return key_mask ? v * key_mask->to(v.scalar_type()).unsqueeze(-1).unsqueeze(-1) : v;
}

}  // namespace

Tensor LambdaAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  check_inputs("lambda_attention", in);
  TORCH_CHECK_VALUE(!in.taps || extent(in.q, 2) == extent(in.k, 1), "lambda_attention: taps need as many keys as queries, got ", extent(in.k, 1),
                    " and ", extent(in.q, 2));
  Tensor out = content(o, in);
  if (in.table) out = out + by_table(o, in, visible(in.v, in.key_mask));
  if (in.taps) out = out + by_taps(*in.taps, in.q, visible(in.v, in.key_mask));
  return out;
}

std::pair<Tensor, LambdaAttention::State> LambdaAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  check_inputs("lambda_attention_step", in);
  TORCH_CHECK_VALUE(o.causal && o.key_norm == LambdaKeyNorm::context,
                    "lambda_attention_step: causal must be True and key_norm context for the form to stream");
  TORCH_CHECK_VALUE(!in.table && !in.context_mask && !in.key_mask,
                    "lambda_attention_step: table, context_mask and key_mask are not given step by step");
  const bool starts = !past.z.defined();
  // What was seen is one key more, of the score maximum + log z and the value s / z, for each feature.
  ops::Attention how{.causal = true, .scale = 1};
  if (!starts) {
    how.start = ops::Start{.logit = (past.maximum + past.z.log()).flatten(1, 2).unsqueeze(-1),
                           .value = (past.s / past.z.unsqueeze(2)).transpose(2, 3).flatten(1, 2).unsqueeze(2)};
  }
  Tensor out = content_by_context(in.q, in.k, in.v, how);

  const Tensor greatest = in.k.amax(1), maximum = starts ? greatest : at::maximum(past.maximum, greatest);         // [B,K,U]
  const Tensor w = (in.k - maximum.unsqueeze(1)).exp();                                                            // [B,N,K,U]
  Tensor z = w.sum(1), s = at::matmul(w.permute({0, 3, 2, 1}), in.v.permute({0, 3, 1, 2})).permute({0, 2, 3, 1});  // [B,K,U], [B,K,V,U]
  if (!starts) {
    const Tensor shrink = (past.maximum - maximum).exp();
    z = z + past.z * shrink;
    s = s + past.s * shrink.unsqueeze(2);
  }
  Tensor last = in.v.narrow(1, 0, 0);
  if (in.taps) {
    const Tensor values = starts ? in.v : at::cat({past.last, in.v}, 1);
    out = out + by_taps(*in.taps, in.q, values);
    const Size kept = extent(values, 1).min(in.taps->size(0) - 1);
    last = values.narrow_symint(1, extent(values, 1) - kept, kept);
  }
  return {out, {.maximum = maximum, .z = z, .s = s, .last = last}};
}

FOVEATE_MECHANISM(LambdaAttention)

// --- the layer ---------------------------------------------------------------------------------------------------------------

void LambdaLayer::check(const Options& o) {
  const int64_t out = o.out_channels.value_or(o.in_channels);
  TORCH_CHECK_VALUE(o.in_channels > 0 && o.dim_k > 0 && o.dim_u > 0, "lambda_layer: in_channels, dim_k and dim_u must be positive, got ",
                    o.in_channels, ", ", o.dim_k, " and ", o.dim_u);
  TORCH_CHECK_VALUE(o.num_heads > 0 && out > 0 && out % o.num_heads == 0, "lambda_layer: num_heads must divide out_channels, got ", o.num_heads,
                    " and ", out);
  TORCH_CHECK_VALUE(o.n.has_value() != o.r.has_value(), "lambda_layer: n or r must be given, and not both");
  TORCH_CHECK_VALUE(o.n.value_or(1) > 0, "lambda_layer: n must be positive, got ", o.n.value_or(1));
  TORCH_CHECK_VALUE(o.r.value_or(1) > 0 && o.r.value_or(1) % 2 == 1, "lambda_layer: r must be odd, got ", o.r.value_or(1));
}

LambdaLayer::Parameters LambdaLayer::init(const Options& o) {
  using layers::Convolution;
  const int64_t V = o.out_channels.value_or(o.in_channels) / o.num_heads;
  const std::vector<int64_t> one{1, 1};
  const auto pointwise = [&](int64_t out) { return Convolution::init(o.in_channels, out, one, /*bias=*/false); };
  Parameters p{.query = pointwise(o.num_heads * o.dim_k),
               .key = pointwise(o.dim_u * o.dim_k),
               .value = pointwise(o.dim_u * V),
               .query_norm = layers::BatchNorm::init(o.num_heads * o.dim_k),
               .value_norm = layers::BatchNorm::init(o.dim_u * V)};
  if (o.n) p.embedding = layers::normal({2 * *o.n - 1, 2 * *o.n - 1, o.dim_k, o.dim_u}, 1);
  const std::vector<int64_t> window{o.r.value_or(1), o.r.value_or(1)};
  if (o.r) p.conv = Convolution::init(o.dim_u, o.dim_k, window, o.bias);
  return p;
}

Tensor LambdaLayer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  TORCH_CHECK_VALUE(extent(in.x, 1) == o.in_channels, "lambda_layer: x must have in_channels = ", o.in_channels, " channels, got ", in.x.sym_sizes());
  TORCH_CHECK_VALUE(!o.n || (extent(in.x, 2) == *o.n && extent(in.x, 3) == *o.n), "lambda_layer: x must be [B,C,n,n] with n = ", o.n.value_or(0),
                    ", got ", in.x.sym_sizes());
  TORCH_CHECK_VALUE(o.n ? p.embedding.has_value() : p.conv.has_value(), "lambda_layer: embedding is needed with n, conv with r");
  const Size H = extent(in.x, 2), W = extent(in.x, 3);
  const Tensor q = layers::normalised(p.query, p.query_norm, in.x, training, o.bn_momentum, o.bn_eps);  // [B,h K,H,W]
  const Tensor k = p.key(in.x);                                                                         // [B,U K,H,W]
  Tensor v = layers::normalised(p.value, p.value_norm, in.x, training, o.bn_momentum, o.bn_eps);        // [B,U V,H,W]
  if (in.mask) v = v * in.mask->to(v.scalar_type()).unsqueeze(1);

  const Tensor queries = q.flatten(2).unflatten(1, {o.num_heads, o.dim_k});                 // [B,h,K,N]
  const Tensor keys = k.flatten(2).unflatten(1, {o.dim_u, o.dim_k}).permute({0, 3, 2, 1});  // [B,N,K,U]
  const Tensor values = v.flatten(2).unflatten(1, {o.dim_u, -1}).permute({0, 3, 2, 1});     // [B,N,V,U]
  const optional<Tensor> seen = in.mask ? optional(in.mask->flatten(1)) : std::nullopt;
  const Tensor content = at::matmul(each_u(normalised(keys, seen)).transpose(1, 2), each_u(values));  // [B,K,V]

  // Embeddings by distance are a convolution of the values, from U to K maps; those of whole maps have a window that covers all.
  const layers::Convolution embed = o.n ? layers::Convolution{.weight = p.embedding->permute({2, 3, 0, 1}), .bias = {}} : *p.conv;
  const Tensor by_position = ops::position_lambda(q.unflatten(1, {o.num_heads, o.dim_k}), v.unflatten(1, {o.dim_u, -1}), embed.weight, embed.bias,
                                                  plain_extent(embed.weight, 2) / 2);   // [B,h,V,H,W]
  const Tensor by_content = at::matmul(content.transpose(1, 2).unsqueeze(1), queries);  // [B,h,V,N]
  return (by_position + by_content.unflatten_symint(3, {H, W})).flatten(1, 2);
}

FOVEATE_MECHANISM(LambdaLayer)

}  // namespace foveate
