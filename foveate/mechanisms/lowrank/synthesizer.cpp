#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/init.h>
#include <foveate/synthesizer.h>
#include <foveate/table_attention.h>

#include <algorithm>

namespace foveate {
namespace {

using Kind = SynthesizerKind;
using Mixture = SynthesizerMixture;

std::vector<Kind> kinds(const Synthesizer::Options& o) { return o.kinds.value_or(std::vector{Kind::dense}); }
bool has(const Synthesizer::Options& o, Kind kind) {
  const auto all = kinds(o);
  return std::find(all.begin(), all.end(), kind) != all.end();
}
/// Queries serve two kinds.
bool has_queries(const Synthesizer::Options& o) { return has(o, Kind::vanilla) || has(o, Kind::dense_query); }

/// a and c of factorized_dense.
std::pair<int64_t, int64_t> tiles(const Synthesizer::Options& o) {
  int64_t a = o.rows.value_or(static_cast<int64_t>(std::sqrt(static_cast<double>(o.max_len))));
  while (!o.rows && o.max_len % a != 0) --a;
  return {a, o.max_len / a};
}

/// The scores of queries from `start` on before all keys, in two parts: products of rows [B or 1,H,N,*] with columns [B or 1,H,M,*],
/// and tables [B or 1,H,N or 1,M].
struct Scores {
  std::vector<Tensor> rows, columns, tables;
};

/// N queries from `start` on, before M keys.
struct Places {
  Size start, N, M;
};

/// What the kind's scores are multiplied by, nothing for 1.
using Weight = optional<Tensor>;

Weight weight(const Synthesizer::Options& o, const Synthesizer::Parameters& p, std::size_t which) {
  if (kinds(o).size() == 1 || o.mixture == Mixture::sum) return {};
  TORCH_CHECK_VALUE(p.alpha, "synthesizer: alpha is needed to mix kinds");
  if (o.mixture == Mixture::softmax_alpha) return p.alpha->softmax(0).select(0, static_cast<int64_t>(which));
  const Tensor second = p.alpha->sigmoid().squeeze(0);
  return which == 0 ? 1 - second : second;
}

const Tensor& needed(const optional<Tensor>& parameter, const char* name) {
  TORCH_CHECK_VALUE(parameter, "synthesizer: ", name, " is needed by its kind");
  return *parameter;
}
const layers::Linear& needed(const optional<layers::Linear>& parameter, const char* name) {
  TORCH_CHECK_VALUE(parameter, "synthesizer: ", name, " is needed by its kind");
  return *parameter;
}

/// x [B,N,E]; k [B,H,M,D], of vanilla.
Scores synthesize(const Synthesizer::Options& o, const Synthesizer::Parameters& p, const Tensor& x, const Tensor& k, const Places& places) {
  Scores s;
  const auto weighted = [](const Tensor& scores, const Weight& w) { return w ? scores * w->to(scores.scalar_type()) : scores; };
  const auto first = [&](const Tensor& t, int64_t dim) { return layers::part_of(t, dim, 0, places.M); };            // columns
  const auto here = [&](const Tensor& t, int64_t dim) { return layers::part_of(t, dim, places.start, places.N); };  // rows
  const Tensor q = has_queries(o) ? split_heads(needed(p.query, "query")(x), o.num_heads) : Tensor();               // [B,H,N,D]
  const auto all = kinds(o);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Weight w = weight(o, p, i);
    const auto product = [&](const Tensor& rows, const Tensor& columns) {
      s.rows.push_back(weighted(rows, w));
      s.columns.push_back(columns);
    };
    switch (all[i]) {
      case Kind::random: {
        const Tensor& table = needed(o.fixed ? p.fixed_table : p.table, o.fixed ? "fixed_table" : "table");
        s.tables.push_back(weighted(here(first(table, 2), 1), w).unsqueeze(0));
        break;
      }
      case Kind::factorized_random:
        product(here(needed(p.row_factors, "row_factors"), 1).unsqueeze(0), first(needed(p.column_factors, "column_factors"), 1).unsqueeze(0));
        break;
      case Kind::dense:
        product(split_heads(needed(p.hidden, "hidden")(x).relu(), o.num_heads), first(needed(p.hidden_keys, "hidden_keys"), 1).unsqueeze(0));
        s.tables.push_back(weighted(first(needed(p.scores_bias, "scores_bias"), 1).unsqueeze(1).unsqueeze(0), w));  // the same for every row
        break;
      case Kind::dense_query: product(q.relu(), first(needed(p.query_keys, "query_keys"), 2).transpose(1, 2).unsqueeze(0)); break;
      case Kind::factorized_dense: {
        const auto [a, c] = tiles(o);
        const Tensor A = split_heads(needed(p.tile_rows, "tile_rows")(x), o.num_heads);        // [B,H,N,a]
        const Tensor C = split_heads(needed(p.tile_columns, "tile_columns")(x), o.num_heads);  // [B,H,N,c]
        const bool outer = o.tile == SynthesizerTile::outer;
        const Tensor products = outer ? (A.unsqueeze(-1) * C.unsqueeze(-2)).flatten(3) : A.repeat({1, 1, 1, c}) * C.repeat({1, 1, 1, a});
        s.tables.push_back(weighted(first(products, 3), w));
        break;
      }
      case Kind::vanilla: product(q * o.scale.value_or(default_scale(q)), k); break;
    }
  }
  return s;
}

/// Of tensors [B or 1,H,...], the joined last dimension, B alike.
Tensor side_by_side(std::vector<Tensor> parts, const Size& B) {
  for (Tensor& part : parts) part = part.expand_symint({B, -1, -1, -1});
  return parts.size() == 1 ? parts.front() : at::cat(parts, 3);
}

/// a b, with the table, which broadcasts, added while it is made.
Tensor product_plus(const Tensor& a, const Tensor& b, const optional<Tensor>& table) {
  if (!table) return at::matmul(a, b);
  const Size B = extent(a, 0), H = extent(a, 1);
  return at::baddbmm(table->expand_symint({B, H, -1, -1}).flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1)).unflatten_symint(0, {B, H});
}

