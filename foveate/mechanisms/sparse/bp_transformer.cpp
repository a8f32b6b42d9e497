#include <foveate/attention.h>
#include <foveate/bp_transformer.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/partition_attention.h>

#include <span>

namespace foveate {
namespace {

using Block = BPTransformerBlock;
using Kept = std::span<const Tensor>;

/// What a block keeps: keys and values of tokens, of spans, and of the memory where it has one.
std::size_t kept_count(bool memory) { return memory ? 6 : 4; }

/// What a block asks: states h [B,nodes,E] of the last tokens, then of their spans; of `tokens` tokens in all.
struct Asking {
  Tensor h;
  Size count;                                          // tokens among the states
  Size tokens;                                         // tokens so far
  optional<Tensor> lengths, memory_k, memory_v, mask;  // memory [B,H,M,d]
  bool complete = false;                               // whether only spans that have ended are there
  layers::WeightDropout weights = {};
};

/// h <- norm(h + attention); h <- norm(h + memory's); h <- norm(h + feed-forward). k and v [B,H,nodes,d] of all nodes.
Tensor update(const Block::Options& o, const Block::Parameters& p, const Asking& a, const Tensor& k, const Tensor& v, bool training) {
  const auto drop = [&](const Tensor& x) { return layers::dropout(x, o.dropout, std::nullopt, training); };
  Tensor h = a.h;
  const Tensor q = split_heads(p.attention.query(h), o.num_heads);
  const Tensor attended = ops::partition_attention(q, k, v, a.tokens,
                                                   {.how = o.partition(),
                                                    .table = o.rel_pos ? p.relative : std::nullopt,
                                                    .lengths = a.lengths,
                                                    .dropout = o.attention_dropout,
                                                    .dropout_seed = a.weights.seed(),
                                                    .before = a.tokens - a.count,
                                                    .complete = a.complete});
  h = p.norm(h + drop(p.attention.join(attended)), o.layer_norm_eps);
  if (p.memory) {  // spans take nothing from it, and are normed all the same
    const Tensor asked = split_heads(p.memory->attention.query(h.narrow_symint(1, 0, a.count)), o.num_heads);
    const Tensor found = drop(p.memory->attention.join(ops::attention(asked, *a.memory_k, *a.memory_v, a.weights.with({.key_mask = a.mask}, 1)).out));
    h = p.memory->norm(h + at::constant_pad_nd_symint(found, {0, 0, 0, extent(h, 1) - a.count}), o.layer_norm_eps);
  }
  const Tensor inner = drop(p.feed_forward.up(h).relu());
  return p.feed_forward_norm(h + drop(p.feed_forward.down(inner)), o.layer_norm_eps);
}

/// Keys and values of tokens and spans, from projections of their states.
std::pair<Tensor, Tensor> keys_and_values(const layers::Heads& p, const Tensor& h, int64_t heads) {
  return {split_heads(p.key(h), heads), split_heads(p.value(h), heads)};
}

/// The block over all nodes h [B,nodes,E] of a whole sequence.
Tensor whole(const Block::Options& o, const Block::Parameters& p, const Tensor& h, const Size& tokens, const Block::Inputs& in, bool training) {
  Asking asking{.h = h,
                .count = tokens,
                .tokens = tokens,
                .lengths = in.lengths,
                .memory_k = {},
                .memory_v = {},
                .mask = in.memory_mask,
                .weights = {o.attention_dropout, in.dropout_seed, training, h}};
  if (p.memory) std::tie(asking.memory_k, asking.memory_v) = keys_and_values(p.memory->attention, *in.memory_states, o.num_heads);
  const auto [k, v] = keys_and_values(p.attention, h, o.num_heads);
  return update(o, p, asking, k, v, training);
}

/// Spans that have ended, before and now, level by level: those of each level together. [B,H,spans,d]
Tensor with_spans(const Tensor& before, const Tensor& now, int64_t tokens_before, int64_t tokens) {
  std::vector<Tensor> levels;
  int64_t next_before = 0, next_now = 0;
  for (int64_t level = 1; tokens >> level > 0; ++level) {
    const int64_t old = tokens_before >> level, ended = (tokens >> level) - old;
    if (old > 0) levels.push_back(before.narrow(2, next_before, old));
    if (ended > 0) levels.push_back(now.narrow(2, next_now, ended));
    next_before += old;
    next_now += ended;
  }
  return levels.empty() ? now : at::cat(levels, 2);
}

/// The block over the nodes that new tokens bring. `before` is what it keeps of earlier ones, or nothing.
Tensor stream(const Block::Options& o, const Block::Parameters& p, const Tensor& h, const Size& count, const Block::Inputs& in, Kept before,
              std::vector<Tensor>& keep) {
  const int64_t arrived = count.guard_int(__FILE__, __LINE__), earlier = before.empty() ? 0 : before[0].size(2), tokens = earlier + arrived;
  const auto [k, v] = keys_and_values(p.attention, h, o.num_heads);
  const auto all = [&](const Tensor& now, std::size_t place) {  // tokens so far, spans so far
    const Tensor of_tokens = now.narrow(2, 0, arrived), of_spans = now.slice(2, arrived);
    return std::pair{before.empty() ? of_tokens : at::cat({before[place], of_tokens}, 2),
                     with_spans(before.empty() ? of_spans : before[place + 2], of_spans, earlier, tokens)};
  };
  const auto [token_k, span_k] = all(k, 0);
  const auto [token_v, span_v] = all(v, 1);
  keep.insert(keep.end(), {token_k, token_v, span_k, span_v});
  Asking asking{.h = h, .count = count, .tokens = tokens, .lengths = {}, .memory_k = {}, .memory_v = {}, .mask = in.memory_mask, .complete = true};
  if (p.memory) {
    if (before.empty()) std::tie(asking.memory_k, asking.memory_v) = keys_and_values(p.memory->attention, *in.memory_states, o.num_heads);
    else std::tie(asking.memory_k, asking.memory_v) = std::pair{before[4], before[5]};
    keep.insert(keep.end(), {*asking.memory_k, *asking.memory_v});
  }
  return update(o, p, asking, at::cat({token_k, span_k}, 2), at::cat({token_v, span_v}, 2), false);
}

/// How many spans end with `count` tokens more than `before`.
int64_t ended_spans(int64_t before, int64_t count) {
  int64_t ended = 0;
  for (int64_t level = 1; (before + count) >> level > 0; ++level) ended += ((before + count) >> level) - (before >> level);
  return ended;
}

/// States x [B,n,E] with zeros behind them, `nodes` in all.
Tensor with_zeros(const Tensor& x, const Size& nodes) { return at::constant_pad_nd_symint(x, {0, 0, 0, nodes - extent(x, 1)}); }

/// Tokens and spans, without the room behind them. (Of a symbolic number by index: torch.export could not tell that there is room for them.)
Block::Outputs parted(const Tensor& h, const Size& tokens, const Size& spans) {
  const Tensor last =
      spans.maybe_as_int() ? h.narrow_symint(1, tokens, spans) : h.index_select(1, at::arange(spans, h.options().dtype(at::kLong)) + tokens);
  return {.tokens = h.narrow_symint(1, 0, tokens), .spans = last};
}

void check_memory(const char* form, bool memory, const optional<Tensor>& states, bool is_kept = false) {
  TORCH_CHECK_VALUE(memory ? states || is_kept : !states, form, ": memory_states must be given where memory is True, and only there");
}

void check_streams(const char* form, bool causal, const optional<Tensor>& lengths, std::size_t kept, std::size_t expected) {
  TORCH_CHECK_VALUE(causal, form, "_step: causal must be True for the form to stream, got False");
  TORCH_CHECK_VALUE(!lengths, form, "_step: lengths are not given step by step");
  TORCH_CHECK_VALUE(kept == 0 || kept == expected, form, "_step: state must hold ", expected, " tensors, got ", kept);
}

}  // namespace

void BPTransformerBlock::check(const Options& o) {
  layers::check_heads("bp_transformer", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.inner_dim > 0 && o.neighbors > 0 && o.clip_dist >= 0,
                    "bp_transformer: inner_dim and neighbors must be positive and clip_dist not negative, got ", o.inner_dim, ", ", o.neighbors,
                    " and ", o.clip_dist);
  layers::check_dropout("bp_transformer", "dropout", o.dropout);
  layers::check_dropout("bp_transformer", "attention_dropout", o.attention_dropout);
}

BPTransformerBlock::Parameters BPTransformerBlock::init(const Options& o) {
  const int64_t E = o.embed_dim;
  const auto heads = [&] {
    const auto matrix = [&] { return layers::Linear{.weight = layers::xavier_uniform({E, E}), .bias = {}}; };
    return layers::Heads{.query = matrix(), .key = matrix(), .value = matrix(), .out = matrix()};
  };
  Parameters p{.attention = heads(),
               .relative = {},
               .norm = layers::LayerNorm::init(E),
               .memory = {},
               .feed_forward = layers::FeedForward::init(E, o.inner_dim),
               .feed_forward_norm = layers::LayerNorm::init(E)};
  if (o.rel_pos) p.relative = layers::xavier_uniform({o.partition().types(), E / o.num_heads});
  if (o.memory) p.memory = {.attention = heads(), .norm = layers::LayerNorm::init(E)};
  for (layers::Linear* one : {&p.feed_forward.up, &p.feed_forward.down}) one->weight = layers::xavier_uniform(one->weight.sizes());
  return p;
}

BPTransformerBlock::Outputs BPTransformerBlock::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_memory("bp_transformer_block", o.memory, in.memory_states);
  const Size tokens = extent(in.x, 1), spans = patterns::span_count(tokens);
  TORCH_CHECK_VALUE(!in.spans || extent(*in.spans, 1) == spans, "bp_transformer_block: spans must be ", spans, " of ", tokens, " tokens, got ",
                    extent(in.spans.value_or(in.x), 1));
  const Tensor h = with_zeros(in.spans ? at::cat({in.x, *in.spans}, 1) : in.x, tokens + patterns::span_room(tokens));
  return parted(whole(o, p, h, tokens, in, training), tokens, spans);
}

