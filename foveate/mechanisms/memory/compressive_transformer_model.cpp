#include <foveate/compressive_transformer_model.h>
#include <foveate/init.h>

#include <algorithm>
#include <numeric>

namespace foveate {
namespace {

using Model = CompressiveTransformer;

Tensor network(const Model::Options& o, const layers::FeedForward& p, const Tensor& x, bool training) {
  const Tensor inner = p.up(x);
  const Tensor active = o.ff_glu ? at::gelu(inner.chunk(2, -1)[0]) * inner.chunk(2, -1)[1] : at::gelu(inner);
  return p.down(layers::dropout(active, o.ff_dropout, std::nullopt, training));
}

Tensor updated(const optional<layers::GRU>& gate, const optional<Mogrifier>& mogrifier, Tensor y, Tensor x) {
  if (!gate) return x + y;
  if (mogrifier) (*mogrifier)(y, x);
  return (*gate)(y, x);
}

int64_t mem_len(const Model::Options& o) { return o.mem_len.value_or(o.seq_len); }
int64_t cmem_len(const Model::Options& o) { return o.cmem_len.value_or(mem_len(o) / o.ratio); }

/// Memory and compressed memory of every layer that has them, for a batch that begins.
Model::State fresh(const Model::Options& o, const Tensor& x) {
  const Size B = extent(x, 0);
  const int64_t m = o.zero_memory ? mem_len(o) : 0, cm = o.zero_memory ? cmem_len(o) : 0;
  const auto seen = x.options().dtype(at::kBool);
  Model::State state{.seen = at::ones_symint({B, m}, seen), .seen_compressed = at::ones_symint({B, cm}, seen), .memories = {}};
  for (std::size_t i = 0; i < o.remembering().size(); ++i) {
    state.memories.push_back(x.new_zeros_symint({B, m, o.embed_dim}));
    state.memories.push_back(x.new_zeros_symint({B, cm, o.embed_dim}));
  }
  return state;
}

/// Whether the vectors of new memories belong to the sequence, as the memories themselves move.
void move_on(const Model::Options& o, Model::State& state, const Size& n) {
  if (n < o.seq_len) return;
  const Tensor all = at::cat({state.seen, at::ones_symint({extent(state.seen, 0), n}, state.seen.options())}, 1);
  const Size length = extent(all, 1), leaving = (length - mem_len(o)).max(0);
  Tensor slots = all.narrow_symint(1, 0, leaving);
  slots = ops::whole_slots(detail::padded_to_slots(slots, o.ratio), o.ratio).any(2);
  const Tensor compressed = at::cat({state.seen_compressed, slots}, 1);
  const Size kept = extent(compressed, 1).min(cmem_len(o));
  state.seen = all.narrow_symint(1, leaving, length - leaving);
  state.seen_compressed = compressed.narrow_symint(1, extent(compressed, 1) - kept, kept);
}

}  // namespace

Mogrifier Mogrifier::init(int64_t width) {
  return {.output_scale = layers::FeedForward::init(width, width / 4), .stream_scale = layers::FeedForward::init(width, width / 4)};
}

void Mogrifier::operator()(Tensor& y, Tensor& h) const {
  constexpr int rounds = 5;  // of the Mogrifier LSTM, and of the package
  const auto scale = [](const layers::FeedForward& map, const Tensor& x) { return 2 * map.down(map.up(x)).sigmoid(); };
  for (int i = 0; i < rounds; ++i) {
    if (i % 2 == 0) y = scale(output_scale, h) * y;
    else h = scale(stream_scale, y) * h;
  }
}

std::vector<std::size_t> Model::Options::remembering() const {
  std::vector<std::size_t> found;
  for (int64_t layer = 1; layer <= depth; ++layer) {
    const bool named = std::find(memory_layers.begin(), memory_layers.end(), layer) != memory_layers.end();
    if (memory_layers.empty() || named) found.push_back(static_cast<std::size_t>(layer - 1));
  }
  return found;
}

CompressiveAttention::Options Model::Options::attention() const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .seq_len = seq_len,
          .mem_len = mem_len,
          .cmem_len = cmem_len,
          .ratio = ratio,
          .compression = compression,
          .dilations = dilations,
          .loss = loss,
          .as_package = as_package,
          .attention_dropout = attention_dropout,
          .dropout = dropout,
          .reconstruction_dropout = reconstruction_dropout};
}

