#include <foveate/attention.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/transformer_xl.h>
#include <foveate/xl.h>

namespace foveate {
namespace {

constexpr double deviation = 0.02;  // of every initial weight

optional<int64_t> window(const auto& o) { return o.same_length ? optional<int64_t>(o.mem_len) : std::nullopt; }

const auto& given(const auto& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor, "transformer_xl_layer: ", name, " is missing, which these options need");
  return *tensor;
}

/// s_ij = scale ((q_i + u).k_j + (q_i + v).R_d)
Tensor attend(const Tensor& u, const Tensor& v_bias, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& r, ops::Attention how) {
  how.position = positions::xl(q, v_bias, r, extent(r, 1) - 1);
  return ops::attention(positions::plus_bias(q, u), k, v, how).out;
}

/// Learned positions: s_ij = scale ((q_i + u).k_j + q_i.R_d + b_d). The bias b_d rides with R_d, in a channel where the query is 1.
Tensor attend_with_tables(const TransformerXLLayer::Options& o, const TransformerXLLayer::Parameters& parameters, const Tensor& q, const Tensor& k,
                          const Tensor& v, ops::Attention how) {
  const auto& [p, bias] = parameters;
  const int64_t rows = std::min(o.table_length, o.clamp_len.value_or(o.table_length));
  const Tensor whole =
      at::cat({given(p.distance_keys, "block.distance_keys"), given(p.distance_bias, "block.distance_bias").unsqueeze(-1)}, -1);  // [K,H,D+1]
  const Tensor table = whole.narrow(0, o.table_length - rows, rows).transpose(0, 1);                                              // [H,rows,D+1]
  const Tensor one = at::ones_like(q.narrow(-1, 0, 1));
  const auto with_zero = [](const Tensor& x) { return at::constant_pad_nd(x, {0, 1}); };
  how.scale = default_scale(q);
  how.position = {.rows = table, .row_query = at::cat({q, one}, -1), .origin = rows - 1};
  return ops::attention(with_zero(positions::plus_bias(q, given(bias.content, "bias.content"))), with_zero(k), v, how).out;
}

/// [M,E] rows of a table [K,H,D] for the distances M - 1, ..., 0; farther ones use its first.
Tensor rows_from_far_to_near(const Tensor& table, const Size& length) {
  const int64_t rows = plain_extent(table, 0);
  const Tensor distance = at::arange(length, table.options().dtype(at::kLong)).flip(0).clamp_max(rows - 1);
  return table.flatten(1).index_select(0, rows - 1 - distance);
}

}  // namespace

void TransformerXLAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.num_heads > 0, "transformer_xl_attention: num_heads must be positive, got ", o.num_heads);
  TORCH_CHECK_VALUE(o.head_dim > 0, "transformer_xl_attention: head_dim must be positive, got ", o.head_dim);
  TORCH_CHECK_VALUE(o.mem_len >= (o.same_length ? 1 : 0), "transformer_xl_attention: mem_len must be ",
                    o.same_length ? "positive with same_length" : "0 or more", ", got ", o.mem_len);
}

TransformerXLAttention::Parameters TransformerXLAttention::init(const Options& o) {
  return {.content_bias = layers::normal({o.num_heads, o.head_dim}, deviation),
          .position_bias = layers::normal({o.num_heads, o.head_dim}, deviation)};
}

Tensor TransformerXLAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  return attend(p.content_bias, p.position_bias, in.q, in.k, in.v, in.r,
                {.mask = in.mask,
                 .key_mask = in.key_mask,
                 .causal = true,
                 .window = window(o),
                 .scale = o.scale,
                 .dropout_keep = in.dropout_keep,
                 .dropout = o.dropout});
}

std::pair<Tensor, TransformerXLAttention::State> TransformerXLAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  return layers::step_with_cache<TransformerXLAttention>("transformer_xl_attention", o, p, in, past);
}

FOVEATE_MECHANISM(TransformerXLAttention)

void TransformerXLLayer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.embed_dim > 0 && o.embed_dim % 2 == 0, "transformer_xl: embed_dim must be positive and even, got ", o.embed_dim);
  TORCH_CHECK_VALUE(o.num_heads > 0, "transformer_xl: num_heads must be positive, got ", o.num_heads);
  TORCH_CHECK_VALUE(o.head_dim > 0, "transformer_xl: head_dim must be positive, got ", o.head_dim);
  TORCH_CHECK_VALUE(o.inner_dim > 0, "transformer_xl: inner_dim must be positive, got ", o.inner_dim);
  TORCH_CHECK_VALUE(o.mem_len >= (o.same_length ? 1 : 0), "transformer_xl: mem_len must be ",
                    o.same_length ? "positive with same_length" : "0 or more", ", got ", o.mem_len);
  TORCH_CHECK_VALUE(o.clamp_len.value_or(1) > 0, "transformer_xl: clamp_len must be positive, got ", *o.clamp_len);
  TORCH_CHECK_VALUE(o.table_length > 0, "transformer_xl: table_length must be positive, got ", o.table_length);
  TORCH_CHECK_VALUE(o.position != XLPosition::absolute_learned || o.num_heads * o.head_dim == o.embed_dim,
                    "transformer_xl: embed_dim must be num_heads * head_dim with absolute_learned positions, got ", o.embed_dim, " and ",
                    o.num_heads * o.head_dim);
  layers::check_dropout("transformer_xl", "dropout", o.dropout);
  layers::check_dropout("transformer_xl", "attention_dropout", o.attention_dropout);
}