std::pair<BPTransformerBlock::Outputs, BPTransformerBlock::State> BPTransformerBlock::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                           State&& past) {
  check_streams("bp_transformer_block", o.causal, in.lengths, past.kept.size(), kept_count(o.memory));
  check_memory("bp_transformer_block_step", o.memory, in.memory_states, !past.kept.empty());
  const int64_t count = plain_extent(in.x, 1), ended = ended_spans(past.kept.empty() ? 0 : past.kept[0].size(2), count);
  TORCH_CHECK_VALUE(!in.spans || extent(*in.spans, 1) == ended, "bp_transformer_block_step: spans must be the ", ended, " that end, got ",
                    extent(in.spans.value_or(in.x), 1));
  const Tensor h = with_zeros(in.spans ? at::cat({in.x, *in.spans}, 1) : in.x, count + ended);
  State next;
  const Tensor out = stream(o, p, h, count, in, past.kept, next.kept);
  return {parted(out, count, ended), std::move(next)};
}

FOVEATE_MECHANISM(BPTransformerBlock)

// --- the model ---------------------------------------------------------------------------------------------------------------

void BPTransformer::check(const Options& o) {
  BPTransformerBlock::check(o.block());
  TORCH_CHECK_VALUE(o.num_layers > 0, "bp_transformer: num_layers must be positive, got ", o.num_layers);
  TORCH_CHECK_VALUE(!o.max_len || *o.max_len > 0, "bp_transformer: max_len must be positive, got ", o.max_len.value_or(0));
}

