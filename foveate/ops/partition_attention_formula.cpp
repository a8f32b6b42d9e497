// partition_attention in tiles. Of level j, the tokens with one p >> j read the same nodes, and those of neighbouring p >> j nodes that
// overlap: so tokens are cut into tiles of 2^j, or of several such runs where 2^j is small, and each tile is scored against the window of
// consecutive nodes that some of its tokens read. All levels together are one softmax. No index is gathered, and what a token does not
// read is about as much as it reads.
#include <c10/util/generic_math.h>
#include <foveate/attention_formula.h>
#include <foveate/binary_partition.h>
#include <foveate/partition_attention_formula.h>

#include <limits>
#include <numeric>

namespace foveate::ops {
namespace {

using patterns::BinaryPartition;

constexpr int64_t smallest_tile = 16;  // tokens

struct Problem {
  BinaryPartition how;
  int64_t tokens, before;    // N, and the first token that asks
  optional<Tensor> lengths;  // [B,1,1,1]
  at::TensorOptions whole;
  double scale, dropout;
  optional<Tensor> dropout_seed;
  int64_t rows;  // of queries, of each head and sequence

  int64_t asking() const { return tokens - before; }
  /// Nodes of a level, of each sequence: broadcastable to [B,1,1,1]
  Tensor count(int64_t level) const {
    const Tensor total = lengths.value_or(at::full({1, 1, 1, 1}, tokens, whole));
    return (total + ((int64_t{1} << level) - 1)).floor_divide(int64_t{1} << level);
  }
  /// Dropout of p [B,H,n,m], of the queries from row `first`.
  Tensor dropped(const Tensor& p, int64_t first) const {
    if (!dropout_seed) return p;
    const auto numbers = [&](int64_t count, at::IntArrayRef shape) { return at::arange(count, whole).view(shape); };
    const Tensor head = numbers(p.size(0) * p.size(1), {p.size(0), p.size(1), 1, 1}), row = numbers(p.size(2), {-1, 1}) + first;
    return p * kept_by_seed(head * rows + row, numbers(p.size(3), {1, -1}), *dropout_seed, dropout).to(p.scalar_type()) / (1 - dropout);
  }
};

/// What the asking tokens read of one level, on one side.
struct Window {
  int64_t lead, tiles, width;   // tile 0 begins `lead` rows before the first token that asks
  int64_t first, stride, size;  // tile g reads some of the nodes first + g stride ... first + g stride + size - 1
  Tensor seen;                  // bool [B or 1,1,n,size]: which of them each token reads
  Tensor type;                  // [tiles,width,size]: types of the edges

  Window(const Problem& of, int64_t level, bool is_left) {
    const int64_t k = of.how.step, run = int64_t{1} << level;
    width = std::max(run, smallest_tile);
    stride = width / run;
    const int64_t p_first = of.before + (is_left ? k - 1 : 1 - k), tile = c10::div_floor_integer(p_first, width);
    lead = p_first - tile * width;
    tiles = (lead + of.asking() + width - 1) / width;
    first = tile * stride + (is_left ? -2 * k : k);
    size = stride + k + (is_left && level == 0 ? 1 : 0);  // one more for the token itself

    const Tensor number = at::arange(tiles, of.whole).view({-1, 1, 1});
    const Tensor p = (number + tile) * width + at::arange(width, of.whole).unsqueeze(-1);  // [tiles,width,1]
    const Tensor node = number * stride + first + at::arange(size, of.whole);              // [tiles,1,size]
    const Tensor run_of_p = p.floor_divide(run), m = is_left ? run_of_p - k - node : node - run_of_p - k;
    const int64_t half = is_left ? 0 : 1;
    const Tensor reads_half = run_of_p.remainder(2) == half;  // m = k here instead of m = 0 of the next level
    seen = (m <= reads_half.to(at::kLong) + (k - 1)) & (node >= 0);
    if (level == 0) seen = seen & (m >= (is_left ? -1 : 0));
    else seen = seen & (m >= (p.floor_divide(run / 2).remainder(2) == half).to(at::kLong));
    seen = seen.unsqueeze(0);
    if (!is_left) {
      const Tensor count = of.count(level);
      Tensor is_there = node < count;
      if (of.how.right_overflow) is_there = is_there | ((node == count) & (m == k));
      seen = seen & is_there;
    }
    if (of.lengths) seen = seen & (p - (is_left ? k - 1 : 1 - k) < *of.lengths);
    seen = seen.flatten(1, 2).narrow(1, lead, of.asking()).unsqueeze(1);
    const int64_t side = is_left ? 1 : 2;  // m = -1, the token itself, has type 0
    type = at::where(m < k, m * 2 + (of.how.type_base(level) + side), at::full({}, of.how.type_base(level + 1) + side, of.whole));
    type = type.clamp(0, of.how.types() - 1);
  }

