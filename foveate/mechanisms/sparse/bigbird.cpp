#include <foveate/bigbird.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/sparse_attention.h>

#include <limits>

namespace foveate {
namespace {

using patterns::Pattern;

/// Numbers that look random, the same for the same seed and coordinates: int64, not negative.
Tensor scrambled(const Tensor& coordinates, int64_t seed) {
  const auto mix = [](const Tensor& x) { return at::bitwise_xor(x, at::bitwise_and(at::bitwise_right_shift(x, 29), (int64_t{1} << 35) - 1)); };
  constexpr int64_t odd = 0x1E3779B97F4A7C15, other = 0x3F58476D1CE4E5B9;
  const Tensor x = mix((mix((coordinates + 1) * odd) + (seed + 1)) * other);
  return at::bitwise_and(mix(x * odd), std::numeric_limits<int64_t>::max() / 2);
}

/// A draw: [heads,count,r] different blocks for each block of queries, among those allowed [count,count]; -1 where there are too few.
/// `allowed` is asked for blocks I [count,1] by J.
template <class Allowed> Tensor draw(const optional<int64_t>& seed, int64_t heads, const Size& count, int64_t r, const Tensor& like,
                                     const Allowed& allowed) {
  const auto whole = like.options().dtype(at::kLong);
  // More blocks than there are: r at least, and more than one.
  const Size rows = count + 1, columns = count + (r + 1);
  const Tensor I = at::arange(rows, whole).view_symint({rows, 1, 1}), J = at::arange(columns, whole), head = at::arange(heads, whole).unsqueeze(1);
  const Tensor may = (allowed(I, J) & (J < J.slice(0, -(r + 1), -r))).expand_symint({rows, heads, columns});
  constexpr int64_t many = int64_t{1} << 20;  // blocks
  const Tensor order = seed ? scrambled((head * many + I) * many + J, *seed) : at::randint_symint(int64_t{1} << 62, {rows, heads, columns}, whole);
  const Tensor chosen = order.masked_fill(may.logical_not(), std::numeric_limits<int64_t>::max()).argsort(int64_t{-1}).slice(-1, 0, r);
  return chosen.masked_fill(may.gather(2, chosen).logical_not(), -1).transpose(0, 1).slice_symint(1, 0, count);
}

Tensor zeros_where_absent(const Tensor& out, const optional<Tensor>& key_mask) {
  return key_mask ? out.masked_fill(key_mask->logical_not().unsqueeze(1).unsqueeze(-1), 0) : out;
}

template <class Options> struct BigBird {
  const Options& o;
  Tensor q, k, v;
  optional<Tensor> key_mask, random_blocks;
  optional<double> scale = {};

  int64_t half() const { return o.num_window_blocks / 2; }
  int64_t heads() const { return plain_extent(q, 1); }
  Size blocks(const Size& tokens) const { return (tokens + (o.block - 1)) / o.block; }

  /// The table [H or 1,count,r], given or drawn. Rows of global blocks name none.
  Tensor table(const Size& count) const {
    const bool itc = o.construction == BigBirdConstruction::itc;
    if (random_blocks) {
      const Size wanted = !itc ? count : count > 2 ? count - 2 : Size(0);
      TORCH_CHECK_VALUE((extent(*random_blocks, 0) == heads() || extent(*random_blocks, 0) == 1) && extent(*random_blocks, 1) == wanted,
                        "bigbird: random_blocks must be [", heads(), " or 1, ", wanted, ", r], got ", random_blocks->sym_sizes());
      return itc ? at::constant_pad_nd(*random_blocks, {0, 0, 1, 1}, -1) : *random_blocks;
    }
    if (o.draw == BigBirdDraw::zero) {
      const Tensor zeros = at::zeros_symint({1, count, o.num_random_blocks}, q.options().dtype(at::kLong));
      // The first and the last block see all as it is.
      return itc ? at::constant_pad_nd(zeros.slice(1, 1).slice(1, 0, -1), {0, 0, 1, 1}, -1) : zeros;
    }
    return draw(o.seed, heads(), count, o.num_random_blocks, q, [&](const Tensor& I, const Tensor& J) {
      Tensor may = (I - J).abs() > half();
      if (o.random_range) may = may & (J < *o.random_range - 1);
      if (!itc) return may;
      const Tensor last = I.slice(0, -2, -1);
      return may & (J > 0) & (J < last) & (I > 0) & (I < last);
    });
  }

  /// The first and the last block see all and are seen by all; the lists of blocks are multisets.
  Tensor internal() const {
    const Size N = extent(q, 2);
    const auto whole = q.options().dtype(at::kLong);
    const Tensor last = at::arange(N, whole).slice(0, -1).floor_divide(o.block) * o.block + at::arange(o.block, whole);  // its tokens
    const Pattern base =
        patterns::block_window(o.block, o.block * half(), o.block * half()) | patterns::global_tokens(o.block) | patterns::global_tokens(last);
    if (o.num_random_blocks == 0 && !random_blocks) return attend(base).out;
    const Tensor drawn = table(blocks(N));
    const bool zero = o.draw == BigBirdDraw::zero && !random_blocks, distinct = o.draw != BigBirdDraw::zero && !random_blocks;
    if (!o.repeats || distinct) return attend(base | patterns::random_blocks(o.block, drawn)).out;
    std::vector<ops::Attended> parts{attend(base)};
    for (const Tensor& one : zero ? std::vector<Tensor>{drawn.slice(2, 0, 1)} : drawn.split(1, 2)) {
      parts.push_back(attend(patterns::random_blocks(o.block, one)));
    }
    if (zero) parts[1].lse = parts[1].lse + std::log(static_cast<double>(o.num_random_blocks));  // the first block, so many times
    return ops::merge_attention(parts).out;
  }

  /// The first tokens do; blocks are counted from behind them.
  Tensor external() const {
    const int64_t g = o.num_extra_globals;
    const Size N = extent(q, 2);
    Pattern among = patterns::block_window(o.block, o.block * half(), o.block * half());
    if ((o.num_random_blocks > 0 || random_blocks) && N > g) among = among | patterns::random_blocks(o.block, table(blocks(N - g)));
    return attend(patterns::global_tokens(g) | patterns::shifted(among, g)).out;
  }

  Tensor operator()() const {
    if (o.full_up_to > 0 && extent(q, 2) <= o.full_up_to) {
      return zeros_where_absent(ops::attention(q, k, v, {.key_mask = key_mask, .scale = scale}).out, key_mask);
    }
    return zeros_where_absent(o.construction == BigBirdConstruction::itc ? internal() : external(), key_mask);
  }

 private:
  ops::Attended attend(const Pattern& pattern) const { return ops::sparse_attention(q, k, v, pattern, {.key_mask = key_mask, .scale = scale}); }
};

template <class Options> void check_bigbird(const char* form, const Options& o) {
  TORCH_CHECK_VALUE(o.block > 0, form, ": block must be positive, got ", o.block);
  TORCH_CHECK_VALUE(o.num_random_blocks >= 0 && o.num_extra_globals >= 0, form,
                    ": num_random_blocks and num_extra_globals must not be negative, got ", o.num_random_blocks, " and ", o.num_extra_globals);
  TORCH_CHECK_VALUE(o.num_window_blocks > 0 && o.num_window_blocks % 2 == 1, form, ": num_window_blocks must be odd, got ", o.num_window_blocks);
  TORCH_CHECK_VALUE(!o.random_range || *o.random_range > 0, form, ": random_range must be positive, got ", o.random_range.value_or(0));
  TORCH_CHECK_VALUE(o.full_up_to >= 0, form, ": full_up_to must not be negative, got ", o.full_up_to);
}

}  // namespace

void BigBirdAttention::check(const Options& o) { check_bigbird("big_bird_attention", o); }

Tensor BigBirdAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  return BigBird<Options>{.o = o, .q = in.q, .k = in.k, .v = in.v, .key_mask = in.key_mask, .random_blocks = in.random_blocks, .scale = o.scale}();
}

