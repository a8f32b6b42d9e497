#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/transformer_xl_model.h>

namespace foveate {
namespace {

TransformerXLLayer::Options layer_options(const TransformerXL::Options& o) {
  return {.embed_dim = o.embed_dim,
          .num_heads = o.num_heads,
          .head_dim = o.head_dim,
          .inner_dim = o.inner_dim,
          .mem_len = o.mem_len,
          .same_length = o.same_length,
          .clamp_len = o.clamp_len,
          .pre_norm = o.pre_norm,
          .position = o.position,
          .table_length = o.table_length,
          .dropout = o.dropout,
          .attention_dropout = o.attention_dropout};
}

/// Learned positions have a bias u in every layer, absolute ones none.
std::size_t bias_count(const TransformerXL::Options& o) {
  if (o.position == XLPosition::absolute || o.position == XLPosition::absolute_learned) return 0;
  return o.untie_bias || o.position == XLPosition::learned ? static_cast<std::size_t>(o.num_layers) : 1;
}

/// What each layer is given, and the result of the last: num_layers + 1 times [B,N,E]. `memories` is empty or has one [B,m,E] for each layer.
std::vector<Tensor> hidden_states(const TransformerXL::Options& o, const TransformerXL::Parameters& p, const Tensor& ids,
                                  const std::vector<Tensor>& memories, const optional<Tensor>& key_mask, bool training) {
  const auto dropped = [&](const Tensor& x) { return layers::dropout(x, o.dropout, std::nullopt, training); };
  std::vector<Tensor> hidden{dropped(at::embedding(p.embedding, ids) * std::sqrt(static_cast<double>(o.embed_dim)))};
  const auto options = layer_options(o);
  const Size N = extent(ids, 1), M = memories.empty() ? N : N + extent(memories[0], 1);
  optional<Tensor> keep;  // one draw for the sinusoids of all layers
  if (o.position == XLPosition::sinusoid) keep = layers::keep({M, o.embed_dim}, o.dropout, std::nullopt, training, ids.device());
  for (std::size_t l = 0; l < p.layers.size(); ++l) {
    TransformerXLLayer::Inputs in{.x = hidden.back(), .key_mask = key_mask, .position_keep = keep};
    if (!memories.empty()) in.memory = memories[l];
    if (o.position == XLPosition::absolute && l == 0) {  // what memory keeps of the embeddings has no position yet
      const Tensor table = dropped(xl_sinusoids(options, M, in.x));
      in.x = in.x + table.narrow_symint(0, M - N, N);
      if (in.memory) in.memory = *in.memory + table.narrow_symint(0, 0, M - N);
    }
    const auto bias = p.biases.empty() ? XLBias{} : p.biases[std::min(l, p.biases.size() - 1)];
    hidden.push_back(TransformerXLLayer::forward(options, {.block = p.layers[l], .bias = bias}, in, training));
  }
  return hidden;
}

/// The last layer's, as the caller gets them.
Tensor result(const TransformerXL::Options& o, const std::vector<Tensor>& hidden, bool training) {
  return layers::dropout(hidden.back(), o.dropout, std::nullopt, training);
}

}  // namespace

void TransformerXL::check(const Options& o) {
  TransformerXLLayer::check(layer_options(o));
  TORCH_CHECK_VALUE(o.vocab_size > 0, "transformer_xl: vocab_size must be positive, got ", o.vocab_size);
  TORCH_CHECK_VALUE(o.num_layers > 0, "transformer_xl: num_layers must be positive, got ", o.num_layers);
  TORCH_CHECK_VALUE(o.ext_len >= 0, "transformer_xl: ext_len must not be negative, got ", o.ext_len);
}

TransformerXL::Parameters TransformerXL::shape(const Options& o) {
  Parameters sized;
  sized.layers.resize(static_cast<std::size_t>(o.num_layers));
  sized.biases.resize(bias_count(o));
  return sized;
}

TransformerXL::Parameters TransformerXL::init(const Options& o) {
  Parameters made = shape(o);
  made.embedding = layers::normal({o.vocab_size, o.embed_dim}, 0.02);
  for (auto& layer : made.layers) layer = init_xl_block(layer_options(o));
  for (auto& bias : made.biases) bias = init_xl_bias(layer_options(o));
  return made;
}

Tensor TransformerXL::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return result(o, hidden_states(o, p, in.ids, {}, in.key_mask, training), training);
}

std::pair<Tensor, TransformerXL::State> TransformerXL::step(const Options& o, const Parameters& p, const Inputs& in, State&& past, bool training) {
  const std::size_t count = p.layers.size() + 1;
  TORCH_CHECK_VALUE(past.memories.empty() || past.memories.size() == count, "transformer_xl_step: state must hold `seen` and ", count,
                    " memories, got ", past.memories.size());
  const Tensor here = in.key_mask.value_or(at::ones_like(in.ids, in.ids.options().dtype(at::kBool)));
  const Tensor seen = past.seen.defined() ? at::cat({past.seen, here}, 1) : here;  // [B,m+n]
  const auto hidden = hidden_states(o, p, in.ids, past.memories, seen, training);

  const Size n = extent(here, 1), m = extent(seen, 1) - n;
  const Size end = o.swapped_lengths ? n + (m - o.ext_len).max(0) : m + (n - o.ext_len).max(0);
  const Size begin = (end - o.mem_len).max(0);
  State next{.seen = seen.slice_symint(1, begin, end)};
  for (std::size_t l = 0; l < count; ++l) {
    const Tensor all = past.memories.empty() ? hidden[l] : at::cat({past.memories[l], hidden[l]}, 1);
    next.memories.push_back(all.slice_symint(1, begin, end).detach());
  }
  return {result(o, hidden, training), std::move(next)};
}

FOVEATE_MECHANISM(TransformerXL)

}  // namespace foveate
