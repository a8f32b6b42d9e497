#include <foveate/attention.h>
#include <foveate/cluster_attention.h>
#include <foveate/dropout.h>
#include <foveate/informer.h>
#include <foveate/init.h>
#include <foveate/prob_queries.h>

namespace foveate {
namespace {

/// What the queries get that are not active: the mean of the values, or their running sum.
Tensor lazy(const Tensor& v, const optional<Tensor>& key_mask, bool causal, const Size& N) {
  const Tensor seen = masked_rows(v, key_mask);
  if (causal) return seen.cumsum(2);
  const Tensor sum = seen.sum(2, true);  // [B,H,1,Dv]
  const Tensor count = key_mask ? key_mask->sum(1).clamp_min(1).to(v.scalar_type()).view({-1, 1, 1, 1}) : length_of(v, 2);
  return (sum / count).expand_symint({-1, -1, N, -1});
}

ProbSparseAttention::Outputs attend(const ProbSparseAttention::Options& o, const ProbSparseAttention::Inputs& in) {
  const Size N = extent(in.q, 2), M = extent(in.k, 2);
  TORCH_CHECK_VALUE(!o.causal || N == M, "prob_sparse_attention: causal needs as many keys as queries, got ", M, " and ", N);
  optional<Tensor> seed;
  if (!in.index_sample) seed = ops::draw_seed(in.q);
  const auto [order, place] = ops::prob_queries(in.q, in.k, in.index_sample, seed, o.factor);
  ops::Attention how{.key_mask = in.key_mask, .scale = o.scale, .q_index = order};
  if (o.causal) {  // what stands in line sees the keys up to its own place, which only a mask can say
    how.q_index = order.narrow(2, 0, ops::active_count(o.factor, plain_extent(in.q, 2)));
    how.mask = at::arange(M, order.options()) <= how.q_index->unsqueeze(-1);  // [B,H,u,M]
  }
  const Tensor active = ops::attention(in.q, in.k, in.v, how).out;  // in line
  const Tensor row = place.clamp_min(0).unsqueeze(-1).expand_symint({-1, -1, -1, extent(active, 3)});
  const Tensor out = at::where((place >= 0).unsqueeze(-1), active.gather(2, row), lazy(in.v, in.key_mask, o.causal, N));
  return {.out = out, .active_order = order, .active_place = place};
}

}  // namespace

void ProbSparseAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.factor > 0, "prob_sparse_attention: factor must be positive, got ", o.factor);
}

ProbSparseAttention::Outputs ProbSparseAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  TORCH_CHECK_VALUE(!in.index_sample || extent(*in.index_sample, 0) == extent(in.q, 2),
                    "prob_sparse_attention: index_sample must be [N,U] with N = ", extent(in.q, 2), " queries, got ", in.index_sample->sym_sizes());
  return attend(o, in);
}

FOVEATE_MECHANISM(ProbSparseAttention)

Tensor detail::circular(const layers::Convolution& conv, const Tensor& x) {
  const Tensor around = at::cat({x.narrow_symint(1, extent(x, 1) - 1, 1), x, x.narrow(1, 0, 1)}, 1);
  return conv(around.transpose(1, 2));
}

// --- layers ------------------------------------------------------------------------------------------------------------------

namespace {

/// x [B,N,E] attends to itself; `mix` joins the heads' rows as they lie in memory.
Tensor self_attention(const layers::Heads& p, const Tensor& x, int64_t num_heads, int64_t factor, bool causal, bool mix,
                      const optional<Tensor>& index_sample) {
  const auto [q, k, v] = p.project(x, x, num_heads);
  const Tensor out = attend({.factor = factor, .causal = causal}, {.q = q, .k = k, .v = v, .key_mask = {}, .index_sample = index_sample}).out;
  return p.out(mix ? out.contiguous().reshape_symint(x.sym_sizes()) : merge_heads(out));
}

Tensor network(const auto& o, const layers::Convolution& up, const layers::Convolution& down, const Tensor& x, bool training) {
  const auto map = [](const layers::Convolution& conv, const Tensor& y) { return at::linear(y, conv.weight.squeeze(-1), conv.bias); };
  const Tensor inner = map(up, x), active = o.activation == InformerActivation::relu ? inner.relu() : at::gelu(inner);
  return map(down, layers::dropout(active, o.dropout, std::nullopt, training));
}

/// norm(x + dropout(y))
Tensor added(const auto& o, const layers::LayerNorm& norm, const Tensor& x, const Tensor& y, bool training) {
  return norm(x + layers::dropout(y, o.dropout, std::nullopt, training), o.layer_norm_eps);
}

/// x [B,N,E] -> [B,floor((N-1)/2)+1,E]
Tensor distilled(const InformerEncoder::Options& o, const InformerDistilling& p, const Tensor& x, bool training) {
  const Tensor y = at::elu(p.norm(detail::circular(p.conv, x), training, o.batch_norm_momentum, o.batch_norm_eps));
  return at::max_pool2d(y.unsqueeze(2), {1, 3}, {1, 2}, {0, 1}).squeeze(2).transpose(1, 2);  // max_pool1d refuses symbolic lengths
}

layers::Heads projections(const auto& o) { return layers::Heads::init({.width = o.d_model}); }

layers::Convolution pointwise(int64_t in, int64_t out) {
  const std::vector<int64_t> one{1};
  return layers::Convolution::init(in, out, one);
}

void check_layer(const char* form, const auto& o) {
  layers::check_heads(form, o.d_model, o.num_heads);
  layers::check_dropout(form, "dropout", o.dropout);
  TORCH_CHECK_VALUE(o.factor > 0 && o.d_ff > 0, form, ": factor and d_ff must be positive, got ", o.factor, " and ", o.d_ff);
}

}  // namespace