void CompressiveTransformer::check(const Options& o) {
  CompressiveAttention::check(o.attention());
  TORCH_CHECK_VALUE(o.vocab_size > 0 && o.depth > 0, "compressive_transformer: vocab_size and depth must be positive, got ", o.vocab_size, " and ",
                    o.depth);
  for (const int64_t layer : o.memory_layers) {
    TORCH_CHECK_VALUE(layer >= 1 && layer <= o.depth, "compressive_transformer: memory_layers must be numbers from 1 to depth = ", o.depth, ", got ",
                      layer);
  }
  TORCH_CHECK_VALUE(!o.mogrify || (o.gru_gated && o.embed_dim >= 4),
                    "compressive_transformer: mogrify needs gru_gated, and embed_dim of 4 or more, got ", o.embed_dim);
  layers::check_dropout("compressive_transformer", "ff_dropout", o.ff_dropout);
}

Model::Parameters CompressiveTransformer::shape(const Options& o) {
  Parameters p;
  p.layers.resize(static_cast<std::size_t>(o.depth));
  const auto attention = CompressiveAttention::shape(o.attention());
  for (auto& layer : p.layers) {
    layer.out.bias = Tensor();
    layer.compressor = attention.compressor;
    layer.decoder_weight = attention.decoder_weight;
    layer.decoder_bias = attention.decoder_bias;
    if (o.gru_gated) layer.attention_gate = layer.network_gate = layers::GRU{};
    if (o.mogrify) layer.attention_mogrifier = layer.network_mogrifier = Mogrifier{};
  }
  if (o.emb_dim && *o.emb_dim != o.embed_dim) p.widen = p.narrow = layers::Linear{};
  return p;
}

Model::Parameters CompressiveTransformer::init(const Options& o) {
  const int64_t E = o.embed_dim, width = o.emb_dim.value_or(E);
  Parameters p = shape(o);
  p.embedding = layers::normal({o.vocab_size, width}, 1);
  for (auto& layer : p.layers) {
    auto made = CompressiveAttention::init(o.attention());
    layer = {.attention_norm = layers::LayerNorm::init(E),
             .query = made.query,
             .key = made.key,
             .value = made.value,
             .out = made.out,
             .compressor = made.compressor,
             .decoder_weight = made.decoder_weight,
             .decoder_bias = made.decoder_bias,
             .attention_gate = {},
             .attention_mogrifier = {},
             .network_norm = layers::LayerNorm::init(E),
             .network = {.up = layers::Linear::init(E, (o.ff_glu ? 8 : 4) * E), .down = layers::Linear::init(4 * E, E)},
             .network_gate = {},
             .network_mogrifier = {}};
    if (o.gru_gated) {
      layer.attention_gate = layers::GRU::init(E);
      layer.network_gate = layers::GRU::init(E);
    }
    if (o.mogrify) {
      layer.attention_mogrifier = Mogrifier::init(E);
      layer.network_mogrifier = Mogrifier::init(E);
    }
    p.positions = made.positions;
  }
  if (p.widen) {
    p.widen = layers::Linear::init(width, E);
    p.narrow = layers::Linear::init(E, width);
  }
  p.head = layers::Linear::init(width, o.vocab_size);
  return p;
}

