#include <foveate/attention.h>

#include <foveate/attention_cpu.h>
#include <foveate/attention_formula.h>
#include <foveate/merge_attention.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

OutAndLse attention_meta(const AttentionArguments& c) {
  const auto& q = c.q;
  return {q.new_empty_symint({extent(q, 0), extent(q, 1), queries_of(c), extent(c.v, 3)}),
          q.new_empty_symint({extent(q, 0), extent(q, 1), queries_of(c)}, q.options().dtype(accumulation_type(q.scalar_type())))};
}

/// Refuses a tensor that does not broadcast to [B,H,N,M].
void check_broadcast(const char* op, const char* name, const Tensor& t, const std::array<Size, 4>& scores) {
  bool fits = t.dim() <= 4;
  for (int64_t d = 1; fits && d <= t.dim(); ++d) {
    const Size size = extent(t, -d);
    fits = size == 1 || size == scores[static_cast<std::size_t>(4 - d)];
  }
  TORCH_CHECK_VALUE(fits, op, ": ", name, " must broadcast to [B,H,N,M] = ", c10::SymIntArrayRef(scores), ", got ", t.sym_sizes());
}

/// Refuses an index that does not say for each head of x which row stands where.
void check_index(const char* op, const char* name, const optional<Tensor>& index, const Tensor& x) {
  if (!index) return;
  TORCH_CHECK_TYPE(index->scalar_type() == at::kLong, op, ": ", name, " must be int64, got ", index->scalar_type());
  const auto fits = [&](int64_t d) { return extent(*index, d) == 1 || extent(*index, d) == extent(x, d); };
  TORCH_CHECK_VALUE(index->dim() == 3 && fits(0) && fits(1), op, ": ", name, " must be [B or 1,heads or 1,places] for ", x.sym_sizes(), ", got ",
                    index->sym_sizes());
}

/// One key more, that every query meets first.
Attended after_start(const Attended& rest, const Start& start) {
  const Tensor logit = start.logit.to(rest.lse.scalar_type()).expand_symint(rest.lse.sym_sizes());
  const Tensor value = start.value ? start.value->to(rest.out.scalar_type()).expand_symint(rest.out.sym_sizes()) : at::zeros_like(rest.out);
  const std::array parts{Attended{.out = value, .lse = logit}, rest};
  return merge_attention(parts);
}

}  // namespace

FOVEATE_OP(attention, schema_of<AttentionArguments>("_attention") + " -> (Tensor out, Tensor lse)",
           {.formula = structured<&attention_formula>(),
            .meta = structured<&attention_meta>(),
            .cpu = structured<&attention_cpu>(),
            .cpu_backward = &attention_backward_cpu})

void check_qkv(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  TORCH_CHECK_VALUE(q.dim() == 4, op, ": q must be [B,H,N,D], got ", q.sym_sizes());
  TORCH_CHECK_VALUE(k.dim() == 4 && extent(k, 0) == extent(q, 0) && extent(k, 3) == extent(q, 3), op,
                    ": k must be [B,Hk,M,D] with B = ", extent(q, 0), " and D = ", extent(q, 3), " as in q, got ", k.sym_sizes());
  TORCH_CHECK_VALUE(v.dim() == 4 && extent(v, 0) == extent(k, 0) && extent(v, 1) == extent(k, 1) && extent(v, 2) == extent(k, 2), op,
                    ": v must be [B,Hk,M,Dv] with B, Hk, M of k, got ", v.sym_sizes(), " beside k ", k.sym_sizes());
  TORCH_CHECK_VALUE(extent(k, 1) == extent(q, 1) || (extent(k, 1) > 0 && extent(q, 1) % extent(k, 1) == 0), op,
                    ": k: its heads must divide those of q, got ", extent(k, 1), " and ", extent(q, 1));
  TORCH_CHECK_TYPE(k.scalar_type() == q.scalar_type(), op, ": k must be ", q.scalar_type(), " like q, got ", k.scalar_type());
  TORCH_CHECK_TYPE(v.scalar_type() == q.scalar_type(), op, ": v must be ", q.scalar_type(), " like q, got ", v.scalar_type());
}

Tensor draw_seed(const Tensor& like) { return at::randint(int64_t{1} << 32, {}, like.options().dtype(at::kLong)); }