// --- the encoder -------------------------------------------------------------------------------------------------------------

void InformerEncoder::check(const Options& o) {
  check_layer("informer_encoder", o);
  TORCH_CHECK_VALUE(o.num_layers > 0, "informer_encoder: num_layers must be positive, got ", o.num_layers);
}

InformerEncoder::Parameters InformerEncoder::shape(const Options& o) {
  Parameters p;
  p.layers.resize(static_cast<std::size_t>(o.num_layers));
  if (o.distil) p.distilling.resize(p.layers.size() - 1);
  return p;
}

InformerEncoder::Parameters InformerEncoder::init(const Options& o) {
  const int64_t E = o.d_model;
  Parameters p = shape(o);
  for (auto& layer : p.layers) {
    layer = {.attention = projections(o),
             .up = pointwise(E, o.d_ff),
             .down = pointwise(o.d_ff, E),
             .norm1 = layers::LayerNorm::init(E),
             .norm2 = layers::LayerNorm::init(E)};
  }
  const std::vector<int64_t> taps{3};
  for (auto& between : p.distilling) between = {.conv = layers::Convolution::init(E, E, taps), .norm = layers::BatchNorm::init(E)};
  p.norm = layers::LayerNorm::init(E);
  return p;
}

Tensor InformerEncoder::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  Tensor x = in.x;
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    const InformerEncoderLayer& layer = p.layers[l];
    optional<Tensor> sample;
    if (in.index_sample) sample = in.index_sample->select(0, static_cast<int64_t>(l)).narrow_symint(0, 0, extent(x, 1));
    x = added(o, layer.norm1, x, self_attention(layer.attention, x, o.num_heads, o.factor, false, false, sample), training);
    x = added(o, layer.norm2, x, network(o, layer.up, layer.down, x, training), training);
    if (l < p.distilling.size()) x = distilled(o, p.distilling[l], x, training);
  }
  return p.norm(x, o.layer_norm_eps);
}

FOVEATE_MECHANISM(InformerEncoder)

// --- several encoders --------------------------------------------------------------------------------------------------------

InformerEncoder::Options InformerStack::Options::encoder(std::size_t which) const {
  return {.d_model = d_model,
          .num_heads = num_heads,
          .d_ff = d_ff,
          .num_layers = num_layers[which],
          .factor = factor,
          .distil = distil,
          .activation = activation,
          .dropout = dropout,
          .layer_norm_eps = layer_norm_eps,
          .batch_norm_eps = batch_norm_eps,
          .batch_norm_momentum = batch_norm_momentum};
}

void InformerStack::check(const Options& o) {
  TORCH_CHECK_VALUE(!o.num_layers.empty(), "informer_stack: num_layers must name an encoder");
  for (std::size_t i = 0; i < o.num_layers.size(); ++i) InformerEncoder::check(o.encoder(i));
}

InformerStack::Parameters InformerStack::shape(const Options& o) {
  Parameters p;
  for (std::size_t i = 0; i < o.num_layers.size(); ++i) p.encoders.push_back(InformerEncoder::shape(o.encoder(i)));
  return p;
}

InformerStack::Parameters InformerStack::init(const Options& o) {
  Parameters p;
  for (std::size_t i = 0; i < o.num_layers.size(); ++i) p.encoders.push_back(InformerEncoder::init(o.encoder(i)));
  return p;
}

Tensor InformerStack::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  std::vector<Tensor> encoded;
  const Size N = extent(in.x, 1);
  int64_t first = 0;  // layer
  for (std::size_t i = 0; i < p.encoders.size(); ++i) {
    const Size length = N / (int64_t{1} << i);
    const Tensor latest = in.x.narrow_symint(1, N - length, length);
    const auto sample = in.index_sample ? optional(in.index_sample->narrow(0, first, o.num_layers[i])) : std::nullopt;
    encoded.push_back(InformerEncoder::forward(o.encoder(i), p.encoders[i], {.x = latest, .index_sample = sample}, training));
    first += o.num_layers[i];
  }
  return at::cat(encoded, 1);
}

FOVEATE_MECHANISM(InformerStack)

// --- the decoder's layer -----------------------------------------------------------------------------------------------------

void InformerDecoderLayer::check(const Options& o) { check_layer("informer_decoder_layer", o); }

InformerDecoderLayer::Parameters InformerDecoderLayer::init(const Options& o) {
  const int64_t E = o.d_model;
  return {.self_attention = projections(o),
          .cross_attention = projections(o),
          .up = pointwise(E, o.d_ff),
          .down = pointwise(o.d_ff, E),
          .norm1 = layers::LayerNorm::init(E),
          .norm2 = layers::LayerNorm::init(E),
          .norm3 = layers::LayerNorm::init(E)};
}

Tensor InformerDecoderLayer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor own = self_attention(p.self_attention, in.x, o.num_heads, o.factor, true, o.mix, in.index_sample);
  const Tensor x = added(o, p.norm1, in.x, own, training);
  const auto [q, k, v] = p.cross_attention.project(x, in.cross, o.num_heads);
  const Tensor y = added(o, p.norm2, x, p.cross_attention.join(ops::attention(q, k, v).out), training);
  return added(o, p.norm3, y, network(o, p.up, p.down, y, training), training);
}

FOVEATE_MECHANISM(InformerDecoderLayer)

}  // namespace foveate
