#include <foveate/init.h>
#include <foveate/sparse_attention.h>
#include <foveate/sparse_transformer.h>

namespace foveate {
namespace {

using patterns::Pattern;

/// A2 of the fixed pattern: the summary cells of each segment. Of several groups, the heads first, first + step, ... take turns.
Pattern summary_cells(int64_t stride, int64_t cells, int64_t groups, int64_t first, int64_t step) {
  const auto group = [&](int64_t g) {
    const Pattern up_to = patterns::fixed(stride, (g + 1) * cells);
    return g == 0 ? up_to : up_to & ~patterns::fixed(stride, g * cells);
  };
  if (groups == 1) return group(0);
  Pattern turns = patterns::heads(first, step * groups) & group(0);
  for (int64_t g = 1; g < groups; ++g) turns = turns | (patterns::heads(first + g * step, step * groups) & group(g));
  return turns;
}

/// S_i of a layer, by the options that attention and block share.
template <class Options> Pattern sets(const Options& o) {
  using namespace patterns;
  if (o.pattern == SparseSets::all) return causal();
  if (o.pattern == SparseSets::local) return sliding_window(o.stride - 1, 0);
  const bool by_head = o.combine == SparseCombine::per_head, is_strided = o.pattern == SparseSets::strided;
  const Pattern a1 = is_strided ? sliding_window(o.stride, 0) : block_diagonal(o.stride) & causal();
  const Pattern a2 =
      (is_strided ? strided(o.stride) : summary_cells(o.stride, o.columns, o.column_groups, by_head ? 1 : 0, by_head ? 2 : 1)) & causal();
  switch (o.combine) {
    case SparseCombine::merged: return a1 | a2;
    case SparseCombine::per_head: return (heads(0, 2) & a1) | (heads(1, 2) & a2);
    case SparseCombine::interleaved: return o.layer % 2 == 0 ? a1 : a2;
  }
  TORCH_CHECK(false, "unreachable");
}

template <class Options> void check_sets(const char* form, const Options& o) {
  TORCH_CHECK_VALUE(o.stride > 0, form, ": stride must be positive, got ", o.stride);
  TORCH_CHECK_VALUE(o.columns > 0 && o.column_groups > 0, form, ": columns and column_groups must be positive, got ", o.columns, " and ",
                    o.column_groups);
  TORCH_CHECK_VALUE(o.pattern != SparseSets::fixed || o.columns * o.column_groups <= o.stride, form,
                    ": columns * column_groups must not exceed stride, got ", o.columns, " * ", o.column_groups, " and ", o.stride);
}

/// Attention of new tokens to those of the state and themselves.
template <class Options> std::pair<Tensor, SparseTransformerAttention::State> stream(const Options& o, const Tensor& q, const Tensor& k,
                                                                                     const Tensor& v, optional<Tensor> key_mask,
                                                                                     optional<double> scale,
                                                                                     const SparseTransformerAttention::State& past) {
  SparseTransformerAttention::State next{.k = past.k.defined() ? at::cat({past.k, k}, 2) : k, .v = past.v.defined() ? at::cat({past.v, v}, 2) : v};
  if (key_mask) key_mask = key_mask->slice_symint(1, extent(*key_mask, 1) - extent(next.k, 2));  // of the keys that are kept
  Tensor out = ops::sparse_attention(q, next.k, next.v, sets(o), {.key_mask = key_mask, .scale = scale}).out;
  if (o.pattern == SparseSets::local) {  // no later query sees further back
    const auto latest = [&](const Tensor& x) { return o.stride > 1 ? x.slice(2, 1 - o.stride) : x.slice(2, 0, 0); };
    next = {.k = latest(next.k), .v = latest(next.v)};
  }
  return {std::move(out), std::move(next)};
}

}  // namespace

void SparseTransformerAttention::check(const Options& o) {
  check_sets("sparse_transformer_attention", o);
  TORCH_CHECK_VALUE(o.layer >= 0, "sparse_transformer_attention: layer must not be negative, got ", o.layer);
}

Tensor SparseTransformerAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  return ops::sparse_attention(in.q, in.k, in.v, sets(o), {.key_mask = in.key_mask, .scale = o.scale}).out;
}

std::pair<Tensor, SparseTransformerAttention::State> SparseTransformerAttention::step(const Options& o, const Parameters&, const Inputs& in,
                                                                                      State&& past) {
  return stream(o, in.q, in.k, in.v, in.key_mask, o.scale, past);
}

