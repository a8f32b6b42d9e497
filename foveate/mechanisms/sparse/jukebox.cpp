#include <foveate/attention.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/jukebox.h>
#include <foveate/sparse_attention.h>

namespace foveate {
namespace {

using layers::WeightDropout;
using patterns::Pattern;
using enum JukeboxPattern;

/// How many rows N positions take.
Size rows_of(const Size& N, int64_t block_length) { return (N + (block_length - 1)) / block_length; }

/// Within columns: each is a sequence of its own, of one position in every row.
Tensor attend_in_columns(const JukeboxAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                         const WeightDropout& dropout) {
  const int64_t columns = o.block_length;
  const Size N = extent(q, 2), rows = rows_of(N, columns);
  const Tensor place = at::arange(rows * columns, q.options().dtype(at::kLong));
  const auto split = [&](const Tensor& x) {  // [B,N,...] -> [B columns,rows,...]; the last stands in for those behind the end
    return x.index_select(1, place.clamp_max(N - 1)).unflatten_symint(1, {rows, columns}).transpose(1, 2).flatten(0, 1);
  };
  const auto by_head = [&](const Tensor& x) { return split(x.transpose(1, 2)).transpose(1, 2); };  // [B columns,H,rows,D]
  optional<Tensor> there;                                                                          // [B columns,rows]
  if (key_mask || !o.causal) {  // else only queries behind the end see the keys behind the end
    there = split(key_mask.value_or(at::ones_symint({extent(k, 0), N}, k.options().dtype(at::kBool)))) &
            (place < N).unflatten_symint(0, {rows, columns}).t().repeat_symint({extent(k, 0), 1});
  }
  const Tensor out = ops::attention(by_head(q), by_head(k), by_head(v), dropout.with({.key_mask = there, .causal = o.causal, .scale = o.scale})).out;
  // Back to one line by index: torch.export cannot bound a folding of rows and columns.
  const Tensor n = at::arange(N, place.options()), h = at::arange(extent(q, 1), place.options()).unsqueeze(-1);
  const Tensor column = at::arange(extent(q, 0), place.options()).view_symint({-1, 1, 1}) * columns + n.remainder(columns);  // [B,1,N]
  const c10::List<optional<Tensor>> where({column, h, n.floor_divide(columns)});
  return at::index(out, where);
}

/// Attention to `nulls` keys of logit 0 and value 0 besides: their share of the sum is lost.
Tensor with_null_keys(const ops::Attended& attended, int64_t nulls) {
  const Tensor share = (attended.lse - std::log(static_cast<double>(nulls))).sigmoid();  // exp(lse) / (exp(lse) + nulls)
  return attended.out * share.unsqueeze(-1).to(attended.out.scalar_type());
}

/// The last `spread` keys of each row summarise it.
struct Summaries {
  int64_t length, spread;
  explicit Summaries(const JukeboxAttention::Options& o) : length(o.block_length), spread(o.pattern == summary ? 1 : o.spread) {}

  /// Where those of N positions stand: [rows spread]. Those of an unfinished row may stand behind the end.
  Tensor places(const Size& N, const Tensor& like) const {
    const Tensor number = at::arange(rows_of(N, length) * spread, like.options().dtype(at::kLong));
    return number.floor_divide(spread) * length + (length - spread) + number.remainder(spread);
  }
  /// x [B,...,N,...] -> [B,...,rows spread,...]; the last stands in for those behind the end.
  Tensor pick(const Tensor& x, int64_t dim) const { return x.index_select(dim, places(extent(x, dim), x).clamp_max(extent(x, dim) - 1)); }

  /// Attention of the last positions, of N so far, to the summaries k [B,H,S,D] of all rows.
  Tensor attend(const JukeboxAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                const Size& N, const WeightDropout& dropout = {}) const {
    const Tensor j = places(N, q);  // [S]
    const Tensor i = at::arange(N - extent(q, 2), N, j.options()).unsqueeze(-1);
    Tensor seen = o.causal ? j <= i : (j < N).unsqueeze(0);  // [N or 1,S]
    if (o.blocks) seen = seen & (j < (*o.blocks - 1) * length);
    const auto there = key_mask ? optional(pick(*key_mask, 1)) : std::nullopt;
    return with_null_keys(ops::attention(q, k, v, dropout.with({.mask = seen, .key_mask = there, .scale = o.scale})), spread);
  }