FOVEATE_MECHANISM(BigBirdAttention)

void BigBirdSelfAttention::check(const Options& o) {
  check_bigbird("big_bird_self_attention", o);
  layers::check_heads("big_bird_self_attention", o.embed_dim, o.num_heads);
}

BigBirdSelfAttention::Parameters BigBirdSelfAttention::init(const Options& o) {
  const auto projection = [&] {  // as BERT draws them
    return layers::Linear{.weight = layers::normal({o.embed_dim, o.embed_dim}, 0.02),
                          .bias = o.use_bias ? optional<Tensor>(layers::zeros({o.embed_dim})) : std::nullopt};
  };
  return {.query = projection(), .key = projection(), .value = projection()};
}

Tensor BigBirdSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto heads = [&](const layers::Linear& projection) { return split_heads(projection(in.x), o.num_heads); };
  return merge_heads(BigBird<Options>{
      .o = o, .q = heads(p.query), .k = heads(p.key), .v = heads(p.value), .key_mask = in.key_mask, .random_blocks = in.random_blocks}());
}

FOVEATE_MECHANISM(BigBirdSelfAttention)

// --- by blocks ---------------------------------------------------------------------------------------------------------------

void BigBirdBlockAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.block > 0 && o.num_sliding_window_blocks > 0,
                    "big_bird_block_attention: block and num_sliding_window_blocks must be positive, got ", o.block, " and ",
                    o.num_sliding_window_blocks);
  TORCH_CHECK_VALUE(o.num_random_blocks >= 0 && o.num_global_blocks >= 0,
                    "big_bird_block_attention: num_random_blocks and num_global_blocks must not be negative, got ", o.num_random_blocks, " and ",
                    o.num_global_blocks);
}

