#include <foveate/attention.h>
#include <foveate/kronecker_attention.h>
#include <foveate/means.h>

namespace foveate {
namespace {

/// c [B,C,n]: the means over all axes but one, one axis after another.
Tensor means(const Tensor& x) {
  std::vector<Tensor> each;
  for (int64_t axis = 2; axis < x.dim(); ++axis) {
    std::vector<int64_t> others;
    for (int64_t d = 2; d < x.dim(); ++d) {
      if (d != axis) others.push_back(d);
    }
    each.push_back(others.empty() ? x : layers::mean_over(x, others));
  }
  return at::cat(each, 2);
}

/// q [B,H D,N], k and v [B,H D,n] -> [B,H D,N]
Tensor attend(const auto& o, const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto heads = [&](const Tensor& x) { return split_heads(x.transpose(1, 2), o.num_heads); };  // [B,H,N,D]
  const Tensor queries = heads(q), keys = heads(k), values = heads(v);
  if (o.normalize == KroneckerNormalize::softmax) return merge_heads(ops::attention(queries, keys, values, {.scale = o.scale}).out).transpose(1, 2);
  const Tensor sums = at::matmul(keys.transpose(-1, -2), values) * (o.scale / length_of(k, 2));  // [B,H,D,D]: without a softmax, sums come first
  return merge_heads(at::matmul(queries, sums)).transpose(1, 2);
}

/// y [B,C,n], as a map like x: each position the sum of its coordinates' answers.
Tensor outer_sum(const Tensor& y, const Tensor& x) {
  Tensor out;
  Size start = 0;
  for (int64_t axis = 2; axis < x.dim(); ++axis) {
    Tensor part = y.narrow_symint(2, start, extent(x, axis));
    for (int64_t d = 2; d < x.dim(); ++d) {
      if (d != axis) part = part.unsqueeze(d);
    }
    out = out.defined() ? out + part : part;
    start += extent(x, axis);
  }
  return out;
}

/// [B,C,N] as a map like x
Tensor as_map(const Tensor& y, const Tensor& x) {
  auto shape = x.sym_sizes().vec();
  shape[1] = extent(y, 1);
  return y.reshape_symint(shape);
}

void check_options(const char* form, const auto& o) { TORCH_CHECK_VALUE(o.num_heads > 0, form, ": num_heads must be positive, got ", o.num_heads); }

void check_maps(const char* form, const auto& o, const auto& in) {
  TORCH_CHECK_VALUE(in.x.dim() >= 3 && in.x.dim() <= 5, form, ": x must be [B,C,*S] with one to three dimensions S, got ", in.x.sym_sizes());
  if (!in.context) return;
  TORCH_CHECK_VALUE(o.variant == KroneckerVariant::kv, form, ": context is for the variant kv; in qkv a map reads itself");
  TORCH_CHECK_VALUE(
      in.context->dim() >= 3 && in.context->dim() <= 5 && extent(*in.context, 0) == extent(in.x, 0) && extent(*in.context, 1) == extent(in.x, 1),
      form, ": context must be [B,C,*T] with B and C as in x, got ", in.context->sym_sizes(), " beside ", in.x.sym_sizes());
}

}  // namespace

void KroneckerAttentionOperator::check(const Options& o) { check_options("kronecker_attention_operator", o); }

Tensor KroneckerAttentionOperator::forward(const Options& o, const Parameters&, const Inputs& in) {
  check_maps("kronecker_attention_operator", o, in);
  TORCH_CHECK_VALUE(extent(in.x, 1) % o.num_heads == 0, "kronecker_attention_operator: num_heads must divide the channels of x, got ", o.num_heads,
                    " and ", extent(in.x, 1));
  const Tensor c = means(in.context.value_or(in.x));
  if (o.variant == KroneckerVariant::kv) return as_map(attend(o, in.x.flatten(2), c, c), in.x);
  return outer_sum(attend(o, c, c, c), in.x);
}

FOVEATE_MECHANISM(KroneckerAttentionOperator)

void KroneckerAttention::check(const Options& o) {
  check_options("kronecker_attention", o);
  TORCH_CHECK_VALUE(o.in_channels > 0 && o.head_dim > 0, "kronecker_attention: in_channels and head_dim must be positive, got ", o.in_channels,
                    " and ", o.head_dim);
}

KroneckerAttention::Parameters KroneckerAttention::init(const Options& o) {
  using layers::Convolution;
  const int64_t C = o.in_channels, inner = o.num_heads * o.head_dim;
  const std::vector<int64_t> one{1};
  return {.query = Convolution::init(C, inner, one, false),
          .key = Convolution::init(C, inner, one, false),
          .value = Convolution::init(C, inner, one, false),
          .out = Convolution::init(inner, C, one)};
}

Tensor KroneckerAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  check_maps("kronecker_attention", o, in);
  TORCH_CHECK_VALUE(extent(in.x, 1) == o.in_channels, "kronecker_attention: x must have in_channels = ", o.in_channels, " channels, got ",
                    in.x.sym_sizes());
  const Tensor c = means(in.context.value_or(in.x));  // means first: they commute with a 1x1 map
  const Tensor k = p.key(c), v = p.value(c);
  if (o.variant == KroneckerVariant::kv) return as_map(p.out(attend(o, p.query(in.x.flatten(2)), k, v)), in.x);
  return outer_sum(p.out(attend(o, p.query(c), k, v)), in.x);
}

FOVEATE_MECHANISM(KroneckerAttention)

}  // namespace foveate