  /// The same of new tokens, the rows finished before being known by their summaries.
  std::pair<Tensor, JukeboxState> step(const JukeboxAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v,
                                       const optional<Tensor>& key_mask, const JukeboxState& past) const {
    const auto behind = [](const Tensor& before, const Tensor& x) { return before.defined() ? at::cat({before, x}, 2) : x; };
    const Tensor row_k = behind(past.k, k), row_v = behind(past.v, v);  // from the start of a row
    const Tensor keys = behind(past.summary_k, pick(row_k, 2)), values = behind(past.summary_v, pick(row_v, 2));
    const Size before = past.summary_k.defined() ? extent(past.summary_k, 2) / spread : Size(0), finished = extent(row_k, 2) / length;  // rows
    const Tensor out = attend(o, q, keys, values, key_mask, before * length + extent(row_k, 2));
    const auto kept = [&](const Tensor& x) { return x.narrow_symint(2, 0, (before + finished) * spread); };
    const auto at_hand = [&](const Tensor& x) { return x.slice_symint(2, finished * length); };
    return {out, {.k = at_hand(row_k), .v = at_hand(row_v), .summary_k = kept(keys), .summary_v = kept(values)}};
  }
};

/// How many tokens in front all see.
int64_t primed(const JukeboxAttention::Options& o) { return o.prime_rounds_up ? (o.prime_len / *o.blocks + 1) * *o.blocks : o.prime_len; }

/// To the keys that a pattern shows; queries are the last ones. The row before is the query's own row, seen from a row earlier.
Tensor attend_by_pattern(const JukeboxAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
                         const WeightDropout& dropout = {}) {
  const bool is_row = o.pattern == block || o.pattern == prev_block;
  Pattern pattern = is_row                         ? patterns::block_diagonal(o.block_length)
                    : o.pattern == transpose_block ? patterns::strided(o.block_length)
                                                   : patterns::keys(0, primed(o));
  if (o.causal && o.pattern != prev_block) pattern = pattern & patterns::causal();
  const Size back = o.pattern == prev_block ? o.block_length : 0;
  const Size offset = extent(k, 2) - extent(q, 2) - back;
  return ops::sparse_attention(q, k, v, pattern, dropout.with({.key_mask = key_mask, .scale = o.scale, .offset = offset})).out;
}

/// Of M tokens since the start of a row, those that later queries see: how many, and from where.
std::pair<Size, Size> kept(const JukeboxAttention::Options& o, const Size& M) {
  const Size in_row = (M - 1) % o.block_length + 1;
  switch (o.pattern) {
    case block: return {in_row, M - in_row};
    case prev_block: {
      const Size count = M.min(in_row + o.block_length);
      return {count, M - count};
    }
    case prime: return {M.min(primed(o)), 0};
    default: return {M, 0};
  }
}

bool to_summaries(const JukeboxAttention::Options& o) { return o.pattern == summary || o.pattern == summary_spread; }

/// The whole sequence.
Tensor attend(const JukeboxAttention::Options& o, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask,
              const WeightDropout& dropout) {
  TORCH_CHECK_VALUE(o.pattern == cross || extent(k, 2) == extent(q, 2), "jukebox_attention: k must be as many as q, ", extent(q, 2),
                    ", but for pattern cross; got ", extent(k, 2));
  if (o.pattern == dense || o.pattern == cross) {
    return ops::attention(q, k, v, dropout.with({.key_mask = key_mask, .causal = o.causal && o.pattern == dense, .scale = o.scale})).out;
  }
  if (to_summaries(o)) {
    const Summaries rows(o);
    return rows.attend(o, q, rows.pick(k, 2), rows.pick(v, 2), key_mask, extent(q, 2), dropout);
  }
  if (o.pattern == transpose_block) return attend_in_columns(o, q, k, v, key_mask, dropout);
  return attend_by_pattern(o, q, k, v, key_mask, dropout);
}

}  // namespace

void JukeboxAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.block_length > 0, "jukebox: block_length must be positive, got ", o.block_length);
  TORCH_CHECK_VALUE(!o.blocks || *o.blocks > 0, "jukebox: blocks must be positive, got ", o.blocks.value_or(0));
  TORCH_CHECK_VALUE(o.pattern != summary_spread || (o.spread > 0 && o.spread <= o.block_length), "jukebox: spread must lie in 1..block_length, got ",
                    o.spread, " and ", o.block_length);
  TORCH_CHECK_VALUE(o.prime_len >= 0, "jukebox: prime_len must not be negative, got ", o.prime_len);
  TORCH_CHECK_VALUE(!o.prime_rounds_up || o.blocks, "jukebox: prime_rounds_up needs blocks");
  layers::check_dropout("jukebox", "dropout of attention weights", o.dropout);
}

Tensor JukeboxAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  return attend(o, in.q, in.k, in.v, in.key_mask, {o.dropout, in.dropout_seed, false, in.q});
}

