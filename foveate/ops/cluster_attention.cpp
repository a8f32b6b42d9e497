#include <foveate/cluster_attention.h>

#include "kernels/cluster.h"

#include <foveate/op.h>
#include <foveate/prepared.h>

#include <limits>

namespace foveate::ops {
namespace {

/// One call of the primitive foveate::_cluster_attention.
struct Arguments {
  Tensor q, k, v;
  optional<Tensor> k_weight, q_index, k_index, key_mask, query_mask, label, meetings, dropout_keep, dropout_seed;
  Size causal_keys = 0;
  optional<double> self_score;
  int64_t q_size = 0, k_size = 0, before = 0, after = 0;
  bool circular = false, self_seen = true, merged = false;
  double scale = 1, dropout = 0;

  void fields(auto&& f) {
    f("q", q, "queries");
    f("k", k, "keys");
    f("v", v, "values");
    f("k_weight", k_weight, "of the key and the value at each place");
    f("q_index", q_index, "int");
    f("k_index", k_index, "int");
    f("key_mask", key_mask, "bool");
    f("query_mask", query_mask, "bool");
    f("label", label, "int");
    f("meetings", meetings, "int");
    f("dropout_keep", dropout_keep, "bool");
    f("dropout_seed", dropout_seed, "int");
    f("causal_keys", causal_keys, "keys that causality hides; 0: none");
    f("self_score", self_score, "of a token and itself");
    f("q_size", q_size, "places of a cluster");
    f("k_size", k_size, "places of a cluster");
    f("before", before, "clusters");
    f("after", after, "clusters");
    f("circular", circular, "whether the ends meet");
    f("self_seen", self_seen, "whatever masks say");
    f("merged", merged, "the places of a token");
    f("scale", scale, "of the products");
    f("dropout", dropout, "probability");
  }
};

/// The token at each place, cut into clusters: [B,H,C,size], -1 for none. Rounds [B,H,R,P] are cut one by one.
Tensor in_clusters(const optional<Tensor>& index, const Tensor& x, int64_t size) {
  const Tensor line = index ? *index : at::arange(x.size(2), x.options().dtype(at::kLong)).expand({x.size(0), x.size(1), -1});
  const int64_t places = line.size(-1), run = size > 0 ? size : std::max<int64_t>(places, 1), short_by = (run - places % run) % run;
  const Tensor cut = (short_by > 0 ? at::constant_pad_nd(line, {0, short_by}, -1) : line).unflatten(-1, {(places + short_by) / run, run});
  return line.dim() == 4 ? cut.flatten(2, 3) : cut;
}

/// Places of the line of queries that count: rounds fill up whole clusters.
int64_t places_of(const Arguments& c, const Tensor& tq) {
  if (!c.q_index) return c.q.size(2);
  return c.q_index->dim() == 4 ? tq.size(2) * tq.size(3) : c.q_index->size(2);
}

/// The draw of dropout, a row for each place that counts: [B,H,places,W]
optional<Tensor> kept_at_places(const Arguments& c, int64_t places) {
  if (!c.dropout_keep || c.dropout_keep->dim() == 4) return c.dropout_keep;
  return at::constant_pad_nd(*c.dropout_keep, {0, 0, 0, places / c.dropout_keep->size(2) - c.dropout_keep->size(3)}).flatten(2, 3);
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

void check_clusters(const Tensor& tq, const Tensor& tk) {
  TORCH_CHECK_VALUE(tq.size(2) == tk.size(2), "cluster_attention: q_size and k_size must cut queries and keys into equally many clusters, got ",
                    tq.size(2), " of queries and ", tk.size(2), " of keys");
}

/// Rows of results: one for each place, or for each token.
auto rows_of(const Arguments& c) { return c.q_index && !c.merged ? extent(*c.q_index, 2) : extent(c.q, 2); }

/// Places' results out [B,H,P,Dv], lse [B,H,P], joined for each of N tokens; token [B,H,P], -1 for none.
OutAndLse join_places(const Tensor& out, const Tensor& lse, const Tensor& token, int64_t N) {
  const Tensor to = at::where(token < 0, N, token);  // a row of its own for nobody
  const auto rows = [&](int64_t count) { return std::vector<int64_t>{out.size(0), out.size(1), count}; };
  const double nothing = -std::numeric_limits<double>::infinity();
  const Tensor top = at::full(rows(N + 1), nothing, lse.options()).scatter_reduce(2, to, lse.detach(), "amax");
  const Tensor shift = at::where(top == nothing, 0, top);
  const Tensor share = (lse - shift.gather(2, to)).exp().masked_fill(lse == nothing, 0);  // [B,H,P]
  const Tensor total = lse.new_zeros(rows(N + 1)).scatter_add(2, to, share).narrow(2, 0, N), seen = total > 0;
  std::vector<int64_t> wide = rows(N + 1);
  wide.push_back(out.size(3));
  const Tensor sums = out.new_zeros(wide).scatter_add(2, to.unsqueeze(3).expand_as(out), share.unsqueeze(3) * out).narrow(2, 0, N);
  const Tensor safe = at::where(seen, total, 1);
  return {sums / safe.unsqueeze(3), at::where(seen, shift.narrow(2, 0, N) + safe.log(), nothing)};
}

OutAndLse cluster_attention_formula(const Arguments& c) {
  const auto type = accumulation_type(c.q.scalar_type());
  const Tensor tq = in_clusters(c.q_index, c.q, c.q_size), own = in_clusters(c.k_index, c.k, c.k_size);  // [B,H,C,w], [B,H,C,wk]
  check_clusters(tq, own);
  const Tensor tk = around(c, own, -1);  // [B,H,C,W]
  const optional<Tensor> weight = c.k_weight ? optional(in_clusters(c.k_weight, c.k, c.k_size).to(type).unsqueeze(4)) : std::nullopt;
  const auto keys = [&](const Tensor& x) {  // x [B,H,M,D] -> [B,H,C,W,D]
    const Tensor rows = rows_at(x, own).to(type);
    return around(c, weight ? rows * *weight : rows, 0);
  };
  const Tensor k = keys(c.k), v = keys(c.v);
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
  const int64_t places = places_of(c, tq);
  if (const auto draw = kept_at_places(c, places)) {
    const Tensor keep = at::constant_pad_nd(*draw, {0, 0, 0, tq.size(2) * tq.size(3) - places});
    p = p * keep.view(p.sizes()).to(type) / (1 - c.dropout);
  } else if (c.dropout_seed) {
    const Tensor place = at::arange(tq.numel(), tq.options()).view_as(row), slot = at::arange(tk.size(3), tq.options());
    p = p * kept_by_seed(place, slot, *c.dropout_seed, c.dropout).to(type) / (1 - c.dropout);
  }
  Tensor out = at::matmul(p, v).flatten(2, 3).narrow(2, 0, places), log = lse.flatten(2, 3).narrow(2, 0, places);
  if (c.merged) std::tie(out, log) = join_places(out, log, tq.flatten(2).narrow(2, 0, places), c.q.size(2));
  return {out.to(c.q.scalar_type()).contiguous(), log.contiguous()};
}

OutAndLse cluster_attention_meta(const Arguments& c) {
  const auto rows = rows_of(c);
  return {c.q.new_empty_symint({extent(c.q, 0), extent(c.q, 1), rows, extent(c.v, 3)}),
          c.q.new_empty_symint({extent(c.q, 0), extent(c.q, 1), rows}, c.q.options().dtype(accumulation_type(c.q.scalar_type())))};
}

// --- on the CPU --------------------------------------------------------------------------------------------------------------

template <class scalar> const kernels::ClusterEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().cluster_double;
  else return *cpu_kernels().cluster_float;
}

/// The tensors of a call as the engine wants them, and its arguments, which point into them.
template <class scalar> struct Prepared : Alive {
  const kernels::ClusterEngine<scalar>& run = engine<scalar>();
  kernels::Cluster<scalar> a{};

  explicit Prepared(const Arguments& c) : Alive(c.q) {
    const Tensor tq = in_clusters(c.q_index, c.q, c.q_size), tk = in_clusters(c.k_index, c.k, c.k_size);
    check_clusters(tq, tk);
    a.B = c.q.size(0);
    a.H = c.q.size(1);
    a.N = c.q.size(2);
    a.M = c.k.size(2);
    a.D = c.q.size(3);
    a.Dv = c.v.size(3);
    a.clusters = tq.size(2);
    a.q_size = tq.size(3);
    a.k_size = tk.size(3);
    a.places = places_of(c, tq);
    a.before = c.before;
    a.after = c.after;
    a.circular = c.circular;
    a.q = in_line("q_index", c.q, tq);
    a.k = in_line("k_index", c.k, tk);
    a.v = in_line("k_index", c.v, tk);
    if (c.k_weight) a.k_weight = numbers<scalar>(in_clusters(c.k_weight, c.k, c.k_size));
    a.key_mask = bytes(c.key_mask);
    a.query_mask = bytes(c.query_mask);
    a.causal_keys = c.causal_keys == 0 ? 0 : c.causal_keys.expect_int();
    a.has_self = c.self_score.has_value();
    a.self_seen = c.self_seen;
    a.self_score = static_cast<scalar>(c.self_score.value_or(0));
    if (c.label) a.label = numbers32(in_clusters(c.label, c.q, c.q_size));
    a.keep = bytes(kept_at_places(c, a.places));
    a.merged = c.merged;
    if (c.meetings) meet(*c.meetings);
    a.scale = static_cast<scalar>(c.scale);
    if (c.dropout_seed) {
      a.drawn = true;
      a.seed = static_cast<unsigned>(c.dropout_seed->item<int64_t>());
      a.threshold = static_cast<unsigned>(c.dropout * 4294967296.0);
    }
    a.kept_share = static_cast<scalar>(1 / (1 - c.dropout));
  }

 private:
  const long* whole(const Tensor& t) { return kept(t.contiguous()).template const_data_ptr<int64_t>(); }
  const int* numbers32(const Tensor& t) { return kept(t.to(at::kInt).contiguous()).template const_data_ptr<int>(); }

  kernels::Rows in_line(const char* name, const Tensor& t, const Tensor& tokens) {
    kernels::Rows found = kept_rows(t);
    const auto largest = tokens.numel() > 0 ? tokens.max().item<int64_t>() : -1;
    TORCH_CHECK_INDEX(largest < t.size(2), "cluster_attention: ", name, " must name tokens below ", t.size(2), ", or -1, got ", largest);
    found.index = whole(tokens);
    found.index_head = tokens.size(2) * tokens.size(3);
    found.index_batch = a.H * found.index_head;
    return found;
  }

  void meet(const Tensor& meetings) {
    a.rounds = meetings.size(3);
    a.here = numbers32(meetings);
    a.behind = a.here + meetings[0].numel();
    a.log_meetings = numbers<scalar>((at::arange(2 * a.rounds + 1, options.dtype(at::kDouble)) + 1e-9).log());
  }
};

/// What the kernel leaves to the formula: nothing to do, or names of meetings that 32 bits do not hold.
bool is_left(const Arguments& c) {
  if (c.q.numel() == 0 || c.k.numel() == 0 || c.v.numel() == 0 || (c.q_index && c.q_index->numel() == 0)) return true;
  return c.meetings && c.meetings->numel() > 0 && c.meetings->max().item<int64_t>() > std::numeric_limits<int>::max();
}

template <class scalar> OutAndLse forward(const Arguments& c) {
  Prepared<scalar> p(c);
  auto& a = p.a;
  const int64_t rows = rows_of(c).expect_int();
  Tensor out = at::empty({a.B, a.H, rows, a.Dv}, p.options), lse = at::empty({a.B, a.H, rows}, p.options);
  a.out = out.mutable_data_ptr<scalar>();
  a.lse = lse.mutable_data_ptr<scalar>();
  if (a.merged) a.totals = p.template room<scalar>({a.B, a.H, rows});
  p.template in_parallel<scalar>(a, 0, a.B * a.H * (a.merged ? 1 : a.clusters), p.run.forward_room(a), p.run.forward);
  return {out.to(c.q.scalar_type()), lse};
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Arguments& c) {
  Prepared<scalar> p(c);
  auto& a = p.a;
  const Tensor out = call.results[0].to(p.options.dtype()).contiguous(), lse = call.results[1].contiguous();
  const Tensor d_lse = call.gradients[1].defined() ? call.gradients[1].contiguous() : Tensor();
  a.out = const_cast<scalar*>(out.const_data_ptr<scalar>());  // NOLINT: read only in the backward
  a.lse = const_cast<scalar*>(lse.const_data_ptr<scalar>());  // NOLINT
  a.d_out = p.kept_rows(call.gradients[0].defined() ? call.gradients[0] : at::zeros_like(out));
  if (a.merged) {  // of the token at each place
    a.d_out.index = a.q.index;
    a.d_out.index_head = a.q.index_head;
    a.d_out.index_batch = a.q.index_batch;
  }
  a.d_lse = d_lse.defined() ? d_lse.const_data_ptr<scalar>() : nullptr;
  Tensor d_q = at::zeros(c.q.sizes(), p.options), d_k = at::zeros(c.k.sizes(), p.options), d_v = at::zeros(c.v.sizes(), p.options);
  a.d_q = d_q.mutable_data_ptr<scalar>();
  a.d_k = d_k.mutable_data_ptr<scalar>();
  a.d_v = d_v.mutable_data_ptr<scalar>();
  Tensor d_weight = c.k_weight ? at::zeros({a.B, a.H, a.clusters * a.k_size}, p.options) : Tensor();
  if (c.k_weight) a.d_k_weight = d_weight.mutable_data_ptr<scalar>();
  p.template in_parallel<scalar>(a, 0, a.B * a.H, p.run.backward_room(a), p.run.backward);
  std::vector<Tensor> found;
  Wanted wanted(call);
  give(found, wanted(c.q), c.q, [&] { return d_q; });
  give(found, wanted(c.k), c.k, [&] { return d_k; });
  give(found, wanted(c.v), c.v, [&] { return d_v; });
  give(found, wanted(c.k_weight), c.k_weight, [&] { return d_weight.narrow(2, 0, c.k_weight->size(2)); });
  return found;
}

OutAndLse cluster_attention_cpu(const Arguments& c) {
  if (is_left(c)) return cluster_attention_formula(c);
  return c.q.scalar_type() == at::kDouble ? forward<double>(c) : forward<float>(c);
}

Gradients cluster_attention_backward_cpu(const Backward& call, const Arguments& c) {
  if (is_left(c)) return std::nullopt;
  return c.q.scalar_type() == at::kDouble ? backward<double>(call, c) : backward<float>(call, c);
}

}  // namespace

FOVEATE_OP(cluster_attention, schema_of<Arguments>("_cluster_attention") + " -> (Tensor out, Tensor lse)",
           {.formula = structured<&cluster_attention_formula>(),
            .meta = structured<&cluster_attention_meta>(),
            .cpu = structured<&cluster_attention_cpu>(),
            .cpu_backward = &cluster_attention_backward_cpu})

namespace {

Arguments arguments_of(const Tensor& q, const Tensor& k, const Tensor& v, const ClusterAttention& o) {
  return {.q = q,
          .k = k,
          .v = v,
          .k_weight = o.k_weight,
          .q_index = o.q_index,
          .k_index = o.k_index,
          .key_mask = o.key_mask,
          .query_mask = o.query_mask,
          .label = o.label,
          .meetings = o.meetings,
          .dropout_keep = o.dropout_keep,
          .dropout_seed = o.dropout_seed,
          .causal_keys = o.causal ? o.causal_keys.value_or(extent(k, 2)) : Size(0),
          .self_score = o.self_score,
          .q_size = o.q_size,
          .k_size = o.k_size,
          .before = o.before,
          .after = o.after,
          .circular = o.circular,
          .self_seen = o.self_seen,
          .merged = o.merged,
          .scale = o.scale.value_or(default_scale(q)),
          .dropout = o.dropout};
}

}  // namespace

Attended cluster_attention(const Tensor& q, const Tensor& k, const Tensor& v, const ClusterAttention& o) {
  check_qkv("cluster_attention", q, k, v);
  TORCH_CHECK_VALUE(extent(q, 1) == extent(k, 1), "cluster_attention: k must have as many heads as q, got ", extent(k, 1), " and ", extent(q, 1));
  TORCH_CHECK_VALUE(o.q_size >= 0 && o.k_size >= 0 && o.before >= 0 && o.after >= 0,
                    "cluster_attention: q_size, k_size, before, after must not be negative, got ", o.q_size, ", ", o.k_size, ", ", o.before, ", ",
                    o.after);
  TORCH_CHECK_VALUE(o.merged || !o.q_index || o.q_index->dim() == 3, "cluster_attention: q_index must be [B,H,P] unless merged, got ",
                    o.q_index->sym_sizes());
  TORCH_CHECK_VALUE(!o.k_weight || (o.k_weight->dim() == 3 && extent(*o.k_weight, 2) == extent(o.k_index.value_or(k), 2)),
                    "cluster_attention: k_weight must be [B,H,Pk], a number for each place of keys, got ", o.k_weight->sym_sizes());
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, "cluster_attention: dropout must lie in [0, 1), got ", o.dropout);
  auto stack = call("foveate::_cluster_attention", arguments_of(q, k, v, o));
  return {.out = stack[0].toTensor(), .lse = stack[1].toTensor()};
}

std::vector<Tensor> cluster_attention_gradients(const Tensor& q, const Tensor& k, const Tensor& v, const ClusterAttention& o, const Attended& found,
                                                const Attended& gradients) {
  const auto given = [](const Tensor& t) { return t.defined() ? optional(t) : std::nullopt; };
  torch::jit::Stack stack{c10::List<optional<Tensor>>({given(gradients.out), given(gradients.lse)}), std::vector<Tensor>{found.out, found.lse}};
  c10::List<bool> wanted;
  torch::jit::Stack arguments;
  arguments_of(q, k, v, o).fields([&](std::string_view name, auto& member, std::string_view) {
    const bool differs = name == "q" || name == "k" || name == "v" || name == "k_weight";
    arguments.emplace_back(std::move(member));
    if (arguments.back().isTensor()) wanted.push_back(differs);
  });
  stack.emplace_back(std::move(wanted));
  for (auto& argument : arguments) stack.push_back(std::move(argument));
  c10::Dispatcher::singleton().findSchemaOrThrow("foveate::_cluster_attention_backward", "").callBoxed(stack);
  return stack.back().toTensorVector();
}

}  // namespace foveate::ops
