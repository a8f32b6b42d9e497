#include <foveate/attention.h>
#include <foveate/compressive_transformer.h>
#include <foveate/init.h>
#include <foveate/xl.h>

namespace foveate {

namespace detail {

Tensor padded_to_slots(const Tensor& x, int64_t c) {
  const Size n = extent(x, 1), ahead = (n + (c - 1)) / c * c - n;
  std::vector<Size> pads(2 * static_cast<std::size_t>(x.dim() - 1), Size(0));
  pads[pads.size() - 2] = ahead;
  return at::constant_pad_nd_symint(x, pads);
}

}  // namespace detail

namespace {

using Layer = CompressiveTransformerLayer;
using Package = CompressiveAttention;

/// The ceil(n / c) vectors that were used most, in their order; of equals the earlier.
Tensor most_used(const Tensor& rows, int64_t c, const Tensor& usage) {
  const Tensor order = at::argsort(usage.detach(), /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const Tensor kept = std::get<0>(order.narrow_symint(1, 0, (extent(rows, 1) + (c - 1)) / c).sort(1));
  return rows.gather(1, kept.unsqueeze(-1).expand_symint({-1, -1, extent(rows, 2)}));
}

/// rows [B,n,E] -> [B,ceil(n/c),E]
Tensor compress(const auto& o, const Compressor& p, const Tensor& rows, const optional<Tensor>& usage, const optional<Size>& ahead = {}) {
  if (o.compression == CompressionKind::most_used) {
    TORCH_CHECK_VALUE(usage, "memory_compression: usage is needed by most_used");
    return most_used(rows, o.ratio, *usage);
  }
  Tensor x = ahead ? at::constant_pad_nd_symint(rows, {0, 0, *ahead, 0}) : detail::padded_to_slots(rows, o.ratio);
  const bool empty = extent(x, 1).maybe_as_int() == 0;  // nothing leaves yet: torch's convolutions refuse a sequence without tokens
  for (std::size_t i = 0; i < p.dilated.size() && !empty; ++i) {
    const layers::Convolution::Steps steps{.padding = o.dilations[i], .dilation = o.dilations[i]};
    x = p.dilated[i](x.transpose(1, 2), steps).relu().transpose(1, 2);
  }
  if (o.compression == CompressionKind::mean) return ops::whole_slots(x, o.ratio).mean(2);
  if (o.compression == CompressionKind::max) return ops::whole_slots(x, o.ratio).amax(2);
  TORCH_CHECK_VALUE(p.conv, "memory_compression: conv is needed by conv and dilated");
  return layers::convolve_slots(*p.conv, x);
}

Compressor compressor_shape(const auto& o) {
  Compressor p;
  const bool convolves = o.compression == CompressionKind::conv || o.compression == CompressionKind::dilated;
  if (convolves) p.conv = layers::Convolution{};
  if (o.compression == CompressionKind::dilated) p.dilated.resize(o.dilations.size());
  return p;
}

Compressor compressor(const auto& o) {
  Compressor p = compressor_shape(o);
  const std::vector<int64_t> slot{o.ratio}, taps{3};
  if (p.conv) p.conv = layers::Convolution::init(o.embed_dim, o.embed_dim, slot);
  for (auto& conv : p.dilated) conv = layers::Convolution::init(o.embed_dim, o.embed_dim, taps);
  return p;
}

void check_compression(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.embed_dim > 0 && o.ratio > 0, form, ": embed_dim and ratio must be positive, got ", o.embed_dim, " and ", o.ratio);
  for (const int64_t d : o.dilations) TORCH_CHECK_VALUE(d > 0, form, ": dilations must be positive, got ", d);
}

void check_lengths(const char* form, int64_t mem_len, const optional<int64_t>& cmem_len) {
  TORCH_CHECK_VALUE(mem_len >= 0 && cmem_len.value_or(0) >= 0, form, ": mem_len and cmem_len must not be negative, got ", mem_len, " and ",
                    cmem_len.value_or(0));
}

// --- memories ----------------------------------------------------------------------------------------------------------------

Tensor or_empty(const optional<Tensor>& memory, const Tensor& x) { return memory.value_or(x.narrow(1, 0, 0)); }

Tensor latest(const Tensor& x, int64_t count) {
  const Size n = extent(x, 1), kept = n.min(count);
  return x.narrow_symint(1, n - kept, kept);
}

/// [m; x] and how many of its first vectors leave the memory.
struct Leaving {
  Tensor all;
  Size count;
  Tensor rows() const { return all.narrow_symint(1, 0, count); }
};

Leaving leaving(const Tensor& memory, const Tensor& x, int64_t mem_len) {
  const Tensor all = at::cat({memory, x}, 1).detach();
  return {.all = all, .count = (extent(all, 1) - mem_len).max(0)};
}

/// The mean of squares of the difference; 0 where there is none.
Tensor distance(const Tensor& a, const Tensor& b) {
  const Tensor squares = (a - b).square();
  return squares.sum() / at::ones_like(squares).sum().clamp_min(1);
}

/// How well the decoder gives back the rows [B,n,E], zeros before them included, from the compressed [B,K,E].
Tensor autoencoding_loss(const Tensor& weight, const Tensor& bias, const Tensor& rows, const Tensor& compressed) {
  const int64_t c = weight.size(0);
  const Tensor decoded = layers::map_slots(weight.flatten(0, 1), compressed) + bias.flatten();  // [B,K,c E]
  return distance(ops::whole_slots(detail::padded_to_slots(rows, c), c).flatten(2), decoded);
}

void add_decoder(auto& p, const auto& o) {
  if (o.loss != CompressionLoss::autoencoding) return;
  const layers::Linear made = layers::Linear::init(o.embed_dim, o.ratio * o.embed_dim);
  p.decoder_weight = made.weight.view({o.ratio, o.embed_dim, o.embed_dim});
  p.decoder_bias = made.bias->view({o.ratio, o.embed_dim});
}

void shape_decoder(auto& p, const auto& o) {
  if (o.loss != CompressionLoss::autoencoding) return;
  p.decoder_weight = Tensor();
  p.decoder_bias = Tensor();
}

/// Attention by content alone, with projections [width,E] that it does not train.
struct Content {
  Tensor query, key, value;
  int64_t heads;
  layers::WeightDropout weights = {};
  Tensor read(const Tensor& x, const Tensor& rows, int64_t part) const {
    const auto map = [&](const Tensor& w, const Tensor& y) { return split_heads(layers::map_slots(w.detach(), y), heads); };
    return ops::attention(map(query, x.detach()), map(key, rows), map(value, rows), weights.with({}, part)).out;
  }
};

Tensor compression_loss(const auto& o, const auto& p, const Content& content, const Tensor& x, const Tensor& rows, const Tensor& target,
                        const Tensor& compressed) {
  if (o.loss == CompressionLoss::none) return x.new_zeros({});
  if (o.loss == CompressionLoss::attention) return distance(content.read(x, target.detach(), 0), content.read(x, compressed, 1));
  TORCH_CHECK_VALUE(p.decoder_weight && p.decoder_bias, "compressive_transformer: decoder_weight and decoder_bias are needed by autoencoding");
  return autoencoding_loss(*p.decoder_weight, *p.decoder_bias, rows, compressed);
}

/// The attention that the `count` keys behind `before` others receive, a mean over heads and queries: read off with the columns of the
/// identity as values.
Tensor received(const Tensor& q, const Tensor& k, const Size& before, const Size& count, const auto& attend) {
  const Tensor columns = at::eye_symint(extent(k, 2), k.options()).narrow_symint(1, before, count);
  const Tensor weights = attend(q.detach(), k.detach(), columns.expand_symint({extent(k, 0), extent(k, 1), -1, -1}));  // [B,H,N,count]
  return weights.mean(at::IntArrayRef{1, 2}).detach();
}

}  // namespace

// --- compression alone -------------------------------------------------------------------------------------------------------

void MemoryCompression::check(const Options& o) { check_compression("memory_compression", o); }
Compressor MemoryCompression::shape(const Options& o) { return compressor_shape(o); }
Compressor MemoryCompression::init(const Options& o) { return compressor(o); }

Tensor MemoryCompression::forward(const Options& o, const Parameters& p, const Inputs& in) {
  TORCH_CHECK_VALUE(extent(in.memory, 2) == o.embed_dim, "memory_compression: memory must have embed_dim = ", o.embed_dim, " features, got ",
                    in.memory.sym_sizes());
  return compress(o, p, in.memory, in.usage);
}

FOVEATE_MECHANISM(MemoryCompression)

// --- the paper's layer -------------------------------------------------------------------------------------------------------

namespace {

TransformerXLLayer::Options xl_options(const Layer::Options& o) {
  return {.embed_dim = o.embed_dim,
          .num_heads = o.num_heads,
          .head_dim = o.head_dim,
          .inner_dim = o.inner_dim,
          .mem_len = o.mem_len,
          .dropout = o.dropout,
          .attention_dropout = o.attention_dropout};
}

/// What each vector of [cm; m; x] that leaves the memory received.
Tensor usage_in_layer(const Layer::Options& o, const Layer::Parameters& p, const Tensor& x, const Tensor& context, const Size& before,
                      const Size& count, const optional<Tensor>& key_mask) {
  const int64_t inner = o.num_heads * o.head_dim;
  const auto map = [&](int64_t which, const Tensor& y) {
    return split_heads(at::linear(y, p.block.qkv.weight.narrow(0, which * inner, inner)), o.num_heads);
  };
  const Tensor table = xl_sinusoids(xl_options(o), extent(context, 1), x);
  const Tensor r = (*p.block.relative)(table).unflatten(-1, {o.num_heads, -1}).transpose(0, 1).detach();
  return received(map(0, x), map(1, context), before, count, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    return TransformerXLAttention::forward({.num_heads = o.num_heads, .head_dim = o.head_dim},
                                           {.content_bias = p.bias.content->detach(), .position_bias = p.bias.position->detach()},
                                           {.q = q, .k = k, .v = v, .r = r, .key_mask = key_mask});
  });
}

}  // namespace