FOVEATE_MECHANISM(SparseTransformerAttention)

// --- block and stack ---------------------------------------------------------------------------------------------------------

void SparseTransformerBlock::check(const Options& o) {
  check_sets("sparse_transformer_block", o);
  layers::check_heads("sparse_transformer_block", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.layer >= 0 && o.num_layers > 0 && o.ff_mult > 0,
                    "sparse_transformer_block: num_layers and ff_mult must be positive, layer not negative, got ", o.num_layers, ", ", o.ff_mult,
                    " and ", o.layer);
}

SparseTransformerBlock::Parameters SparseTransformerBlock::init(const Options& o) {
  const auto projection = [](int64_t in, int64_t out, double divisor = 1) {
    return layers::Linear{.weight = layers::normal({out, in}, 0.125 / std::sqrt(static_cast<double>(in)) / divisor), .bias = layers::zeros({out})};
  };
  const int64_t E = o.embed_dim, inner = o.ff_mult * E;
  const double depth = std::sqrt(2.0 * static_cast<double>(o.num_layers));
  return {.norm_a = layers::LayerNorm::init(E),
          .attention = {.query = projection(E, E), .key = projection(E, E), .value = projection(E, E), .out = projection(E, E, depth)},
          .norm_b = layers::LayerNorm::init(E),
          .feed_forward = {.up = projection(E, inner), .down = projection(inner, E, depth)}};
}

Tensor SparseTransformerBlock::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor normed = p.norm_a(in.x, o.layer_norm_eps);
  const auto [q, k, v] = p.attention.project(normed, normed, o.num_heads);
  const Tensor h = in.x + p.attention.join(ops::sparse_attention(q, k, v, sets(o), {.key_mask = in.key_mask}).out);  // h + a
  return h + p.feed_forward(p.norm_b(h, o.layer_norm_eps), layers::Activation::quick_gelu);
}

std::pair<Tensor, SparseTransformerBlock::State> SparseTransformerBlock::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  const Tensor normed = p.norm_a(in.x, o.layer_norm_eps);
  const auto [q, k, v] = p.attention.project(normed, normed, o.num_heads);
  auto [attended, next] = stream(o, q, k, v, in.key_mask, {}, past);
  const Tensor h = in.x + p.attention.join(attended);
  return {h + p.feed_forward(p.norm_b(h, o.layer_norm_eps), layers::Activation::quick_gelu), std::move(next)};
}

FOVEATE_MECHANISM(SparseTransformerBlock)

void SparseTransformerStack::check(const Options& o) {
  TORCH_CHECK_VALUE(o.num_layers > 0, "sparse_transformer_stack: num_layers must be positive, got ", o.num_layers);
  SparseTransformerBlock::check(o.block(0));
}

SparseTransformerStack::Parameters SparseTransformerStack::shape(const Options& o) {
  Parameters p;
  p.blocks.resize(static_cast<std::size_t>(o.num_layers));
  return p;
}

SparseTransformerStack::Parameters SparseTransformerStack::init(const Options& o) {
  Parameters p;
  for (int64_t layer = 0; layer < o.num_layers; ++layer) p.blocks.push_back(SparseTransformerBlock::init(o.block(layer)));
  return p;
}

Tensor SparseTransformerStack::forward(const Options& o, const Parameters& p, const Inputs& in) {
  Tensor x = in.x;
  for (int64_t layer = 0; const auto& block : p.blocks)
    x = SparseTransformerBlock::forward(o.block(layer++), block, {.x = x, .key_mask = in.key_mask});
  return x;
}

std::pair<Tensor, SparseTransformerStack::State> SparseTransformerStack::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  Tensor x = in.x;
  State next;
  auto kept = past.keys_and_values.begin();
  for (int64_t layer = 0; const auto& block : p.blocks) {
    SparseTransformerBlock::State before;
    if (kept != past.keys_and_values.end()) before = {.k = kept[0], .v = kept[1]};
    if (kept != past.keys_and_values.end()) kept += 2;
    auto [y, after] = SparseTransformerBlock::step(o.block(layer++), block, {.x = x, .key_mask = in.key_mask}, std::move(before));
    x = std::move(y);
    next.keys_and_values.insert(next.keys_and_values.end(), {after.k, after.v});
  }
  return {std::move(x), std::move(next)};
}

FOVEATE_MECHANISM(SparseTransformerStack)

// --- layouts of blocks -------------------------------------------------------------------------------------------------------