namespace {

/// No more than seq_len tokens.
std::pair<Model::Outputs, Model::State> segment(const Model::Options& o, const Model::Parameters& p, const Model::Inputs& in, Model::State&& past,
                                                bool training) {
  Tensor x = at::embedding(p.embedding, in.ids);
  if (p.widen) x = (*p.widen)(x);
  const auto slots = o.remembering();
  Model::State state = past.seen.defined() ? std::move(past) : fresh(o, x);
  TORCH_CHECK_VALUE(state.memories.size() == 2 * slots.size(), "compressive_transformer_step: state must hold `seen`, `seen_compressed` and ",
                    2 * slots.size(), " memories, got ", state.memories.size());
  if (in.reset) {
    const Tensor goes_on = in.reset->logical_not().unsqueeze(1);
    state.seen = state.seen & goes_on;
    state.seen_compressed = state.seen_compressed & goes_on;
  }
  if (o.enhanced_recurrence && slots.size() > 1) std::rotate(state.memories.begin(), state.memories.begin() + 2, state.memories.end());

  const Size n = extent(x, 1), remembered = extent(state.seen, 1) + extent(state.seen_compressed, 1);
  const Tensor here = in.mask.value_or(at::ones_symint({extent(x, 0), n}, state.seen.options()));
  const Tensor seen = at::cat({state.seen_compressed, state.seen, here}, 1);
  // Distance 0 stands at one place of the table for all layers, with memory or without.
  const Size end = !o.as_package ? extent(p.positions, 1) : slots.empty() ? Size(o.seq_len) : o.seq_len + remembered;
  Tensor loss = x.new_zeros({});
  std::size_t slot = 0;
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    const CompressiveLayer& layer = p.layers[l];
    const bool remembers = slot < slots.size() && slots[slot] == l;
    const CompressiveAttention::Parameters own{.query = layer.query,
                                               .key = layer.key,
                                               .value = layer.value,
                                               .out = layer.out,
                                               .positions = p.positions,
                                               .compressor = layer.compressor,
                                               .decoder_weight = layer.decoder_weight,
                                               .decoder_bias = layer.decoder_bias};
    CompressiveAttention::Inputs given{.x = layer.attention_norm(x), .memory = {}, .compressed = {}, .mask = in.mask};
    if (remembers) {
      const auto cleared = [](const Tensor& memory, const Tensor& kept) { return memory * kept.unsqueeze(-1).to(memory.scalar_type()); };
      given.memory = in.reset ? cleared(state.memories[2 * slot], state.seen) : state.memories[2 * slot];
      given.compressed = in.reset ? cleared(state.memories[2 * slot + 1], state.seen_compressed) : state.memories[2 * slot + 1];
    }
    const Size M = remembers ? remembered + n : n;
    const Tensor positions = p.positions.narrow_symint(1, end - M, M);
    auto options = o.attention();
    if (!training) options.loss = CompressionLoss::none;
    const auto read = detail::compressive_attention(options, own, given, positions, remembers, remembers ? seen : here, training);
    if (remembers) {
      loss = loss + read.loss;
      state.memories[2 * slot] = read.new_memory;
      state.memories[2 * slot + 1] = read.new_compressed;
      ++slot;
    }
    x = updated(layer.attention_gate, layer.attention_mogrifier, read.out, x);
    x = updated(layer.network_gate, layer.network_mogrifier, network(o, layer.network, layer.network_norm(x), training), x);
  }
  move_on(o, state, n);
  if (p.narrow) x = (*p.narrow)(x);
  loss = loss * (o.reconstruction_loss_weight / (o.sum_losses ? 1 : static_cast<double>(std::max<std::size_t>(slots.size(), 1))));
  return {Model::Outputs{.logits = p.head(x), .loss = loss}, std::move(state)};
}

}  // namespace

std::pair<Model::Outputs, Model::State> CompressiveTransformer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past,
                                                                     bool training) {
  const int64_t N = plain_extent(in.ids, 1);
  std::vector<Tensor> logits, losses;
  State state = std::move(past);
  for (int64_t start = 0; start < N || start == 0; start += o.seq_len) {
    const int64_t n = std::min(o.seq_len, N - start);
    const Inputs part{.ids = in.ids.narrow(1, start, n),
                      .mask = in.mask ? optional(in.mask->narrow(1, start, n)) : std::nullopt,
                      .reset = start == 0 ? in.reset : std::nullopt};
    auto [out, next] = segment(o, p, part, std::move(state), training);
    logits.push_back(out.logits);
    losses.push_back(out.loss);
    state = std::move(next);
  }
  return {Outputs{.logits = at::cat(logits, 1), .loss = at::stack(losses).mean()}, std::move(state)};
}

Model::Outputs CompressiveTransformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return step(o, p, in, {}, training).first;
}

FOVEATE_MECHANISM(CompressiveTransformer)

}  // namespace foveate
