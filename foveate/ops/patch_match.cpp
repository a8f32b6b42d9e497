#include <foveate/attention_formula.h>
#include <foveate/op.h>
#include <foveate/patch_match.h>

#include <limits>

namespace foveate::ops {
namespace {

struct Offset {
  int64_t y, x;
};
constexpr Offset up{-1, 0}, left{0, -1}, down{1, 0}, right{0, 1};

struct Grid {
  int64_t height, width;
  /// The first or the second of two: height, width, height, width.
  static Grid of(c10::SymIntArrayRef sizes, std::size_t which) {
    return {sizes[2 * which].guard_int(__FILE__, __LINE__), sizes[2 * which + 1].guard_int(__FILE__, __LINE__)};
  }
  bool holds(int64_t y, int64_t x) const { return y >= 0 && y < height && x >= 0 && x < width; }
};

/// Some queries, with the best key each has so far.
struct Found {
  Tensor i, q;          // [n], [B,H,n,D]
  Tensor match, score;  // [B,H,n]
};

struct Search {
  Tensor k;                   // [B,H,M,D]
  optional<Tensor> key_mask;  // [B,1,M]
  Grid queries, keys;
  bool causal;

  /// Scores of keys j [B,H,n], -inf where a key is not to be seen.
  Tensor score(const Tensor& i, const Tensor& q, const Tensor& j) const {
    const Tensor near = k.gather(2, j.unsqueeze(3).expand({-1, -1, -1, k.size(3)}));
    Tensor seen = at::ones_like(j, at::kBool);
    if (causal) seen = seen & (j <= i);
    if (key_mask) seen = seen & key_mask->expand({-1, j.size(1), -1}).gather(2, j);
    return (q * near).sum(-1).masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
  }
  Found start(const Tensor& i, const Tensor& q, const Tensor& match) const {
    const Tensor inside = match.clamp(0, k.size(2) - 1);
    return {.i = i, .q = q, .match = inside, .score = score(i, q, inside)};
  }
  /// Tries the keys at y, x [B,H,n], where `may`.
  void offer(Found& f, const Tensor& y, const Tensor& x, const Tensor& may) const {
    const Tensor on_grid = may & (y >= 0) & (y < keys.height) & (x >= 0) & (x < keys.width);
    const Tensor there = y * keys.width + x, inside = on_grid & (there < k.size(2)), j = at::where(inside, there, at::zeros_like(f.match));
    const Tensor s = score(f.i, f.q, j), better = inside & (s > f.score);
    f.match = at::where(better, j, f.match);
    f.score = at::where(better, s, f.score);
  }
  /// Tries the match of the neighbour at an offset, moved back by it. `neighbours` says which queries stand there (-1 none), `matches` their matches.
  void propagate(Found& f, const Offset& by, const Tensor& exists, const Tensor& matches) const {
    offer(f, matches.floor_divide(keys.width) - by.y, matches.remainder(keys.width) - by.x, exists);
  }
  /// Tries keys at random: steps [levels,B,H,n,2].
  void wander(Found& f, const Tensor& steps, double decay) const {
    const Tensor y = f.match.floor_divide(keys.width), x = f.match.remainder(keys.width), all = at::ones_like(f.match, at::kBool);
    const auto largest = static_cast<double>(std::max(keys.height, keys.width));
    for (int64_t level = 0; level < steps.size(0); ++level) {
      const Tensor by = (steps.select(0, level) * (largest * std::pow(decay, level))).round().to(at::kLong);
      offer(f, (y + by.select(-1, 0)).clamp(0, keys.height - 1), (x + by.select(-1, 1)).clamp(0, keys.width - 1), all);
    }
  }
};

/// All new queries at once, each reading the field [B,H,N] as it was.
Tensor jacobi(const Search& s, Found f, const Tensor& before, const Tensor& steps, double decay) {
  for (const Offset& by : {up, left, down, right}) {
    const Tensor y = f.i.floor_divide(s.queries.width) + by.y, x = f.i.remainder(s.queries.width) + by.x, j = y * s.queries.width + x;
    Tensor exists = (y >= 0) & (y < s.queries.height) & (x >= 0) & (x < s.queries.width) & (j < before.size(2));
    if (s.causal) exists = exists & (j <= f.i);
    const Tensor matches = before.index_select(2, j.clamp(0, before.size(2) - 1));
    s.propagate(f, by, exists, matches);
  }
  s.wander(f, steps, decay);
  return f.match;
}

/// One query after the other. `fields` holds the past queries' matches after this iteration, and the others' before it.
void scan(const Search& s, const Tensor& q, int64_t m, bool is_forward, std::vector<Tensor>& field, const Tensor& steps, double decay) {
  const auto N = static_cast<int64_t>(field.size()), n = N - m;
  for (int64_t count = 0; count < n; ++count) {
    const int64_t at = is_forward ? count : n - 1 - count, i = m + at;
    Found f = s.start(at::full({1}, i, field.front().options()), q.narrow(2, at, 1), field[static_cast<std::size_t>(i)]);
    for (const Offset& by : is_forward ? std::array{up, left} : std::array{down, right}) {
      const int64_t y = i / s.queries.width + by.y, x = i % s.queries.width + by.x, j = y * s.queries.width + x;
      if (!s.queries.holds(y, x) || j >= N) continue;
      s.propagate(f, by, at::ones_like(f.match, at::kBool), field[static_cast<std::size_t>(j)]);
    }
    s.wander(f, steps.narrow(3, at, 1), decay);
    field[static_cast<std::size_t>(i)] = f.match;
  }
}

Tensor patch_match_formula(const Tensor& q_given, const Tensor& k_given, const Tensor& start, const Tensor& steps_given, const optional<Tensor>& past,
                           const optional<Tensor>& key_mask, c10::SymIntArrayRef grids, bool is_scan, double decay, bool causal) {
  const auto type = accumulation_type(q_given.scalar_type());
  const Tensor q = q_given.detach().to(type), steps = steps_given.detach().to(at::kDouble);
  const int64_t T = steps.size(0), m = past ? past->size(3) : 0, n = q.size(2), N = m + n;
  const Search search{.k = k_given.detach().to(type),
                      .key_mask = key_mask ? optional(key_mask->unsqueeze(1)) : std::nullopt,
                      .queries = Grid::of(grids, 0),
                      .keys = Grid::of(grids, 1),
                      .causal = causal};
  const Tensor i = at::arange(m, N, start.options());
  const auto with_past = [&](int64_t it, const Tensor& match) { return past ? at::cat({past->select(0, it), match}, 2) : match; };
  Tensor match = start.clamp(0, search.k.size(2) - 1);
  std::vector<Tensor> trail{with_past(0, match)};
  if (start.numel() == 0) trail.resize(static_cast<std::size_t>(T + 1), trail.front());
  for (int64_t it = 0; it < T && start.numel() > 0; ++it) {
    if (is_scan) {
      auto field = with_past(it + 1, match).split(1, 2);
      scan(search, q, m, causal || it % 2 == 0, field, steps.select(0, it), decay);
      match = at::cat(field, 2).narrow(2, m, n);
    } else {
      match = jacobi(search, search.start(i, q, match), trail.back(), steps.select(0, it), decay);
    }
    trail.push_back(with_past(it + 1, match));
  }
  return at::stack(trail);
}

Tensor patch_match_meta(const Tensor& q, const Tensor&, const Tensor& start, const Tensor& steps, const optional<Tensor>& past,
                        const optional<Tensor>&, c10::SymIntArrayRef, bool, double, bool) {
  const Size n = extent(q, 2);
  return start.new_empty_symint({extent(steps, 0) + 1, extent(q, 0), extent(q, 1), past ? extent(*past, 3) + n : n});
}

Tensor match_support_formula(const Tensor& match, Size first, int64_t query_radius, int64_t key_radius, c10::SymIntArrayRef grids, bool causal) {
  const Grid queries = Grid::of(grids, 0), keys = Grid::of(grids, 1);
  const int64_t N = match.size(2), m = first.guard_int(__FILE__, __LINE__);
  const auto square = [&](int64_t radius, bool down_first) {  // offsets, [(2 radius + 1)^2]
    const Tensor line = at::arange(-radius, radius + 1, match.options());
    return (down_first ? line.unsqueeze(1) : line.unsqueeze(0)).expand({2 * radius + 1, 2 * radius + 1}).flatten();
  };
  const Tensor i = at::arange(m, N, match.options()).unsqueeze(1);  // [n,1]
  const Tensor qy = i.floor_divide(queries.width) + square(query_radius, true), qx = i.remainder(queries.width) + square(query_radius, false);
  const Tensor j = qy * queries.width + qx;  // [n,Q]
  Tensor exists = (qy >= 0) & (qy < queries.height) & (qx >= 0) & (qx < queries.width) & (j < N);
  if (causal) exists = exists & (j <= i);
  const Tensor near = match.index_select(2, j.clamp(0, std::max<int64_t>(N - 1, 0)).flatten()).unflatten(2, j.sizes()).unsqueeze(4);  // [B,H,n,Q,1]
  const Tensor ky = near.floor_divide(keys.width) + square(key_radius, true), kx = near.remainder(keys.width) + square(key_radius, false);
  Tensor inside = exists.unsqueeze(2) & (ky >= 0) & (ky < keys.height) & (kx >= 0) & (kx < keys.width);
  const Tensor key = ky * keys.width + kx;  // [B,H,n,Q,K]
  if (causal) inside = inside & (key <= i.unsqueeze(2));
  const Tensor found = key.masked_fill(inside.logical_not(), -1).flatten(3);
  return causal ? at::cat({found, i.expand({found.size(0), found.size(1), -1, -1})}, 3) : found;
}

Tensor match_support_meta(const Tensor& match, Size first, int64_t query_radius, int64_t key_radius, c10::SymIntArrayRef, bool causal) {
  const int64_t q = 2 * query_radius + 1, k = 2 * key_radius + 1;
  return match.new_empty_symint({extent(match, 0), extent(match, 1), extent(match, 2) - first, q * q * k * k + (causal ? 1 : 0)});
}

std::array<Size, 4> sizes_of(const PatchMatch& o) { return {o.query_height, o.query_width, o.key_height, o.key_width}; }

}  // namespace

FOVEATE_OP(patch_match,
           "_patch_match(Tensor q, Tensor k, Tensor start, Tensor steps, Tensor? past, Tensor? key_mask, SymInt[] grids, bool is_scan, float decay, "
           "bool causal) -> Tensor",
           {.formula = &patch_match_formula, .meta = &patch_match_meta})
FOVEATE_OP(match_support, "_match_support(Tensor match, SymInt first, int query_radius, int key_radius, SymInt[] grids, bool causal) -> Tensor",
           {.formula = &match_support_formula, .meta = &match_support_meta})

Tensor patch_match(const Tensor& q, const Tensor& k, const Tensor& start, const Tensor& steps, const optional<Tensor>& past, const PatchMatch& o) {
  const auto grids = sizes_of(o);
  return primitive<decltype(patch_match_formula)>("foveate::_patch_match")
      .call(q.detach(), k.detach(), start, steps.detach(), past, o.key_mask, grids, o.propagation == Propagation::scan, o.decay, o.causal);
}

Tensor match_support(const Tensor& match, int64_t query_radius, int64_t key_radius, const Size& m, const PatchMatch& o) {
  const auto grids = sizes_of(o);
  return primitive<decltype(match_support_formula)>("foveate::_match_support").call(match, m, query_radius, key_radius, grids, o.causal);
}

}  // namespace foveate::ops