Tensor xl_sinusoids(const TransformerXLLayer::Options& o, const Size& length, const Tensor& x) {
  const Tensor behind = at::arange(length, x.options().dtype(at::kLong)).flip(0);
  return positions::sinusoid(o.clamp_len ? behind.clamp_max(*o.clamp_len) : behind, o.embed_dim).to(x.scalar_type());
}

XLBlock init_xl_block(const TransformerXLLayer::Options& o) {
  const int64_t E = o.embed_dim, inner = o.num_heads * o.head_dim;
  const auto linear = [](int64_t in, int64_t out) { return layers::Linear{.weight = layers::normal({out, in}, deviation)}; };
  const auto with_bias = [&](int64_t in, int64_t out) {
    return layers::Linear{.weight = layers::normal({out, in}, deviation), .bias = layers::zeros({out})};
  };
  const auto norm = [&]() { return layers::LayerNorm{.weight = layers::normal({E}, deviation, 1), .bias = layers::zeros({E})}; };
  XLBlock made{.qkv = linear(E, 3 * inner),
               .out = linear(inner, E),
               .attention_norm = norm(),
               .feed_forward = {.up = with_bias(E, o.inner_dim), .down = with_bias(o.inner_dim, E)},
               .feed_forward_norm = norm()};
  const bool learned = o.position == XLPosition::learned;
  if (o.position == XLPosition::sinusoid) made.relative = linear(E, inner);
  if (learned || o.position == XLPosition::absolute_learned) {
    made.distance_keys = layers::normal({o.table_length, o.num_heads, o.head_dim}, deviation);
  }
  if (learned) made.distance_bias = layers::zeros({o.table_length, o.num_heads});
  return made;
}

XLBias init_xl_bias(const TransformerXLLayer::Options& o) {
  const bool sinusoid = o.position == XLPosition::sinusoid;
  XLBias made;
  if (sinusoid || o.position == XLPosition::learned) made.content = layers::normal({o.num_heads, o.head_dim}, deviation);
  if (sinusoid) made.position = layers::normal({o.num_heads, o.head_dim}, deviation);
  return made;
}

TransformerXLLayer::Parameters TransformerXLLayer::init(const Options& o) { return {.block = init_xl_block(o), .bias = init_xl_bias(o)}; }

Tensor TransformerXLLayer::forward(const Options& o, const Parameters& parameters, const Inputs& in, bool training) {
  const auto& [p, bias] = parameters;
  const auto dropped = [&](const Tensor& t, const optional<Tensor>& keep) { return layers::dropout(t, o.dropout, keep, training); };
  Tensor context = in.memory ? at::cat({*in.memory, in.x}, 1) : in.x;  // [B,M,E]
  const Size N = extent(in.x, 1), M = extent(context, 1);
  if (o.position == XLPosition::absolute_learned) context = context + rows_from_far_to_near(given(p.distance_keys, "block.distance_keys"), M);
  const Tensor x = context.narrow_symint(1, M - N, N);
  const Tensor h = o.pre_norm ? p.attention_norm(context) : context;

  const int64_t inner = o.num_heads * o.head_dim;
  const Tensor q = split_heads(at::linear(h.narrow_symint(1, M - N, N), p.qkv.weight.narrow(0, 0, inner)), o.num_heads);
  const auto kv = at::linear(h, p.qkv.weight.narrow(0, inner, 2 * inner)).chunk(2, -1);
  const Tensor k = split_heads(kv[0], o.num_heads), v = split_heads(kv[1], o.num_heads);

  const layers::WeightDropout weights(o.attention_dropout, {}, training && !in.attention_keep, q);
  const ops::Attention how = weights.with({.mask = in.mask,
                                           .key_mask = in.key_mask,
                                           .causal = true,
                                           .window = window(o),
                                           .dropout_keep = in.attention_keep,
                                           .dropout = o.attention_dropout});
  Tensor attended;  // [B,H,N,D]
  if (o.position == XLPosition::sinusoid) {
    const Tensor table = dropped(xl_sinusoids(o, M, in.x), in.position_keep);                                      // [M,E]
    const Tensor r = given(p.relative, "block.relative")(table).unflatten(-1, {o.num_heads, -1}).transpose(0, 1);  // [H,M,D]
    attended = attend(given(bias.content, "bias.content"), given(bias.position, "bias.position"), q, k, v, r, how);
  } else if (o.position == XLPosition::learned) {
    attended = attend_with_tables(o, parameters, q, k, v, how);
  } else {
    attended = ops::attention(q, k, v, how).out;
  }

  const Tensor y = x + dropped(p.out(merge_heads(attended)), in.output_keep);
  const auto network = [&](const Tensor& z) {
    return dropped(p.feed_forward.down(dropped(p.feed_forward.up(z).relu(), in.inner_keep)), in.network_keep);
  };
  if (o.pre_norm) return y + network(p.feed_forward_norm(y));
  const Tensor z = p.attention_norm(y);
  return p.feed_forward_norm(z + network(z));
}

FOVEATE_MECHANISM(TransformerXLLayer)

}  // namespace foveate
