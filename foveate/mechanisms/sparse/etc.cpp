#include <foveate/etc.h>
#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/sparse_attention.h>

#include <algorithm>
#include <array>

namespace foveate {
namespace {

/// (q_i.a_t + c_t) / sqrt(D) of every label t: q [...,H,n,D] -> [...,H,n,V]
Tensor by_label(const Tensor& q, const ETCLabels& labels) {
  return (at::matmul(q, labels.emb.permute({1, 2, 0})) + labels.bias.transpose(0, 1).unsqueeze(1)) * default_scale(q);
}

/// The terms of the labels that pairs have: by_label [B,H,n,V], ids [B,n,m] -> [B,H,n,m]
Tensor of_pairs(const Tensor& by_label, const Tensor& ids) {
  return by_label.gather(-1, ids.to(at::kLong).unsqueeze(1).expand_symint({-1, extent(by_label, 1), -1, -1}));
}

/// Queries in T blocks of b, with the b + 2r keys that their neighbourhoods span: 3/2 of the pairs that count, and no more memory for
/// what differs from pair to pair. Blocks are the batch and B*H the heads: torch.export cannot bound a product of T, which depends on
/// the length, and something else.
class Neighbourhoods {
 public:
  Neighbourhoods(int64_t radius, const Tensor& q) : r_(radius), b_(std::clamp<int64_t>(radius, 1, 64)), N_(extent(q, 2)) {
    T_ = (N_ + (b_ - 1)) / b_;
    const auto whole = q.options().dtype(at::kLong);
    tokens_ = at::arange(N_, whole);
    const Tensor key = at::arange(T_ * span(), whole);
    places_ = key.floor_divide(span()) * b_ + key.remainder(span());
  }
  /// x [...,N,X] of queries -> [T,...,b,X]
  Tensor queries(const Tensor& x) const { return in_blocks(at::constant_pad_nd_symint(x, {0, 0, 0, behind()}, 0), b_); }
  /// x [...,N,X] of keys -> [T,...,b+2r,X]
  Tensor keys(const Tensor& x) const {
    return in_blocks(at::constant_pad_nd_symint(x, {0, 0, r_, behind() + r_}, 0).index_select(-2, places_), span());
  }
  /// Which keys there are, of key_mask bool [B,N] or of all -> [T,B or 1,1,b+2r]
  Tensor there(const optional<Tensor>& key_mask) const {
    if (!key_mask) return ((places_ >= r_) & (places_ < tokens_.slice(0, -1) + (r_ + 1))).view_symint({T_, 1, 1, span()});
    const Tensor keys = at::constant_pad_nd_symint(key_mask->transpose(0, 1), {0, 0, r_, behind() + r_}, 0).index_select(0, places_);
    return keys.unflatten_symint(0, {T_, span()}).transpose(1, 2).unsqueeze(2);
  }
  /// Neighbour u of query a is key a + u of the block: [...,b,2r+1] -> [...,b,b+2r], zero elsewhere.
  Tensor slanted(const Tensor& x) const {
    return at::constant_pad_nd(x, {0, b_}, 0).flatten(-2).slice(-1, 0, b_ * span()).unflatten(-1, {b_, span()});
  }
  /// bool [b,b+2r]: which keys are neighbours
  Tensor band(const Tensor& like) const { return slanted(at::ones({b_, 2 * r_ + 1}, like.options().dtype(at::kBool))); }
  /// [T,B*H,b,X] -> [B,H,N,X]
  Tensor in_order(const Tensor& x, const Tensor& like) const {
    const Tensor rows = at::index(x, {tokens_.floor_divide(b_), {}, tokens_.remainder(b_)});  // [N,B*H,X]
    return rows.unflatten_symint(1, {extent(like, 0), extent(like, 1)}).movedim(0, 2);
  }