  /// [B,H,n,X] -> [B,H,tiles,width,X], and back
  Tensor tile(const Tensor& x) const { return at::constant_pad_nd(x, {0, 0, lead, tiles * width - lead - x.size(2)}).unflatten(2, {tiles, width}); }
  Tensor untile(const Tensor& x) const { return x.flatten(2, 3).narrow(2, lead, seen.size(2)); }

  /// A level's nodes x [B,H,nodes,D] by windows: [B,H,tiles,D,size]
  Tensor windows(const Tensor& x) const {
    const int64_t last = first + (tiles - 1) * stride + size, from = std::max<int64_t>(first, 0), to = std::min(last, x.size(2));
    return at::constant_pad_nd(x.slice(2, from, to), {0, 0, from - first, last - to}).unfold(2, size, stride);
  }
  bool reads_any(int64_t nodes) const { return first < nodes && first + (tiles - 1) * stride + size > 0; }
};

struct Part {
  Window window;
  Tensor k, v;  // [B,H,nodes,D], of its level
};

int64_t total(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

/// The nodes of each level.
std::vector<Tensor> by_level(const Tensor& x, const std::vector<int64_t>& sizes) { return x.narrow(2, 0, total(sizes)).split_with_sizes(sizes, 2); }

/// A level with the next one's first node just behind its end.
Tensor with_overflow(const Problem& of, int64_t level, const Tensor& nodes, const Tensor& next) {
  const Tensor place = at::arange(nodes.size(2) + 1, of.whole).unsqueeze(-1);  // [nodes+1,1]
  return at::where(place == of.count(level), next.narrow(2, 0, 1), at::constant_pad_nd(nodes, {0, 0, 0, 1}));
}

Tensor of_tokens(const Problem& of, const Tensor& q, const std::vector<Tensor>& k, const std::vector<Tensor>& v, const optional<Tensor>& table) {
  std::vector<Part> parts;
  for (int64_t level = 0; level < static_cast<int64_t>(k.size()); ++level) {
    const auto at = static_cast<std::size_t>(level);
    for (const bool is_left : {true, false}) {
      if (of.how.causal && !is_left) continue;
      const bool overflows = !is_left && of.how.right_overflow && at + 1 < k.size();
      Part part{.window = Window(of, level, is_left),
                .k = overflows ? with_overflow(of, level, k[at], k[at + 1]) : k[at],
                .v = overflows ? with_overflow(of, level, v[at], v[at + 1]) : v[at]};
      if (part.window.reads_any(part.k.size(2))) parts.push_back(std::move(part));
    }
  }
  const auto by_type = table ? optional(at::matmul(q, table->t())) : std::nullopt;  // [B,H,n,types]
  std::vector<Tensor> scores, seen;
  for (const auto& [w, keys, values] : parts) {
    Tensor s = at::matmul(w.tile(q), w.windows(keys));  // [B,H,tiles,width,size]
    if (by_type) s = s + w.tile(*by_type).gather(-1, w.type.expand(s.sizes()));
    scores.push_back(w.untile(s));
    seen.push_back(w.seen);
  }
  const int64_t sequences = of.lengths ? of.lengths->size(0) : 1;
  for (Tensor& one : seen) one = one.expand({sequences, 1, of.asking(), one.size(3)});
  const Tensor hidden = at::cat(seen, -1).logical_not();
  const Tensor s = (at::cat(scores, -1) * of.scale).masked_fill(hidden, -std::numeric_limits<double>::infinity());
  const Tensor probabilities = of.dropped(safe_softmax(s).probabilities, 0);
  Tensor out;
  for (int64_t next = 0; const auto& [w, keys, values] : parts) {
    const Tensor p = w.tile(probabilities.narrow(3, next, w.size));
    next += w.size;
    const Tensor part = w.untile(at::matmul(p, w.windows(values).transpose(-1, -2)));
    out = out.defined() ? out + part : part;
  }
  return out;
}

/// Spans first <= u < last of a level: each reads its tokens. q [B,H,last-first,D], from row `row` of all queries; k and v of all tokens
Tensor of_spans(const Problem& of, int64_t level, int64_t first, int64_t row, const Tensor& q, const Tensor& k, const Tensor& v) {
  const int64_t run = int64_t{1} << level, begin = first * run, end = begin + q.size(2) * run, there = std::min(end, of.tokens);
  const auto cut = [&](const Tensor& x) {  // [B,H,spans,run,D]
    return at::constant_pad_nd(x.slice(2, begin, there), {0, 0, 0, end - there}).unflatten(2, {q.size(2), run});
  };
  Tensor s = at::matmul(q.unsqueeze(3), cut(k).transpose(-1, -2)) * of.scale;  // [B,H,spans,1,run]
  const Tensor place = at::arange(begin, end, of.whole).view({-1, 1, run});
  const Tensor hidden = of.lengths ? place >= of.lengths->unsqueeze(-1) : place >= of.tokens;
  s = s.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  const Tensor probabilities = of.dropped(safe_softmax(s).probabilities.squeeze(3), row).unsqueeze(3);
  return at::matmul(probabilities, cut(v)).squeeze(3);
}

}  // namespace

AskedLevels::AskedLevels(const PartitionArguments& c) {
  const int64_t tokens = c.tokens.guard_int(__FILE__, __LINE__), before = c.before.guard_int(__FILE__, __LINE__);
  sizes = patterns::partition_levels(tokens, c.complete);
  for (std::size_t level = 0; level < sizes.size(); ++level) {
    firsts.push_back(before >> level);
    asked.push_back(level == 0 ? tokens - before : sizes[level] - firsts[level]);
  }
  TORCH_CHECK_VALUE(c.k.size(2) >= total(sizes), "partition_attention: k must have ", total(sizes), " nodes of ", tokens, " tokens, got ",
                    c.k.size(2));
  TORCH_CHECK_VALUE(c.q.size(2) >= total(asked), "partition_attention: q must have ", total(asked), " nodes, got ", c.q.size(2));
}

std::tuple<Tensor> partition_attention_formula(const PartitionArguments& c) {
  const auto type = accumulation_type(c.q.scalar_type());
  const Tensor q = c.q.to(type), k = c.k.to(type), v = c.v.to(type);
  Problem of{.how = {.step = c.step, .clip_dist = c.clip_dist, .causal = c.causal, .right_overflow = c.right_overflow},
             .tokens = c.tokens.guard_int(__FILE__, __LINE__),
             .before = c.before.guard_int(__FILE__, __LINE__),
             .whole = q.options().dtype(at::kLong),
             .scale = c.scale,
             .dropout = c.dropout,
             .dropout_seed = c.dropout_seed,
             .rows = q.size(2)};
  if (c.lengths) of.lengths = c.lengths->to(at::kLong).view({-1, 1, 1, 1});
  const AskedLevels levels(c);
  if (q.numel() == 0 || v.numel() == 0) return {at::zeros({q.size(0), q.size(1), q.size(2), v.size(3)}, c.q.options())};

  const auto queries = by_level(q, levels.asked), keys = by_level(k, levels.sizes), values = by_level(v, levels.sizes);
  std::vector<Tensor> outs;
  if (of.asking() > 0) outs.push_back(of_tokens(of, queries[0], keys, values, c.table ? optional(c.table->to(type)) : std::nullopt));
  int64_t row = levels.asked[0];
  for (std::size_t level = 1; level < levels.sizes.size(); ++level) {
    if (levels.asked[level] > 0) {
      outs.push_back(of_spans(of, static_cast<int64_t>(level), levels.firsts[level], row, queries[level], keys[0], values[0]));
    }
    row += levels.asked[level];
  }
  const Tensor out = at::cat(outs, 2).to(c.q.scalar_type());
  return {at::constant_pad_nd(out, {0, 0, 0, q.size(2) - out.size(2)}).contiguous()};
}

}  // namespace foveate::ops