void CompressiveTransformerLayer::check(const Options& o) {
  check_compression("compressive_transformer_layer", o);
  check_lengths("compressive_transformer_layer", o.mem_len, o.cmem_len);
  TransformerXLLayer::check(xl_options(o));
}

Layer::Parameters CompressiveTransformerLayer::shape(const Options& o) {
  Parameters p{.compressor = compressor_shape(o)};
  p.block.relative = layers::Linear{};
  p.bias = {.content = Tensor(), .position = Tensor()};
  shape_decoder(p, o);
  return p;
}

Layer::Parameters CompressiveTransformerLayer::init(const Options& o) {
  Parameters p{.block = init_xl_block(xl_options(o)), .bias = init_xl_bias(xl_options(o)), .compressor = compressor(o)};
  add_decoder(p, o);
  return p;
}

Layer::Outputs CompressiveTransformerLayer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor m = or_empty(in.memory, in.x), cm = or_empty(in.compressed, in.x), before = at::cat({cm, m}, 1);
  const Tensor out = TransformerXLLayer::forward(xl_options(o), {.block = p.block, .bias = p.bias},
                                                 {.x = in.x, .memory = before, .key_mask = in.key_mask}, training);

  const Leaving old = leaving(m, in.x, o.mem_len);
  const Tensor rows = old.rows();
  optional<Tensor> usage;
  if (o.compression == CompressionKind::most_used) {
    usage = usage_in_layer(o, p, in.x, at::cat({before, in.x}, 1), extent(cm, 1), old.count, in.key_mask);
  }
  const Tensor fresh = compress(o, p.compressor, rows, usage);
  const auto w = p.block.qkv.weight.chunk(3);
  const Tensor loss = compression_loss(o, p, {.query = w[0], .key = w[1], .value = w[2], .heads = o.num_heads}, in.x, rows, rows, fresh);
  const Tensor kept = at::cat({cm, fresh}, 1).detach();
  return {
      .out = out, .new_memory = latest(old.all, o.mem_len), .new_compressed = latest(kept, o.cmem_len.value_or(o.mem_len / o.ratio)), .loss = loss};
}