 private:
  int64_t span() const { return b_ + 2 * r_; }
  Size behind() const { return T_ * b_ - N_; }
  Tensor in_blocks(const Tensor& x, int64_t size) const { return x.unflatten_symint(-2, {T_, size}).movedim(-3, 0); }
  int64_t r_, b_;
  Size N_, T_ = 0;
  Tensor tokens_, places_;  // [N], [T*(b+2r)]
};

/// Labels of 2r + 1 neighbours by distance: int [2r+1]
Tensor distance_labels(const GlobalLocalAttention::Options& o, const Tensor& like) {
  const Tensor distance = at::arange(-o.local_radius, o.local_radius + 1, like.options().dtype(at::kLong));
  const Tensor far = distance.abs().clamp_max(*o.max_distance);
  return o.ignore_direction ? far : at::where(distance < 0, far + *o.max_distance, far);
}

/// Long tokens and their neighbours.
ops::Attended nearby(const GlobalLocalAttention::Options& o, const optional<ETCLabels>& labels, const Tensor& q, const Tensor& k, const Tensor& v,
                     const ETCInputs& in) {
  const int64_t r = o.local_radius;
  if (!in.l2l_mask && !in.l2l_ids && !o.max_distance) {
    return ops::sparse_attention(q, k, v, patterns::sliding_window(r, r), {.key_mask = in.long_key_mask});
  }
  const Neighbourhoods of(r, q);
  const auto heads = [](const Tensor& x) { return x.flatten(1, 2); };  // [T,B,H,...] -> [T,B*H,...]
  optional<Tensor> bias;
  if (in.l2l_ids || o.max_distance) {
    const Tensor terms = of.queries(by_label(q, *labels));  // [T,B,H,b,V]
    const Tensor neighbours = in.l2l_ids
                                  ? terms.gather(-1, of.queries(*in.l2l_ids).to(at::kLong).unsqueeze(2).expand_symint({-1, -1, o.num_heads, -1, -1}))
                                  : terms.index_select(-1, distance_labels(o, q));
    bias = of.slanted(heads(neighbours));
  }
  Tensor mask = (in.l2l_mask ? of.slanted(of.queries(*in.l2l_mask)) : of.band(q)) & of.there(in.long_key_mask);  // [T,B or 1,b,b+2r]
  if (in.l2l_mask || in.long_key_mask) mask = heads(mask.unsqueeze(2).expand_symint({-1, -1, o.num_heads, -1, -1}));
  const auto attended = ops::attention(heads(of.queries(q)), heads(of.keys(k)), heads(of.keys(v)), {.mask = mask, .bias = bias});
  return {.out = of.in_order(attended.out, q), .lse = of.in_order(attended.lse.unsqueeze(-1), q).squeeze(-1)};
}

/// Two masks [B,n,m1], [B,n,m2] side by side, one of which may be absent; none where both are.
optional<Tensor> beside(const optional<Tensor>& a, const optional<Tensor>& b, const Tensor& like, const Size& rows, const Size& first,
                        const Size& second) {
  if (!a && !b) return std::nullopt;
  const auto ones = [&](const Size& columns) { return at::ones_symint({extent(like, 0), rows, columns}, like.options().dtype(at::kBool)); };
  return at::cat({a ? *a : ones(first), b ? *b : ones(second)}, -1);
}

optional<Tensor> for_heads(const optional<Tensor>& mask) { return mask ? optional<Tensor>(mask->unsqueeze(1)) : std::nullopt; }

void check_etc(const char* form, const GlobalLocalAttention::Options& o) {
  const int64_t width = o.attention_dim.value_or(o.embed_dim);
  TORCH_CHECK_VALUE(o.embed_dim > 0 && o.num_heads > 0 && width > 0 && width % o.num_heads == 0, form,
                    ": num_heads must divide attention_dim, by default embed_dim, got ", o.num_heads, " and ", width);
  TORCH_CHECK_VALUE(o.local_radius >= 0, form, ": local_radius must not be negative, got ", o.local_radius);
  TORCH_CHECK_VALUE(!o.relative_vocab_size || *o.relative_vocab_size > 0, form, ": relative_vocab_size must be positive, got ",
                    o.relative_vocab_size.value_or(0));
  TORCH_CHECK_VALUE(
      o.global_dim.value_or(o.embed_dim) > 0 && (o.global_dim.value_or(o.embed_dim) == o.embed_dim || !(o.share_qkv || o.share_kv || o.share_out)),
      form, ": global_dim other than embed_dim needs share_qkv, share_kv and share_out to be False");
  if (!o.max_distance) return;
  const int64_t labels = 1 + *o.max_distance * (o.ignore_direction ? 1 : 2);
  TORCH_CHECK_VALUE(*o.max_distance >= 0 && o.relative_vocab_size.value_or(0) >= labels, form, ": max_distance ", *o.max_distance, " needs ", labels,
                    " labels, got relative_vocab_size ", o.relative_vocab_size.value_or(0));
}

void check_inputs(const GlobalLocalAttention::Options& o, const ETCInputs& in) {
  const bool l2l = in.l2l_ids.has_value(), l2g = in.l2g_ids.has_value(), g2g = in.g2g_ids.has_value(), g2l = in.g2l_ids.has_value();
  TORCH_CHECK_VALUE(!(l2l || l2g || g2g || g2l) || o.relative_vocab_size, "global_local_attention: ids need the option relative_vocab_size");
  TORCH_CHECK_VALUE(o.max_distance ? !l2l : l2l == l2g, "global_local_attention: ",
                    o.max_distance ? "l2l_ids and the option max_distance exclude each other" : "l2l_ids and l2g_ids go together");
  TORCH_CHECK_VALUE(g2g == g2l, "global_local_attention: g2g_ids and g2l_ids go together");
  for (const auto& [name, x] : {std::pair("l2l_mask", &in.l2l_mask), std::pair("l2l_ids", &in.l2l_ids)}) {
    TORCH_CHECK_VALUE(!*x || extent(**x, 2) == 2 * o.local_radius + 1, "global_local_attention: ", name, " must be [B,N,", 2 * o.local_radius + 1,
                      "], got ", (*x)->sym_sizes());
  }
}

/// Normal, cut off at twice the deviation.
Tensor truncated_normal(at::IntArrayRef shape, double deviation) {
  return layers::uniform(shape, std::erf(std::sqrt(2.0))).erfinv() * (deviation * std::sqrt(2.0));
}

layers::Linear projection(int64_t in, int64_t out) { return {.weight = truncated_normal({out, in}, 0.02), .bias = layers::zeros({out})}; }

}  // namespace

void GlobalLocalAttention::check(const Options& o) { check_etc("global_local_attention", o); }

GlobalLocalAttention::Parameters GlobalLocalAttention::init(const Options& o) {
  const int64_t E = o.embed_dim, F = o.global_dim.value_or(E), A = o.attention_dim.value_or(E);
  Parameters p{.long_query = projection(E, A), .l2l_key = projection(E, A), .l2l_value = projection(E, A), .long_out = projection(A, E)};
  if (!o.share_qkv) {
    p.global_query = projection(F, A);
    p.g2g_key = projection(F, A);
    p.g2g_value = projection(F, A);
    if (!o.share_kv) {
      p.l2g_key = projection(F, A);
      p.l2g_value = projection(F, A);
      p.g2l_key = projection(E, A);
      p.g2l_value = projection(E, A);
    }
  }
  if (!o.share_out) p.global_out = projection(A, F);
  if (o.relative_vocab_size) {
    const int64_t V = *o.relative_vocab_size;
    const auto labels = [&] {
      return ETCLabels{.emb = truncated_normal({V, o.num_heads, A / o.num_heads}, 0.5), .bias = layers::zeros({V, o.num_heads})};
    };
    p.long_relative = labels();
    p.global_relative = labels();
  }
  return p;
}

GlobalLocalAttention::Outputs GlobalLocalAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  check_inputs(o, in);
  const auto heads = [&](const layers::Linear& of, const Tensor& x) { return split_heads(of(x), o.num_heads); };
  const Tensor &x = in.long_input, &g = in.global_input;
  const Size N = extent(x, 1), G = extent(g, 1);