std::pair<Tensor, JukeboxAttention::State> JukeboxAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  const auto none = [](const Tensor& x) { return x.slice(2, 0, 0); };
  if (o.pattern == cross) {
    const Tensor out = ops::attention(in.q, in.k, in.v, {.key_mask = in.key_mask, .scale = o.scale}).out;
    return {out, {.k = in.k, .v = in.v, .summary_k = none(in.k), .summary_v = none(in.v)}};
  }
  TORCH_CHECK_VALUE(o.causal, "jukebox_step: causal must be True for the form to stream, got False");
  if (to_summaries(o)) return Summaries(o).step(o, in.q, in.k, in.v, in.key_mask, past);

  const Tensor k = past.k.defined() ? at::cat({past.k, in.k}, 2) : in.k, v = past.v.defined() ? at::cat({past.v, in.v}, 2) : in.v;
  optional<Tensor> key_mask = in.key_mask;
  if (key_mask && o.pattern == prime) {  // what is between the front and the new tokens is seen by nobody
    key_mask = at::cat(
        {key_mask->narrow_symint(1, 0, extent(k, 2) - extent(in.k, 2)), key_mask->slice_symint(1, extent(*key_mask, 1) - extent(in.k, 2))}, 1);
  } else if (key_mask) {
    key_mask = key_mask->slice_symint(1, extent(*key_mask, 1) - extent(k, 2));  // of the keys that are kept
  }
  Tensor out;
  if (o.pattern == dense) out = ops::attention(in.q, k, v, {.key_mask = key_mask, .causal = true, .scale = o.scale}).out;
  else out = attend_by_pattern(o, in.q, k, v, key_mask);
  const auto [count, first] = kept(o, extent(k, 2));
  const auto keep = [&, &count = count, &first = first](const Tensor& x) { return x.narrow_symint(2, first, count); };
  return {out, {.k = keep(k), .v = keep(v), .summary_k = none(k), .summary_v = none(v)}};
}

FOVEATE_MECHANISM(JukeboxAttention)

// --- the layer ---------------------------------------------------------------------------------------------------------------

void JukeboxMultiheadAttention::check(const Options& o) {
  JukeboxAttention::check(o.attention());
  TORCH_CHECK_VALUE(o.embed_dim > 0, "jukebox: embed_dim must be positive, got ", o.embed_dim);
  TORCH_CHECK_VALUE(o.num_heads > 0 && o.width() > 0 && o.width() % o.num_heads == 0, "jukebox: num_heads must divide attention_dim, got ",
                    o.num_heads, " and ", o.width());
  layers::check_dropout("jukebox", "dropout", o.dropout);
}

JukeboxMultiheadAttention::Parameters JukeboxMultiheadAttention::init(const Options& o) {
  const auto projection = [&](int64_t in, int64_t out, double scale) {
    return layers::Linear{.weight = layers::normal({out, in}, 0.02 * scale), .bias = layers::zeros({out})};
  };
  const int64_t E = o.embed_dim, inner = o.width();
  const double out_scale = o.zero_out || o.pattern == cross ? 0 : o.init_scale;
  return {.query = projection(E, inner, o.init_scale),
          .key = projection(E, inner, o.init_scale),
          .value = projection(E, inner, o.init_scale),
          .out = projection(inner, E, out_scale)};
}

Tensor JukeboxMultiheadAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const bool of_context = o.pattern == cross;
  TORCH_CHECK_VALUE(of_context == in.context.has_value(), "jukebox_multihead_attention: context must be given for pattern cross, and no other");
  const auto [q, k, v] = p.project(in.x, of_context ? *in.context : in.x, o.num_heads);
  const Tensor attended = attend(o.attention(), q, k, v, in.key_mask, {o.attention_dropout, in.dropout_seed, training, in.x});
  return layers::dropout(p.join(attended), o.dropout, std::nullopt, training);
}

std::pair<Tensor, JukeboxMultiheadAttention::State> JukeboxMultiheadAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                    State&& past) {
  JukeboxAttention::Inputs heads{.q = split_heads(p.query(in.x), o.num_heads), .k = past.k, .v = past.v, .key_mask = in.key_mask, .dropout_seed = {}};
  const bool of_context = o.pattern == cross;
  TORCH_CHECK_VALUE(of_context ? in.context || past.k.defined() : !in.context,
                    "jukebox_multihead_attention_step: context must be given for the first ", "step of pattern cross, and no other pattern");
  if (!of_context || !past.k.defined()) {
    const Tensor& keys_of = of_context ? *in.context : in.x;
    heads.k = split_heads(p.key(keys_of), o.num_heads);
    heads.v = split_heads(p.value(keys_of), o.num_heads);
  }
  auto [out, next] = JukeboxAttention::step(o.attention(), {}, heads, std::move(past));
  return {p.join(out), std::move(next)};
}

FOVEATE_MECHANISM(JukeboxMultiheadAttention)

}  // namespace foveate