optional<Tensor> visible_keys(const Tensor& k, const optional<Tensor>& key_mask, const optional<Tensor>& key_lengths) {
  if (!key_lengths) return key_mask;
  const Tensor within = at::arange(extent(k, 2), key_lengths->options()) < key_lengths->unsqueeze(1);  // [B,M]
  return key_mask ? within & *key_mask : within;
}

Attended attention_over(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const optional<patterns::Pattern>& pattern,
                        const Attention& o) {
  check_qkv(op, q, k, v);
  check_index(op, "q_index", o.q_index, q);
  check_index(op, "k_index", o.k_index, k);
  const Size N = o.q_index ? extent(*o.q_index, 2) : extent(q, 2), M = o.k_index ? extent(*o.k_index, 2) : extent(k, 2);
  const std::array scores{extent(q, 0), extent(q, 1), N, M};
  if (o.mask) {
    TORCH_CHECK_TYPE(o.mask->scalar_type() == at::kBool, op, ": mask must be bool, got ", o.mask->scalar_type());
    check_broadcast(op, "mask", *o.mask, scores);
  }
  if (o.bias) check_broadcast(op, "bias", *o.bias, scores);
  const auto key_mask = visible_keys(k, o.key_mask, o.key_lengths);
  if (key_mask) {
    TORCH_CHECK_TYPE(key_mask->scalar_type() == at::kBool, op, ": key_mask must be bool, got ", key_mask->scalar_type());
    TORCH_CHECK_VALUE(key_mask->dim() == 2 && extent(*key_mask, 0) == extent(k, 0) && extent(*key_mask, 1) == extent(k, 2), op,
                      ": key_mask must be [B,M] with B = ", extent(k, 0), " and M = ", extent(k, 2), " as in k, got ", key_mask->sym_sizes());
  }
  if (o.query_mask) {
    TORCH_CHECK_TYPE(o.query_mask->scalar_type() == at::kBool, op, ": query_mask must be bool, got ", o.query_mask->scalar_type());
    TORCH_CHECK_VALUE(o.query_mask->dim() == 2 && extent(*o.query_mask, 0) == extent(q, 0) && extent(*o.query_mask, 1) == N, op,
                      ": query_mask must be [B,N] with B = ", extent(q, 0), " and N = ", N, " queries, got ", o.query_mask->sym_sizes());
  }
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, op, ": dropout must lie in [0, 1), got ", o.dropout);
  TORCH_CHECK_VALUE(!o.softcap || *o.softcap > 0, op, ": softcap must be positive, got ", o.softcap.value_or(0));
  TORCH_CHECK_VALUE(!o.window || *o.window > 0, op, ": window must be positive, got ", o.window.value_or(0));
  TORCH_CHECK_VALUE(!o.dropout_keep || !o.dropout_seed, op, ": dropout_seed and dropout_keep exclude each other");
  const auto& p = o.position;
  auto stack = call("foveate::_attention", AttentionArguments{.q = q,
                                                              .k = k,
                                                              .v = v,
                                                              .tables = pattern ? pattern->tables : std::vector<Tensor>(),
                                                              .pattern = pattern ? optional(pattern->expression) : std::nullopt,
                                                              .mask = o.mask,
                                                              .key_mask = key_mask,
                                                              .query_mask = o.query_mask,
                                                              .bias = o.bias,
                                                              .slopes = p.slopes,
                                                              .table = p.table,
                                                              .rows = p.rows,
                                                              .row_query = p.row_query,
                                                              .value_rows = p.value_rows,
                                                              .dropout_keep = o.dropout_keep,
                                                              .dropout_seed = o.dropout_seed,
                                                              .q_index = o.q_index,
                                                              .k_index = o.k_index,
                                                              .offset = o.offset.value_or(M - N),
                                                              .origin = p.origin,
                                                              .window = o.window,
                                                              .causal = o.causal,
                                                              .scale = o.scale.value_or(default_scale(q)),
                                                              .dropout = o.dropout,
                                                              .softcap = o.softcap});
  const Attended found{.out = stack[0].toTensor(), .lse = stack[1].toTensor()};
  return o.start ? after_start(found, *o.start) : found;
}

Attended attention(const Tensor& q, const Tensor& k, const Tensor& v, const Attention& o) { return attention_over("attention", q, k, v, {}, o); }

}  // namespace foveate::ops
