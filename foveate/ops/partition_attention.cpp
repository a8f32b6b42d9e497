#include <foveate/partition_attention.h>

#include "kernels/partition.h"

#include <foveate/op.h>
#include <foveate/partition_attention_formula.h>
#include <foveate/prepared.h>

namespace foveate::ops {
namespace {

using Arguments = PartitionArguments;

std::tuple<Tensor> partition_attention_meta(const Arguments& c) {
  return c.q.new_empty_symint({extent(c.q, 0), extent(c.q, 1), extent(c.q, 2), extent(c.v, 3)});
}

// --- on the CPU --------------------------------------------------------------------------------------------------------------

template <class scalar> const kernels::PartitionEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().partition_double;
  else return *cpu_kernels().partition_float;
}

/// The tensors of a call as the engine wants them, and its arguments, which point into them.
template <class scalar> struct Prepared : Alive {
  const kernels::PartitionEngine<scalar>& run = engine<scalar>();
  kernels::Partition<scalar> a{};
  std::vector<kernels::PartitionLevel> levels;
  Tensor asking, table;  // queries of tokens [B,H,n,D], and the table, to compute with

  explicit Prepared(const Arguments& c) : Alive(c.q) {
    const AskedLevels of(c);
    for (std::size_t j = 0, key = 0, query = 0; j < of.sizes.size(); ++j) {
      const auto at = [](std::size_t row) { return static_cast<int64_t>(row); };
      levels.push_back({.nodes = of.sizes[j], .key_row = at(key), .first = of.firsts[j], .asked = of.asked[j], .query_row = at(query)});
      key += static_cast<std::size_t>(of.sizes[j]);
      query += static_cast<std::size_t>(of.asked[j]);
    }
    a.B = c.q.size(0);
    a.H = c.q.size(1);
    a.D = c.q.size(3);
    a.Dv = c.v.size(3);
    a.levels = static_cast<int64_t>(levels.size());
    a.level = levels.data();
    const Tensor length = c.lengths ? c.lengths->to(at::kLong) : at::full({a.B}, levels[0].nodes, options.dtype(at::kLong));
    a.length = kept(length.contiguous()).template const_data_ptr<int64_t>();
    a.step = c.step;
    a.clip_dist = c.clip_dist;
    a.types = patterns::BinaryPartition{.step = c.step, .clip_dist = c.clip_dist}.types();
    a.causal = c.causal;
    a.right_overflow = c.right_overflow;
    a.q = kept_rows(c.q);
    a.k = kept_rows(c.k);
    a.v = kept_rows(c.v);
    a.rows = c.q.size(2);
    a.nodes = c.k.size(2);
    a.scale = static_cast<scalar>(c.scale);
    if (c.table) {
      asking = c.q.narrow(2, 0, levels[0].asked).to(options.dtype());
      table = c.table->narrow(0, 0, a.types).to(options.dtype());
      a.by_type = kept(at::matmul(asking, table.t())).template const_data_ptr<scalar>();
    }
  }
};

template <class scalar> Tensor forward(const Arguments& c) {
  Prepared<scalar> p(c);
  auto& a = p.a;
  Tensor out = at::zeros({a.B, a.H, a.rows, a.Dv}, p.options);
  a.out = out.mutable_data_ptr<scalar>();
  p.template in_parallel<scalar>(a, 0, a.B * a.H, p.run.forward_room(a), p.run.forward);
  return out.to(c.q.scalar_type());
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Arguments& c) {
  Prepared<scalar> p(c);
  auto& a = p.a;
  const Tensor out = call.results[0].to(p.options.dtype()).contiguous();
  a.out = const_cast<scalar*>(out.const_data_ptr<scalar>());  // NOLINT: read only in the backward
  a.d_out = p.kept_rows(call.gradients[0].defined() ? call.gradients[0] : at::zeros_like(out));
  Tensor d_q = at::zeros(c.q.sizes(), p.options), d_k = at::zeros(c.k.sizes(), p.options), d_v = at::zeros(c.v.sizes(), p.options), by_type;
  a.d_q = d_q.mutable_data_ptr<scalar>();
  a.d_k = d_k.mutable_data_ptr<scalar>();
  a.d_v = d_v.mutable_data_ptr<scalar>();
  if (a.by_type) {
    by_type = at::zeros({a.B, a.H, p.levels[0].asked, a.types}, p.options);
    a.d_by_type = by_type.mutable_data_ptr<scalar>();
  }
  p.template in_parallel<scalar>(a, 0, a.B * a.H, p.run.backward_room(a), p.run.backward);
  if (a.by_type) d_q.narrow(2, 0, p.levels[0].asked) += at::matmul(by_type, p.table);
  std::vector<Tensor> found;
  Wanted wanted(call);
  give(found, wanted(c.q), c.q, [&] { return d_q; });
  give(found, wanted(c.k), c.k, [&] { return d_k; });
  give(found, wanted(c.v), c.v, [&] { return d_v; });
  give(found, wanted(c.table), c.table, [&] {
    const Tensor found_rows = at::matmul(by_type.flatten(0, 2).t(), p.asking.reshape({-1, a.D}));
    return at::constant_pad_nd(found_rows, {0, 0, 0, c.table->size(0) - a.types});
  });
  return found;
}

/// What the kernel leaves to the formula: nothing to do, or dropout.
bool is_left(const Arguments& c) { return c.q.numel() == 0 || c.v.numel() == 0 || c.tokens == 0 || (c.dropout_seed && c.dropout > 0); }

std::tuple<Tensor> partition_attention_cpu(const Arguments& c) {
  if (is_left(c)) return partition_attention_formula(c);
  return {c.q.scalar_type() == at::kDouble ? forward<double>(c) : forward<float>(c)};
}

Gradients partition_attention_backward_cpu(const Backward& call, const Arguments& c) {
  if (is_left(c)) return std::nullopt;
  return c.q.scalar_type() == at::kDouble ? backward<double>(call, c) : backward<float>(call, c);
}

}  // namespace