  // A long token: neighbours, then global tokens, in one softmax.
  const Tensor q = heads(p.long_query, x);
  const Tensor k = heads(p.l2l_key, x), v = heads(p.l2l_value, x);
  const auto near = nearby(o, p.long_relative, q, k, v, in);
  const auto l2g_bias = in.l2g_ids ? optional<Tensor>(of_pairs(by_label(q, *p.long_relative), *in.l2g_ids)) : std::nullopt;
  const Tensor l2g_k = heads(p.l2g_key.value_or(p.l2l_key), g), l2g_v = heads(p.l2g_value.value_or(p.l2l_value), g);
  const auto far = ops::attention(q, l2g_k, l2g_v, {.mask = for_heads(in.l2g_mask), .key_mask = in.global_key_mask, .bias = l2g_bias});
  const Tensor long_attended = ops::merge_attention(std::array{near, far}).out;

  // A global token: global tokens and long ones, in one softmax.
  const layers::Linear g2g_key = p.g2g_key.value_or(p.l2l_key), g2g_value = p.g2g_value.value_or(p.l2l_value);
  const bool same = !p.g2l_key && !p.g2g_key;  // one projection for all: long tokens have their keys already
  const Tensor gq = heads(p.global_query.value_or(p.long_query), g);
  const Tensor gk = at::cat({heads(g2g_key, g), same ? k : heads(p.g2l_key.value_or(g2g_key), x)}, 2);
  const Tensor gv = at::cat({heads(g2g_value, g), same ? v : heads(p.g2l_value.value_or(g2g_value), x)}, 2);
  const auto mask = beside(in.g2g_mask, in.g2l_mask, g, G, G, N);
  const auto key_mask = [&]() -> optional<Tensor> {
    const auto row = [](const optional<Tensor>& m) { return m ? optional<Tensor>(m->unsqueeze(1)) : std::nullopt; };
    const auto both = beside(row(in.global_key_mask), row(in.long_key_mask), g, 1, G, N);
    return both ? optional<Tensor>(both->squeeze(1)) : std::nullopt;
  }();
  const auto bias = in.g2g_ids ? optional<Tensor>(of_pairs(by_label(gq, *p.global_relative), at::cat({*in.g2g_ids, *in.g2l_ids}, -1))) : std::nullopt;
  const Tensor global_attended = ops::attention(gq, gk, gv, {.mask = for_heads(mask), .key_mask = key_mask, .bias = bias}).out;
  return {.long_output = p.long_out(merge_heads(long_attended)), .global_output = p.global_out.value_or(p.long_out)(merge_heads(global_attended))};
}

