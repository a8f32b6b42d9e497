#include <foveate/cluster_attention.h>

#include <foveate/attention_formula.h>
#include <foveate/op.h>

#include <limits>

namespace foveate::ops {
namespace {

/// One call of the primitive foveate::_cluster_attention.
struct Arguments {
  Tensor q, k, v;
  optional<Tensor> q_index, k_index, key_mask, query_mask, label, meetings, dropout_seed;
  Size causal_keys = 0;
  optional<double> self_score;
  int64_t q_size = 0, k_size = 0, before = 0, after = 0;
  bool circular = false, self_seen = true;
  double scale = 1, dropout = 0;

  void fields(auto&& f) {
    f("q", q, "queries");
    f("k", k, "keys");
    f("v", v, "values");
    f("q_index", q_index, "int");
    f("k_index", k_index, "int");
    f("key_mask", key_mask, "bool");
    f("query_mask", query_mask, "bool");
    f("label", label, "int");
    f("meetings", meetings, "int");
    f("dropout_seed", dropout_seed, "int");
    f("causal_keys", causal_keys, "keys that causality hides; 0: none");
    f("self_score", self_score, "of a token and itself");
    f("q_size", q_size, "places of a cluster");
    f("k_size", k_size, "places of a cluster");
    f("before", before, "clusters");
    f("after", after, "clusters");
    f("circular", circular, "whether the ends meet");
    f("self_seen", self_seen, "whatever masks say");
    f("scale", scale, "of the products");
    f("dropout", dropout, "probability");
  }
};

/// The token at each place, cut into clusters: [B,H,C,size], -1 for none.
Tensor in_clusters(const optional<Tensor>& index, const Tensor& x, int64_t size) {
  const Tensor line = index ? *index : at::arange(x.size(2), x.options().dtype(at::kLong)).expand({x.size(0), x.size(1), -1});
  const int64_t places = line.size(2), run = size > 0 ? size : std::max<int64_t>(places, 1), short_by = (run - places % run) % run;
  return (short_by > 0 ? at::constant_pad_nd(line, {0, short_by}, -1) : line).unflatten(2, {(places + short_by) / run, run});
}

/// What stands in a cluster [B,H,C,size,...], beside what stands in its neighbours: [B,H,C,(before + 1 + after) size,...].
Tensor around(const Arguments& c, const Tensor& x, const at::Scalar& nothing) {
  if (c.before == 0 && c.after == 0) return x;
  const int64_t clusters = x.size(2);
  std::vector<Tensor> parts;
  for (int64_t shift = -c.before; shift <= c.after; ++shift) {
    if (c.circular) {
      parts.push_back(x.roll(-shift, 2));
      continue;
    }
    const int64_t left = std::clamp<int64_t>(-shift, 0, clusters), right = std::clamp<int64_t>(shift, 0, clusters);
    std::vector<int64_t> padding(static_cast<std::size_t>(2 * (x.dim() - 2)), 0);
    padding[padding.size() - 2] = left;
    padding[padding.size() - 1] = right;
    parts.push_back(at::constant_pad_nd(x.narrow(2, right, clusters - left - right), padding, nothing));
  }
  return at::cat(parts, 3);
}

/// The rows of x [B,H,N,D] at tokens [B,H,C,w]: [B,H,C,w,D]; any row where there is no token.
Tensor rows_at(const Tensor& x, const Tensor& token) {
  return x.gather(2, token.clamp_min(0).flatten(2).unsqueeze(3).expand({-1, -1, -1, x.size(3)})).unflatten(2, {token.size(2), token.size(3)});
}

/// The numbers of x [B or 1,N] at tokens [B,H,C,w].
Tensor at_tokens(const Tensor& x, const Tensor& token) {
  return x.unsqueeze(1).expand({token.size(0), token.size(1), -1}).gather(2, token.clamp_min(0).flatten(2)).view(token.sizes());
}

/// In how many rounds the tokens of a pair meet.
Tensor count_meetings(const Tensor& meetings, const Tensor& tq, const Tensor& tk) {
  const Tensor a = meetings.select(0, 0), b = meetings.select(0, 1);  // [B,H,R,N]
  const auto of = [](const Tensor& where, int64_t r, const Tensor& token) {
    return where.select(2, r).gather(2, token.clamp_min(0).flatten(2)).view(token.sizes());
  };
  Tensor count = at::zeros({}, tq.options());
  for (int64_t r = 0; r < a.size(2); ++r) {
    const Tensor here = of(a, r, tq).unsqueeze(4);  // [B,H,C,w,1]
    count = count + (here == of(a, r, tk).unsqueeze(3)).to(at::kLong) + (here == of(b, r, tk).unsqueeze(3)).to(at::kLong);
  }
  return count;
}

OutAndLse cluster_attention_formula(const Arguments& c) {
  const auto type = accumulation_type(c.q.scalar_type());
  const Tensor tq = in_clusters(c.q_index, c.q, c.q_size), own = in_clusters(c.k_index, c.k, c.k_size);  // [B,H,C,w], [B,H,C,wk]
  TORCH_CHECK_VALUE(tq.size(2) == own.size(2), "cluster_attention: q_size and k_size must cut queries and keys into equally many clusters, got ",
                    tq.size(2), " of queries and ", own.size(2), " of keys");
  const Tensor tk = around(c, own, -1);  // [B,H,C,W]
  const Tensor k = around(c, rows_at(c.k, own).to(type), 0), v = around(c, rows_at(c.v, own).to(type), 0);
  const Tensor row = tq.unsqueeze(4), column = tk.unsqueeze(3);
  const Tensor same = row == column, there = (row >= 0) & (column >= 0);
  Tensor s = at::matmul(rows_at(c.q, tq).to(type), k.transpose(-1, -2)) * c.scale;  // [B,H,C,w,W]
  Tensor seen = there;
  if (c.key_mask) seen = seen & at_tokens(*c.key_mask, tk).unsqueeze(3);
  if (c.query_mask) seen = seen & at_tokens(*c.query_mask, tq).unsqueeze(4);
  if (c.causal_keys != 0) seen = seen & ((column <= row) | (column >= c.causal_keys.guard_int(__FILE__, __LINE__)));
  if (c.self_score) {
    s = s.masked_fill(same, *c.self_score);
    if (c.self_seen) seen = seen | (same & there);
  }
  if (c.label) {
    const auto cut = [&](const Tensor& like) { return in_clusters(c.label, c.q, c.q_size).view(like.sizes()); };
    seen = seen & (cut(tq).unsqueeze(4) == around(c, cut(own), -1).unsqueeze(3));
  }
  if (c.meetings) s = s - (count_meetings(*c.meetings, tq, tk).to(type) + 1e-9).log();
  auto [p, lse] = safe_softmax(s.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity()));
  const int64_t places = c.q_index ? c.q_index->size(2) : c.q.size(2);
  if (c.dropout_seed) {
    const Tensor place = at::arange(tq.numel(), tq.options()).view_as(row), slot = at::arange(tk.size(3), tq.options());
    p = p * kept_by_seed(place, slot, *c.dropout_seed, c.dropout).to(type) / (1 - c.dropout);
  }
  const Tensor out = at::matmul(p, v).flatten(2, 3).narrow(2, 0, places);
  return {out.to(c.q.scalar_type()).contiguous(), lse.flatten(2, 3).narrow(2, 0, places).contiguous()};
}

OutAndLse cluster_attention_meta(const Arguments& c) {
  const auto places = c.q_index ? extent(*c.q_index, 2) : extent(c.q, 2);
  return {c.q.new_empty_symint({extent(c.q, 0), extent(c.q, 1), places, extent(c.v, 3)}),
          c.q.new_empty_symint({extent(c.q, 0), extent(c.q, 1), places}, c.q.options().dtype(accumulation_type(c.q.scalar_type())))};
}

}  // namespace