FOVEATE_OP(partition_attention, schema_of<Arguments>("_partition_attention") + " -> Tensor",
           {.formula = structured<&partition_attention_formula>(),
            .meta = structured<&partition_attention_meta>(),
            .cpu = structured<&partition_attention_cpu>(),
            .cpu_backward = &partition_attention_backward_cpu})

Tensor partition_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Size& tokens, const PartitionAttention& o) {
  TORCH_CHECK_VALUE(o.how.step > 0 && o.how.clip_dist >= 0, "partition_attention: step must be positive and clip_dist not negative, got ", o.how.step,
                    " and ", o.how.clip_dist);
  TORCH_CHECK_VALUE(!o.table || (o.table->dim() == 2 && plain_extent(*o.table, 0) >= o.how.types()),
                    "partition_attention: table must have a row for each of the ", o.how.types(), " types of edges, got ",
                    o.table ? o.table->sym_sizes() : c10::SymIntArrayRef());
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, "partition_attention: dropout must lie in [0, 1), got ", o.dropout);
  TORCH_CHECK_VALUE(!o.complete || o.how.causal, "partition_attention: spans may be missing only from a causal partition");
  return call("foveate::_partition_attention", Arguments{.q = q,
                                                         .k = k,
                                                         .v = v,
                                                         .table = o.table,
                                                         .lengths = o.lengths,
                                                         .dropout_seed = o.dropout_seed,
                                                         .tokens = tokens,
                                                         .before = o.before,
                                                         .step = o.how.step,
                                                         .clip_dist = o.how.clip_dist,
                                                         .causal = o.how.causal,
                                                         .right_overflow = o.how.right_overflow,
                                                         .complete = o.complete,
                                                         .scale = o.scale.value_or(default_scale(q)),
                                                         .dropout = o.dropout})[0]
      .toTensor();
}

}  // namespace foveate::ops