FOVEATE_MECHANISM(GlobalLocalAttention)

// --- layers ------------------------------------------------------------------------------------------------------------------

void GlobalLocalTransformerLayers::check(const Options& o) {
  check_etc("global_local_transformer_layers", o.attention());
  TORCH_CHECK_VALUE(o.num_layers > 0 && o.inner_dim > 0, "global_local_transformer_layers: num_layers and inner_dim must be positive, got ",
                    o.num_layers, " and ", o.inner_dim);
  TORCH_CHECK_VALUE(!o.share_feed_forward_params || o.global_dim.value_or(o.embed_dim) == o.embed_dim,
                    "global_local_transformer_layers: global_dim other than embed_dim needs share_feed_forward_params = False");
}

GlobalLocalTransformerLayers::Parameters GlobalLocalTransformerLayers::shape(const Options& o) {
  return {.layers = std::vector<GlobalLocalLayer>(static_cast<std::size_t>(o.num_layers))};
}

GlobalLocalTransformerLayers::Parameters GlobalLocalTransformerLayers::init(const Options& o) {
  const int64_t E = o.embed_dim, F = o.global_dim.value_or(E);
  const auto network = [&](int64_t width) {
    return layers::FeedForward{.up = projection(width, o.inner_dim), .down = projection(o.inner_dim, width)};
  };
  Parameters p;
  for (int64_t t = 0; t < o.num_layers; ++t) {
    GlobalLocalLayer layer{.attention = GlobalLocalAttention::init(o.attention()),
                           .attention_norm_long = layers::LayerNorm::init(E),
                           .attention_norm_global = layers::LayerNorm::init(F),
                           .feed_forward = network(E),
                           .feed_forward_norm = layers::LayerNorm::init(E)};
    if (!o.share_feed_forward_params) {
      layer.feed_forward_global = network(F);
      layer.feed_forward_norm_global = layers::LayerNorm::init(F);
    }
    p.layers.push_back(std::move(layer));
  }
  return p;
}

GlobalLocalTransformerLayers::Outputs GlobalLocalTransformerLayers::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto attention = o.attention();
  Inputs at = in;
  for (const auto& layer : p.layers) {
    const auto norm = [&](const layers::LayerNorm& n, const Tensor& x) { return n(x, o.layer_norm_eps); };
    const auto before = [&](const layers::LayerNorm& n, const Tensor& x) { return o.pre_activation ? norm(n, x) : x; };
    const auto behind = [&](const layers::LayerNorm& n, const Tensor& x) { return o.pre_activation ? x : norm(n, x); };
    Inputs given = at;
    given.long_input = before(layer.attention_norm_long, at.long_input);
    given.global_input = before(layer.attention_norm_global, at.global_input);
    const auto [a, c] = GlobalLocalAttention::forward(attention, layer.attention, given);
    const auto feed_forward = [&](const layers::FeedForward& network, const layers::LayerNorm& n, const Tensor& x) {
      return behind(n, x + network(before(n, x), layers::Activation::gelu_tanh));
    };
    at.long_input = feed_forward(layer.feed_forward, layer.feed_forward_norm, behind(layer.attention_norm_long, at.long_input + a));
    at.global_input =
        feed_forward(layer.feed_forward_global.value_or(layer.feed_forward), layer.feed_forward_norm_global.value_or(layer.feed_forward_norm),
                     behind(layer.attention_norm_global, at.global_input + c));
  }
  return {.long_output = at.long_input, .global_output = at.global_input};
}

FOVEATE_MECHANISM(GlobalLocalTransformerLayers)

}  // namespace foveate