namespace {

using Options = BlockSparseAttention::Options;

bool one_way(const Options& o) {
  if (o.attention == BlockDirection::standard) return o.config == BlockLayout::local_sliding_window;
  return o.attention == BlockDirection::unidirectional;
}

/// The layout of blocks I [T,1,1] of queries by J [T] of keys, head [Hl,1]: bool, broadcastable to [T,Hl,T]. (Heads stand between:
/// the strides of [Hl,T,T], T T beside T, would tie an exported graph to one length.)
struct Blocks {
  const Options& o;
  Tensor head, I, J, last;  // last [1]: the last block

  Tensor between(const Tensor& x, const Tensor& first, const Tensor& end) const { return (x >= first) & (x < end); }

  /// Windows of one width, the last perhaps short. Every window has its global blocks at the same place; in a short one they lie as far
  /// back as its end demands, which may be in the window before.
  Tensor fixed() const {
    const int64_t width = o.num_local_blocks, globals = o.num_global_blocks;
    Tensor on = I.floor_divide(width) == J.floor_divide(width);
    if (one_way(o)) on = on & (J <= I);
    const Tensor place = width - (1 + head.remainder(o.num_different_global_patterns)) * globals;  // in a window
    const Tensor short_window = last - last.remainder(width);
    const Tensor is_short = last + 1 < short_window + width;
    const Tensor wanted = at::minimum(short_window + place, last + 1 - globals), end = wanted + globals;
    const Tensor start = at::where(wanted < 0, (wanted + last + 1).clamp_min(0), wanted);  // before 0, it counts from the end
    const auto in_whole = [&](const Tensor& x) {
      const Tensor window = x - x.remainder(width);
      return between(x - window, place, place + globals) & (window + width <= last + 1);
    };
    const auto in_short = [&](const Tensor& x) { return between(x, start, end) & is_short; };
    if (one_way(o)) return on | (in_whole(J) & (I >= J - J.remainder(width) + place)) | (in_short(J) & (I >= start));
    on = on | in_whole(J) | in_short(J);
    return o.horizontal_global_attention ? on | in_whole(I) | in_short(I) : on;
  }

  /// Windows of the widths listed, the last one repeated.
  Tensor variable(const optional<Tensor>& random_blocks) const {
    const auto window = [&](const Tensor& x) {
      Tensor number = at::zeros_like(x);
      int64_t start = 0;
      for (std::size_t w = 0; w + 1 < o.local_window_blocks.size(); ++w) {
        start += o.local_window_blocks[w];
        number = number + (x >= start);
      }
      return number + (x - start).clamp_min(0).floor_divide(o.local_window_blocks.back());
    };
    Tensor on = window(I) == window(J);
    if (one_way(o)) on = on & (J <= I);
    for (std::size_t g = 0; g < o.global_block_indices.size(); ++g) {
      const int64_t first = o.global_block_indices[g];
      const int64_t end = o.global_block_end_indices.empty() ? first + 1 : o.global_block_end_indices[g];
      const Tensor column = (J >= first) & (J < end);
      on = on | (one_way(o) ? column & (I >= first) : column);
      if (o.horizontal_global_attention) on = on | ((I >= first) & (I < end));
    }
    if (!random_blocks) return on;
    return on | at::zeros_symint({extent(I, 0), extent(head, 0), extent(J, 0)}, on.options())
                    .scatter(2, random_blocks->to(at::kLong).transpose(0, 1), true);
  }

  Tensor layout(const optional<Tensor>& random_blocks) const {
    switch (o.config) {
      case BlockLayout::dense: return J >= 0;
      case BlockLayout::fixed: return fixed();
      case BlockLayout::variable: return variable(random_blocks);
      case BlockLayout::local_sliding_window: {
        const Tensor near = (I - J).abs() <= o.num_sliding_window_blocks / 2;
        return one_way(o) ? near & (J <= I) : near;
      }
    }
    TORCH_CHECK(false, "unreachable");
  }
};

optional<Tensor> both(const optional<Tensor>& a, const optional<Tensor>& b) { return a && b ? *a & *b : a ? a : b; }
optional<Tensor> sum(const optional<Tensor>& a, const optional<Tensor>& b) { return a && b ? *a + *b : a ? a : b; }

}  // namespace

