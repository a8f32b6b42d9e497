#include <foveate/op.h>
#include <foveate/partition_attention.h>
#include <foveate/partition_attention_formula.h>

namespace foveate::ops {
namespace {

Tensor partition_attention_meta(const Tensor& q, const Tensor&, const Tensor& v, const optional<Tensor>&, const optional<Tensor>&,
                                const optional<Tensor>&, Size, Size, int64_t, int64_t, bool, bool, bool, double, double) {
  return q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2), extent(v, 3)});
}

}  // namespace

FOVEATE_OP(partition_attention,
           "_partition_attention(Tensor q, Tensor k, Tensor v, Tensor? table, Tensor? lengths, Tensor? dropout_seed, SymInt tokens, SymInt before, "
           "int step, int clip_dist, bool causal, bool right_overflow, bool complete, float scale, float dropout) -> Tensor",
           {.formula = &partition_attention_formula, .meta = &partition_attention_meta})

Tensor partition_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Size& tokens, const PartitionAttention& o) {
  TORCH_CHECK_VALUE(o.how.step > 0 && o.how.clip_dist >= 0, "partition_attention: step must be positive and clip_dist not negative, got ", o.how.step,
                    " and ", o.how.clip_dist);
  TORCH_CHECK_VALUE(!o.table || (o.table->dim() == 2 && plain_extent(*o.table, 0) >= o.how.types()),
                    "partition_attention: table must have a row for each of the ", o.how.types(), " types of edges, got ",
                    o.table ? o.table->sym_sizes() : c10::SymIntArrayRef());
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, "partition_attention: dropout must lie in [0, 1), got ", o.dropout);
  TORCH_CHECK_VALUE(!o.complete || o.how.causal, "partition_attention: spans may be missing only from a causal partition");
  return primitive<decltype(partition_attention_formula)>("foveate::_partition_attention")
      .call(q, k, v, o.table, o.lengths, o.dropout_seed, tokens, o.before, o.how.step, o.how.clip_dist, o.how.causal, o.how.right_overflow,
            o.complete, o.scale.value_or(default_scale(q)), o.dropout);
}

}  // namespace foveate::ops