BigBirdBlockAttention::Outputs BigBirdBlockAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const bool one_way = o.attention == BigBirdDirection::unidirectional;
  const int64_t half = o.num_sliding_window_blocks / 2, globals = o.num_global_blocks * o.block;
  const int64_t heads = plain_extent(in.q, 1), layouts = o.different_layout_per_head ? heads : 1;
  const Size M = extent(in.k, 2), count = (M + (o.block - 1)) / o.block;
  Pattern pattern = patterns::block_window(o.block, o.block * half, o.block * half) | patterns::global_tokens(globals);
  if (in.random_blocks) {
    TORCH_CHECK_VALUE(extent(*in.random_blocks, 0) == layouts && extent(*in.random_blocks, 1) >= count,
                      "big_bird_block_attention: random_blocks must be [", layouts, ", ", count, ", r], got ", in.random_blocks->sym_sizes());
    pattern = pattern | patterns::random_blocks(o.block, *in.random_blocks);
  } else if (o.num_random_blocks > 0) {
    const auto allowed = [&](const Tensor& I, const Tensor& J) { return one_way ? J <= I : J >= I - I; };
    pattern = pattern | patterns::random_blocks(o.block, draw(o.seed, layouts, count, o.num_random_blocks, in.q, allowed));
  }
  if (one_way) pattern = pattern & patterns::block_window(o.block, int64_t{1} << 30, 0);
  const Tensor layout = patterns::to_blocks(pattern, heads, M, o.block, in.q.device());
  if (o.causal) pattern = pattern & patterns::causal();
  return {.out = ops::sparse_attention(in.q, in.k, in.v, pattern, {.mask = in.mask, .key_mask = in.key_mask, .scale = o.scale}).out,
          .layout = layout};
}

std::pair<BigBirdBlockAttention::Outputs, BigBirdBlockAttention::State> BigBirdBlockAttention::step(const Options& o, const Parameters& p,
                                                                                                    const Inputs& in, State&& past) {
  // Of a longer sequence, earlier blocks must draw as they drew.
  TORCH_CHECK_VALUE(in.random_blocks || o.num_random_blocks == 0 || (o.seed && o.attention == BigBirdDirection::unidirectional),
                    "big_bird_block_attention_step: needs random_blocks of the whole sequence, or a seed and attention = unidirectional");
  return layers::step_with_cache<BigBirdBlockAttention>("big_bird_block_attention", o, p, in, past);
}

FOVEATE_MECHANISM(BigBirdBlockAttention)

}  // namespace foveate
