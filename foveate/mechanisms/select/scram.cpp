#include <foveate/edge_attention.h>
#include <foveate/kv_cache.h>
#include <foveate/scram.h>

namespace foveate {
namespace {

Size side(const std::vector<int64_t>& grid, std::size_t which, const Size& length) {
  return grid.empty() ? (which == 0 ? Size(1) : length) : Size(grid[which]);
}

/// Refuses a sequence that does not fill its grid; if causal, it may end anywhere.
void check_length(const char* name, const std::vector<int64_t>& grid, const Size& length, bool causal) {
  if (grid.empty()) return;
  const int64_t places = grid[0] * grid[1];
  TORCH_CHECK_VALUE(causal ? length <= places : length == places, "scram_attention: ", name, " must be of the grid ", at::IntArrayRef(grid), " = ",
                    places, ", got ", length);
}

/// First matches [B,H,n] of the queries from m on.
Tensor drawn_matches(const Tensor& q, const Tensor& k, const Size& m, bool causal) {
  const Tensor u = at::rand_symint(q.sym_sizes().slice(0, 3), q.options().dtype(at::kDouble));
  const auto whole = q.options().dtype(at::kLong);
  const Tensor count = causal ? at::arange(m, m + extent(q, 2), whole) + 1 : at::ones_symint({extent(k, 2)}, whole).sum();
  return at::minimum((u * count).floor().to(at::kLong), count - 1);
}

struct Attended {
  ScramAttention::Outputs outputs;
  Tensor matches;  // [T+1,B,H,m+n]
};

/// The last n of m + n queries.
Attended attend(const ScramAttention::Options& o, const ScramAttention::Inputs& in, const Tensor& k, const Tensor& v, const optional<Tensor>& past) {
  const Size n = extent(in.q, 2), m = past ? extent(*past, 3) : Size(0), M = extent(k, 2);
  check_length("q", o.query_grid, m + n, o.causal);
  check_length("k", o.key_grid, M, o.causal);
  if (o.causal) TORCH_CHECK_VALUE(M == m + n, "scram_attention: k must be as long as q if causal, got ", M, " and ", m + n);
  if (in.key_mask)
    TORCH_CHECK_VALUE(extent(*in.key_mask, 1) == M, "scram_attention: key_mask must be [B,M] with M = ", M, ", got ", in.key_mask->sym_sizes());
  TORCH_CHECK_VALUE(!in.search || (extent(*in.search, 0) == o.iterations && extent(*in.search, 1) == o.search_levels),
                    "scram_attention: search must be [iterations,levels,B,H,N,2] = [", o.iterations, ",", o.search_levels, ",...], got ",
                    in.search->sym_sizes());
  const ops::PatchMatch how{.query_height = side(o.query_grid, 0, m + n),
                            .query_width = side(o.query_grid, 1, m + n),
                            .key_height = side(o.key_grid, 0, M),
                            .key_width = side(o.key_grid, 1, M),
                            .propagation = o.propagation,
                            .decay = o.search_decay,
                            .causal = o.causal,
                            .key_mask = in.key_mask};
  const Tensor start = in.init_match ? *in.init_match : drawn_matches(in.q, k, m, o.causal);
  const Tensor search =
      in.search ? *in.search : at::rand_symint({o.iterations, o.search_levels, extent(in.q, 0), extent(in.q, 1), n, 2}, in.q.options()) * 2 - 1;
  const Tensor matches = ops::patch_match(in.q, k, start, search, past, how), match = matches.select(0, -1);
  const Tensor support = ops::match_support(match, o.query_radius, o.key_radius, m, how);  // [B,H,n,S]
  const auto found = ops::edge_attention(in.q, k, v, support.flatten(2), {.key_mask = in.key_mask, .scale = o.scale});
  return {.outputs = {.out = found.out, .match = match.slice_symint(2, m), .support_size = found.degree}, .matches = matches};
}

}  // namespace

void ScramAttention::check(const Options& o) {
  for (const auto& [name, grid] : {std::pair("query_grid", &o.query_grid), std::pair("key_grid", &o.key_grid)}) {
    TORCH_CHECK_VALUE(grid->empty() || (grid->size() == 2 && grid->front() > 0 && grid->back() > 0), "scram_attention: ", name,
                      " must be two positive numbers, or empty, got ", at::IntArrayRef(*grid));
  }
  TORCH_CHECK_VALUE(o.iterations >= 0 && o.search_levels >= 0, "scram_attention: iterations and search_levels must not be negative, got ",
                    o.iterations, " and ", o.search_levels);
  TORCH_CHECK_VALUE(o.query_radius >= 0 && o.key_radius >= 0, "scram_attention: query_radius and key_radius must not be negative, got ",
                    o.query_radius, " and ", o.key_radius);
  TORCH_CHECK_VALUE(o.search_decay > 0 && o.search_decay <= 1, "scram_attention: search_decay must lie in (0, 1], got ", o.search_decay);
  TORCH_CHECK_VALUE(!o.causal || o.query_grid == o.key_grid, "scram_attention: query_grid and key_grid must be equal if causal, got ",
                    at::IntArrayRef(o.query_grid), " and ", at::IntArrayRef(o.key_grid));
}

ScramAttention::Outputs ScramAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  return attend(o, in, in.k, in.v, {}).outputs;
}

std::pair<ScramAttention::Outputs, ScramAttention::State> ScramAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& state) {
  TORCH_CHECK_VALUE(o.causal && !o.query_grid.empty(), "scram_attention_step: causal must be True and query_grid given for the form to stream, got ",
                    o.causal, " and ", at::IntArrayRef(o.query_grid));
  auto [k, v] = layers::KVCache{.k = state.k, .v = state.v}.then(in.k, in.v);
  auto [outputs, matches] = attend(o, in, k, v, state.matches.defined() ? optional(state.matches) : std::nullopt);
  return {std::move(outputs), State{.k = k, .v = v, .matches = matches}};
}

FOVEATE_MECHANISM(ScramAttention)

}  // namespace foveate