FOVEATE_MECHANISM(CompressiveTransformerLayer)

// --- the package's attention -------------------------------------------------------------------------------------------------

namespace {

int64_t memory_length(const Package::Options& o) { return o.mem_len.value_or(o.seq_len); }
int64_t compressed_length(const Package::Options& o) { return o.cmem_len.value_or(memory_length(o) / o.ratio); }

Tensor attend(const Package::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& positions, const optional<Tensor>& seen,
              const optional<Tensor>& mask, bool training) {
  const layers::WeightDropout weights(o.attention_dropout, {}, training, q);
  ops::ScoreBias by_distance{.rows = positions, .origin = extent(positions, 1) - 1};
  return ops::attention(q, k, v, weights.with({.key_mask = seen, .causal = true, .position = by_distance, .query_mask = mask})).out;
}

}  // namespace

Package::Outputs detail::compressive_attention(const Package::Options& o, const Package::Parameters& p, const Package::Inputs& in,
                                               const Tensor& positions, bool remembers, const optional<Tensor>& seen, bool training) {
  const Tensor m = or_empty(in.memory, in.x), cm = or_empty(in.compressed, in.x), context = at::cat({cm, m, in.x}, 1);
  const Tensor q = split_heads(p.query(in.x), o.num_heads), k = split_heads(p.key(context), o.num_heads),
               v = split_heads(p.value(context), o.num_heads);
  const Tensor read = p.out(merge_heads(attend(o, q, k, v, positions, seen, in.mask, training)));
  const Tensor out = layers::dropout(read, o.dropout, std::nullopt, training);
  if (!remembers || extent(in.x, 1) < o.seq_len) return {.out = out, .new_memory = m, .new_compressed = cm, .loss = in.x.new_zeros({})};

  const Leaving old = leaving(m, in.x, memory_length(o));
  const Tensor rows = old.rows();
  optional<Tensor> usage;
  if (o.compression == CompressionKind::most_used) {
    usage = received(q, k, extent(cm, 1), old.count,
                     [&](const Tensor& a, const Tensor& b, const Tensor& c) { return attend(o, a, b, c, positions.detach(), seen, in.mask, false); });
  }
  const optional<Size> ahead = o.as_package ? optional<Size>(old.count % o.ratio) : std::nullopt;
  const Tensor fresh = compress(o, p.compressor, rows, usage, ahead);
  const Content content{.query = p.query.weight,
                        .key = p.key.weight,
                        .value = p.value.weight,
                        .heads = o.num_heads,
                        .weights = layers::WeightDropout(o.reconstruction_dropout, {}, training && o.loss == CompressionLoss::attention, in.x)};
  const Tensor loss = compression_loss(o, p, content, in.x, rows, o.as_package ? m : rows, fresh);
  const Tensor kept = at::cat({cm, fresh}, 1).detach();
  return {.out = out, .new_memory = latest(old.all, memory_length(o)), .new_compressed = latest(kept, compressed_length(o)), .loss = loss};
}