/// Backward computes products of rows and columns again, unless they are so wide that keeping all N x M is cheaper.
constexpr int64_t widest_recomputed = 128;

Tensor attend(const Synthesizer::Options& o, const Scores& s, const Tensor& v, const optional<Tensor>& key_mask) {
  const Size B = extent(v, 0);
  optional<Tensor> table;
  for (const Tensor& one : s.tables) table = table ? *table + one : one;
  if (!o.softmax) {
    Tensor weights = table.value_or(v.new_zeros({}));
    if (!s.rows.empty()) weights = weights + at::matmul(side_by_side(s.rows, B), side_by_side(s.columns, B).transpose(2, 3));
    if (o.causal) weights = weights * layers::causal_mask(weights).to(weights.scalar_type());
    return at::matmul(weights, masked_rows(v, key_mask));
  }
  if (s.rows.empty()) {
    const bool alike = kinds(o) == std::vector{Kind::random};
    return layers::table_attention(alike ? table->squeeze(0) : *table, v, o.causal, key_mask);
  }
  const Tensor rows = side_by_side(s.rows, B), columns = side_by_side(s.columns, B);
  if (plain_extent(rows, 3) > widest_recomputed) {
    return layers::table_attention(product_plus(rows, columns.transpose(2, 3), table), v, o.causal, key_mask);
  }
  return ops::attention(rows, columns, v, {.key_mask = key_mask, .causal = o.causal, .bias = table, .scale = 1}).out;
}

std::pair<Tensor, Synthesizer::State> run(const Synthesizer::Options& o, const Synthesizer::Parameters& p, const Synthesizer::Inputs& in,
                                          const Synthesizer::State& past) {
  const auto heads = [&](const layers::Linear& linear) { return split_heads(linear(in.x), o.num_heads); };
  Tensor v = heads(p.value);
  Tensor k = has(o, Kind::vanilla) ? heads(needed(p.key, "key")) : v.narrow(3, 0, 0);
  const Size N = extent(v, 2);
  if (past.v.defined()) {
    v = at::cat({past.v, v}, 2);
    k = at::cat({past.k, k}, 2);
  }
  const Size M = extent(v, 2);
  const bool tables = kinds(o) != std::vector{Kind::vanilla};
  TORCH_CHECK_VALUE(!tables || M <= o.max_len, "synthesizer: x must have no more than max_len = ", o.max_len, " tokens, got ", M);
  const Tensor attended = merge_heads(attend(o, synthesize(o, p, in.x, k, {.start = M - N, .N = N, .M = M}), v, in.key_mask));
  return {p.out ? (*p.out)(attended) : attended, {.v = v, .k = k}};
}

}  // namespace