FOVEATE_OP(cluster_attention, schema_of<Arguments>("_cluster_attention") + " -> (Tensor out, Tensor lse)",
           {.formula = structured<&cluster_attention_formula>(), .meta = structured<&cluster_attention_meta>()})

Attended cluster_attention(const Tensor& q, const Tensor& k, const Tensor& v, const ClusterAttention& o) {
  check_qkv("cluster_attention", q, k, v);
  TORCH_CHECK_VALUE(o.q_size >= 0 && o.k_size >= 0 && o.before >= 0 && o.after >= 0,
                    "cluster_attention: q_size, k_size, before, after must not be negative, got ", o.q_size, ", ", o.k_size, ", ", o.before, ", ",
                    o.after);
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, "cluster_attention: dropout must lie in [0, 1), got ", o.dropout);
  auto stack = call("foveate::_cluster_attention", Arguments{.q = q,
                                                             .k = k,
                                                             .v = v,
                                                             .q_index = o.q_index,
                                                             .k_index = o.k_index,
                                                             .key_mask = o.key_mask,
                                                             .query_mask = o.query_mask,
                                                             .label = o.label,
                                                             .meetings = o.meetings,
                                                             .dropout_seed = o.dropout_seed,
                                                             .causal_keys = o.causal ? o.causal_keys.value_or(extent(k, 2)) : Size(0),
                                                             .self_score = o.self_score,
                                                             .q_size = o.q_size,
                                                             .k_size = o.k_size,
                                                             .before = o.before,
                                                             .after = o.after,
                                                             .circular = o.circular,
                                                             .self_seen = o.self_seen,
                                                             .scale = o.scale.value_or(default_scale(q)),
                                                             .dropout = o.dropout});
  return {.out = stack[0].toTensor(), .lse = stack[1].toTensor()};
}

}  // namespace foveate::ops