void CompressiveAttention::check(const Options& o) {
  layers::check_heads("compressive_attention", o.embed_dim, o.num_heads);
  check_compression("compressive_attention", o);
  check_lengths("compressive_attention", memory_length(o), o.cmem_len);
  TORCH_CHECK_VALUE(o.seq_len > 0 && memory_length(o) >= o.seq_len, "compressive_attention: seq_len must be positive, and mem_len no less; got ",
                    o.seq_len, " and ", memory_length(o));
  layers::check_dropout("compressive_attention", "dropout", o.dropout);
  layers::check_dropout("compressive_attention", "attention_dropout", o.attention_dropout);
  layers::check_dropout("compressive_attention", "reconstruction_dropout", o.reconstruction_dropout);
}

Package::Parameters CompressiveAttention::shape(const Options& o) {
  Parameters p{.compressor = compressor_shape(o)};
  p.out.bias = Tensor();
  shape_decoder(p, o);
  return p;
}

Package::Parameters CompressiveAttention::init(const Options& o) {
  const int64_t E = o.embed_dim, rows = o.seq_len + memory_length(o) + compressed_length(o);
  Parameters p{.query = layers::Linear::init(E, E, false),
               .key = layers::Linear::init(E, E, false),
               .value = layers::Linear::init(E, E, false),
               .out = layers::Linear::init(E, E),
               .positions = layers::zeros({o.num_heads, rows, E / o.num_heads}),
               .compressor = compressor(o)};
  add_decoder(p, o);
  return p;
}

Package::Outputs CompressiveAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor before = at::cat({or_empty(in.compressed, in.x), or_empty(in.memory, in.x)}, 1);
  optional<Tensor> seen;
  if (in.mask) seen = at::cat({at::ones_symint({extent(in.x, 0), extent(before, 1)}, in.mask->options()), *in.mask}, 1);
  return detail::compressive_attention(o, p, in, p.positions, true, seen, training);
}

FOVEATE_MECHANISM(CompressiveAttention)

}  // namespace foveate