BPTransformer::Parameters BPTransformer::shape(const Options& o) {
  Parameters p;
  if (o.input_norm) p.norm.emplace();
  p.blocks.resize(static_cast<std::size_t>(o.num_layers));
  return p;
}

BPTransformer::Parameters BPTransformer::init(const Options& o) {
  Parameters p;
  if (o.max_len) p.positions = layers::normal({*o.max_len, o.embed_dim}, 1);
  if (o.input_norm) p.norm = layers::LayerNorm::init(o.embed_dim);
  for (int64_t layer = 0; layer < o.num_layers; ++layer) p.blocks.push_back(BPTransformerBlock::init(o.block()));
  return p;
}

namespace {

/// Embeddings of tokens that follow `before` others, ready for the first block.
Tensor embedded(const BPTransformer::Options& o, const BPTransformer::Parameters& p, const Tensor& x, const Size& before, bool training) {
  Tensor h = x;
  if (o.max_len) {
    TORCH_CHECK_VALUE(p.positions, "bp_transformer: positions must be given with max_len");
    TORCH_CHECK_VALUE(before + extent(x, 1) <= *o.max_len, "bp_transformer: x must have no more than max_len = ", *o.max_len, " tokens, got ",
                      before + extent(x, 1));
    h = h + p.positions->narrow_symint(0, before, extent(x, 1));
  }
  if (!o.input_norm) return h;
  h = layers::dropout(h, o.dropout, std::nullopt, training);
  return (*p.norm)(h, o.layer_norm_eps);
}

BPTransformerBlock::Inputs inputs_of_block(const BPTransformer::Inputs& in) {
  return {.x = {}, .spans = {}, .lengths = in.lengths, .memory_states = in.memory_states, .memory_mask = in.memory_mask, .dropout_seed = {}};
}

}  // namespace

BPTransformer::Outputs BPTransformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_memory("bp_transformer", o.memory, in.memory_states);
  const Size tokens = extent(in.x, 1);
  Tensor h = with_zeros(embedded(o, p, in.x, 0, training), tokens + patterns::span_room(tokens));
  for (const auto& block : p.blocks) h = whole(o.block(), block, h, tokens, inputs_of_block(in), training);
  return parted(h, tokens, patterns::span_count(tokens));
}

std::pair<BPTransformer::Outputs, BPTransformer::State> BPTransformer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  const std::size_t each = kept_count(o.memory);
  check_streams("bp_transformer", o.causal, in.lengths, past.kept.size(), each * p.blocks.size());
  check_memory("bp_transformer_step", o.memory, in.memory_states, !past.kept.empty());
  const int64_t count = plain_extent(in.x, 1), before = past.kept.empty() ? 0 : past.kept[0].size(2);
  const int64_t ended = ended_spans(before, count);
  Tensor h = with_zeros(embedded(o, p, in.x, before, false), count + ended);
  State next;
  for (std::size_t layer = 0; layer < p.blocks.size(); ++layer) {
    const Kept kept = past.kept.empty() ? Kept() : Kept(past.kept).subspan(layer * each, each);
    h = stream(o.block(), p.blocks[layer], h, count, inputs_of_block(in), kept, next.kept);
  }
  return {parted(h, count, ended), std::move(next)};
}

FOVEATE_MECHANISM(BPTransformer)

}  // namespace foveate