void BlockSparseAttention::check(const Options& o) {
  const auto need = [](bool holds, const char* what) { TORCH_CHECK_VALUE(holds, "block_sparse_attention: ", what); };
  need(o.block > 0, "block must be positive");
  need(!o.horizontal_global_attention || !one_way(o), "horizontal_global_attention needs attention = bidirectional");
  if (o.config == BlockLayout::fixed) {
    need(o.num_local_blocks > 0 && o.num_global_blocks >= 0, "num_local_blocks must be positive, num_global_blocks not negative");
    need(o.num_different_global_patterns > 0 && o.num_different_global_patterns * o.num_global_blocks <= o.num_local_blocks,
         "num_different_global_patterns * num_global_blocks must not exceed num_local_blocks");
    need(o.num_different_global_patterns == 1 || o.different_layout_per_head, "num_different_global_patterns needs different_layout_per_head = True");
  }
  if (o.config == BlockLayout::variable) {
    need(o.num_random_blocks >= 0, "num_random_blocks must not be negative");
    need(!o.local_window_blocks.empty() && std::all_of(o.local_window_blocks.begin(), o.local_window_blocks.end(), [](int64_t w) { return w > 0; }),
         "local_window_blocks must be positive, one or more");
    need(o.global_block_end_indices.empty() || o.global_block_end_indices.size() == o.global_block_indices.size(),
         "global_block_end_indices must be as many as global_block_indices");
    for (std::size_t g = 0; g < o.global_block_end_indices.size(); ++g) {
      need(o.global_block_indices[g] < o.global_block_end_indices[g], "global_block_end_indices must lie behind global_block_indices");
    }
  }
  if (o.config == BlockLayout::local_sliding_window) need(o.num_sliding_window_blocks > 0, "num_sliding_window_blocks must be positive");
}

BlockSparseAttention::Outputs BlockSparseAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const auto whole = in.q.options().dtype(at::kLong);
  const Size heads = extent(in.q, 1), count = (extent(in.q, 2) + (o.block - 1)) / o.block;
  const int64_t layouts = o.different_layout_per_head ? heads.guard_int(__FILE__, __LINE__) : 1;
  optional<Tensor> random_blocks = in.random_blocks;
  if (o.config == BlockLayout::variable && o.num_random_blocks > 0 && !random_blocks) {
    random_blocks = patterns::draw_blocks(layouts, count, count, o.num_random_blocks, {}, in.q.options().dtype(at::kFloat));
  }
  TORCH_CHECK_VALUE(
      !in.random_blocks || (o.config == BlockLayout::variable && extent(*random_blocks, 0) == layouts && extent(*random_blocks, 1) == count),
      "block_sparse_attention: random_blocks must be [", layouts, ", ", count, ", r] and config variable, got ", in.random_blocks->sym_sizes());
  // One block more than there are, since an exported graph would refuse a size that may be 1.
  const Tensor block = at::arange(count + 1, whole);
  const Blocks blocks{.o = o,
                      .head = at::arange(layouts, whole).unsqueeze(1),
                      .I = block.view_symint({count + 1, 1, 1}),
                      .J = block,
                      .last = (block - 1).clamp_min(0).slice(0, -1)};
  Tensor wide = blocks.layout(random_blocks);
  if (o.causal) wide = wide & (blocks.J <= blocks.I);
  wide = wide.expand_symint({count + 1, layouts, count + 1}).transpose(0, 1);
  const Tensor layout = wide.slice_symint(1, 0, count).slice_symint(2, 0, count);  // [Hl,T,T]

  // Scores are scale q.k + rpe + key padding + mask; a mask that multiplies hides where it is 0.
  optional<Tensor> mask = in.mask, key_mask = in.key_mask, bias = in.rpe;
  if (in.key_padding_mask) {
    if (o.key_padding_mask_mode == MaskMode::mul) key_mask = both(key_mask, *in.key_padding_mask != 0);
    else bias = sum(bias, in.key_padding_mask->unsqueeze(1).unsqueeze(1));
  }
  if (in.attn_mask) {
    if (o.attn_mask_mode == MaskMode::mul) mask = both(mask, *in.attn_mask != 0);
    else bias = sum(bias, in.attn_mask);
  }
  Pattern pattern = patterns::from_blocks(wide, o.block);
  if (o.causal) pattern = pattern & patterns::causal();
  Tensor out = ops::sparse_attention(in.q, in.k, in.v, pattern, {.mask = mask, .key_mask = key_mask, .bias = bias, .scale = o.scale}).out;
  return {.out = std::move(out), .layout = layout.expand_symint({heads, count, count})};
}

FOVEATE_MECHANISM(BlockSparseAttention)

}  // namespace foveate