void Synthesizer::check(const Options& o) {
  TORCH_CHECK_VALUE(o.embed_dim > 0 && o.num_heads > 0 && o.max_len > 0, "synthesizer: embed_dim, num_heads and max_len must be positive, got ",
                    o.embed_dim, ", ", o.num_heads, " and ", o.max_len);
  TORCH_CHECK_VALUE((o.head_dim && o.value_dim) || o.embed_dim % o.num_heads == 0,
                    "synthesizer: num_heads must divide embed_dim where head_dim and value_dim are not given, got ", o.num_heads, " and ",
                    o.embed_dim);
  auto all = kinds(o);
  TORCH_CHECK_VALUE(!all.empty(), "synthesizer: kinds must name at least one");
  TORCH_CHECK_VALUE(o.mixture != Mixture::sigmoid_alpha || all.size() <= 2, "synthesizer: mixture sigmoid_alpha joins two kinds, got ", all.size());
  std::sort(all.begin(), all.end());
  TORCH_CHECK_VALUE(std::adjacent_find(all.begin(), all.end()) == all.end(), "synthesizer: kinds must differ from each other");
  TORCH_CHECK_VALUE(o.rank > 0 && o.hidden_dim.value_or(1) > 0, "synthesizer: rank and hidden_dim must be positive, got ", o.rank, " and ",
                    o.hidden_dim.value_or(1));
  TORCH_CHECK_VALUE(!o.rows || (*o.rows > 0 && o.max_len % *o.rows == 0), "synthesizer: rows must divide max_len = ", o.max_len, ", got ",
                    o.rows.value_or(0));
}

Synthesizer::Parameters Synthesizer::init(const Options& o) {
  using layers::Linear;
  const int64_t E = o.embed_dim, H = o.num_heads, L = o.max_len, D = o.head_dim.value_or(E / H), Dv = o.value_dim.value_or(E / H);
  Parameters p{.value = Linear::init(E, H * Dv, o.bias)};
  if (o.out_projection) p.out = Linear::init(H * Dv, E, /*bias=*/false);
  if (has_queries(o)) p.query = Linear::init(E, H * D, o.bias);
  const auto draw = [&](int64_t rows, int64_t columns) { return layers::xavier_uniform({H * rows, columns}).view({H, rows, columns}); };
  for (const Kind kind : kinds(o)) {
    switch (kind) {
      case Kind::random: (o.fixed ? p.fixed_table : p.table) = draw(L, L); break;
      case Kind::factorized_random:
        p.row_factors = draw(L, o.rank);
        p.column_factors = draw(L, o.rank);
        break;
      case Kind::dense: {
        const int64_t inner = o.hidden_dim.value_or(E);
        p.hidden = Linear::init(E, H * inner);
        const Linear second = Linear::init(inner, H * L);
        p.hidden_keys = second.weight.view({H, L, inner});
        p.scores_bias = second.bias->view({H, L});
        break;
      }
      case Kind::dense_query: p.query_keys = draw(D, L); break;
      case Kind::factorized_dense: {
        const auto [a, c] = tiles(o);
        p.tile_rows = Linear::init(E, H * a);
        p.tile_columns = Linear::init(E, H * c);
        break;
      }
      case Kind::vanilla: p.key = Linear::init(E, H * D, o.bias); break;
    }
  }
  if (kinds(o).size() > 1 && o.mixture != Mixture::sum) {
    p.alpha = layers::zeros({o.mixture == Mixture::sigmoid_alpha ? 1 : static_cast<int64_t>(kinds(o).size())});
  }
  return p;
}

Tensor Synthesizer::forward(const Options& o, const Parameters& p, const Inputs& in) { return run(o, p, in, {}).first; }

std::pair<Tensor, Synthesizer::State> Synthesizer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(o.causal, "synthesizer_step: causal must be True for the form to stream, got False");
  return run(o, p, in, past);
}

FOVEATE_MECHANISM(Synthesizer)

}  // namespace foveate
