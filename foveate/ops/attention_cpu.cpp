// attention on the softmax engine: from tensors to the engine's arguments, tasks spread over threads.
#include <foveate/attention_cpu.h>

#include "kernels/dispatch.h"
#include "kernels/softmax.h"

#include <ATen/Parallel.h>
#include <foveate/attention_formula.h>

namespace foveate::ops {
namespace {

using kernels::key_tile;
using kernels::query_tile;
using kernels::run_distances;
using kernels::run_tiles;
using kernels::tiles_of;

template <class scalar> const kernels::SoftmaxEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().softmax_double;
  else return *cpu_kernels().softmax_float;
}

/// Tensors of a call as the engine wants them: of its type, contiguous in the last dimension. They keep the memory alive.
struct Prepared {
  Tensor q, k, v, bias, mask, key_mask, slopes, table, row_query, rows_across, value_rows;
};

template <class scalar> kernels::Rows<const scalar> rows(const Tensor& t) {
  return {.data = t.const_data_ptr<scalar>(), .batch = t.stride(0), .head = t.stride(1), .row = t.stride(2)};
}

template <class T> kernels::Plane<T> plane(const Tensor& t, at::IntArrayRef shape) {
  if (!t.defined()) return {};
  const Tensor whole = t.expand(shape);
  return {.data = static_cast<const T*>(t.const_data_ptr()),
          .batch = whole.stride(0),
          .head = whole.stride(1),
          .row = whole.stride(2),
          .column = whole.stride(3)};
}

int64_t padded(int64_t width, int64_t vector) { return (width + vector - 1) / vector * vector; }

Tensor last_contiguous(const Tensor& t) { return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous(); }

Prepared prepare(const AttentionArguments& c, int64_t vector) {
  const auto type = accumulation_type(c.q.scalar_type());
  const auto exact = [&](const optional<Tensor>& t) { return t ? t->to(type) : Tensor(); };
  Prepared p{.q = last_contiguous(c.q.to(type)), .k = last_contiguous(c.k.to(type)), .v = last_contiguous(c.v.to(type))};
  p.bias = exact(c.bias);
  p.mask = c.mask.value_or(Tensor());
  p.key_mask = c.key_mask ? c.key_mask->contiguous() : Tensor();
  p.slopes = c.slopes ? exact(c.slopes).contiguous() : Tensor();
  p.table = c.table ? exact(c.table).contiguous() : Tensor();
  if (c.rows) {
    p.row_query = c.row_query ? last_contiguous(exact(c.row_query)) : p.q;
    p.rows_across = (exact(c.rows).transpose(-1, -2) * c.scale).contiguous();
  }
  if (c.value_rows) p.value_rows = at::constant_pad_nd(exact(c.value_rows), {0, padded(c.v.size(3), vector) - c.v.size(3)}).contiguous();
  return p;
}

template <class scalar> kernels::Softmax<scalar> arguments(const AttentionArguments& c, const Prepared& p) {
  const int64_t B = p.q.size(0), H = p.q.size(1), N = p.q.size(2), M = p.k.size(2);
  return {.B = B,
          .H = H,
          .Hk = p.k.size(1),
          .N = N,
          .M = M,
          .D = p.q.size(3),
          .Dv = p.v.size(3),
          .q = rows<scalar>(p.q),
          .k = rows<scalar>(p.k),
          .v = rows<scalar>(p.v),
          .scale = static_cast<scalar>(c.scale),
          .offset = c.offset,
          .causal = c.causal,
          .window = c.window.value_or(0),
          .bias = plane<scalar>(p.bias, {B, H, N, M}),
          .mask = plane<unsigned char>(p.mask, {B, H, N, M}),
          .key_mask = p.key_mask.defined() ? static_cast<const unsigned char*>(p.key_mask.const_data_ptr()) : nullptr,
          .slopes = p.slopes.defined() ? p.slopes.const_data_ptr<scalar>() : nullptr,
          .table = p.table.defined() ? p.table.const_data_ptr<scalar>() : nullptr,
          .table_length = c.table        ? c.table->size(1)
                          : c.rows       ? c.rows->size(-2)
                          : c.value_rows ? c.value_rows->size(-2)
                                         : 0,
          .origin = c.origin,
          .row_query = c.rows ? rows<scalar>(p.row_query) : kernels::Rows<const scalar>{},
          .rows_across = c.rows ? p.rows_across.const_data_ptr<scalar>() : nullptr,
          .row_heads = c.rows ? c.rows->size(0) : 0,
          .value_rows = c.value_rows ? p.value_rows.const_data_ptr<scalar>() : nullptr,
          .value_row_heads = c.value_rows ? c.value_rows->size(0) : 0,
          .tile_start = c.pattern ? c.pattern->start.data() : nullptr,
          .tiles = c.pattern ? c.pattern->tiles.data() : nullptr,
          .tile_mask = c.pattern ? c.pattern->mask.data() : nullptr,
          .pattern_heads = c.pattern ? c.pattern->heads : 0,
          .masks = c.pattern ? c.pattern->masks.data() : nullptr};
}

/// Spreads tasks over threads, each with scratch of its own.
template <class scalar, class F> void in_parallel(int64_t tasks, int64_t scratch, const Tensor& like, const F& f) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const Tensor room = at::empty({scratch}, like.options());
    f(begin, end, room.mutable_data_ptr<scalar>());
  });
}

template <class scalar> std::tuple<Tensor, Tensor> forward(const AttentionArguments& c) {
  const auto& run = engine<scalar>();
  const Prepared p = prepare(c, run.vector);
  auto a = arguments<scalar>(c, p);
  const int64_t tiles = tiles_of(a.M, key_tile), wide = padded(a.Dv, run.vector);
  Tensor out = at::empty({a.B, a.H, a.N, a.Dv}, p.q.options()), lse = at::empty({a.B, a.H, a.N}, p.q.options());
  const Tensor keys_across = at::empty({a.B * a.Hk * tiles * a.D * key_tile}, p.q.options());
  const Tensor values = at::empty({a.B * a.Hk * tiles * key_tile * wide}, p.q.options());
  a.keys_across = keys_across.mutable_data_ptr<scalar>();
  a.values = values.mutable_data_ptr<scalar>();
  a.out = out.mutable_data_ptr<scalar>();
  a.lse = lse.mutable_data_ptr<scalar>();
  at::parallel_for(0, a.B * a.Hk * tiles, 1, [&](int64_t begin, int64_t end) { run.pack(a, begin, end); });
  const int64_t by_distance = a.rows_across || a.value_rows ? run_distances * (std::max<int64_t>(a.D, wide) + query_tile) : 0;
  const int64_t scratch = query_tile * (run_tiles * key_tile + wide + 2) + by_distance;
  in_parallel<scalar>(a.B * a.H * tiles_of(a.N, query_tile), scratch, p.q,
                      [&](int64_t begin, int64_t end, scalar* room) { run.forward(a, begin, end, room); });
  return {out.to(c.q.scalar_type()), lse};
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const AttentionArguments& c) {
  const auto& run = engine<scalar>();
  const Prepared p = prepare(c, run.vector);
  auto a = arguments<scalar>(c, p);
  const auto options = p.q.options();
  const int64_t tiles = tiles_of(a.M, key_tile), wide = padded(a.Dv, run.vector), deep = padded(a.D, run.vector), heads = a.B * a.Hk;
  // Enough tasks for any machine, but a number that only the shape decides: the order of summation must not depend on threads.
  constexpr int64_t enough = 16;
  a.parts = std::clamp<int64_t>(enough / std::max<int64_t>(1, heads), 1, std::max<int64_t>(1, tiles_of(a.N, query_tile)));
  const auto room = [&](int64_t count) { return at::empty({count}, options); };
  const Tensor keys_across = room(heads * tiles * a.D * key_tile), values_across = room(heads * tiles * a.Dv * key_tile);
  const Tensor keys = room(heads * tiles * key_tile * deep), values = room(heads * tiles * key_tile * wide);
  const Tensor d_k = at::zeros({a.parts, a.B, a.Hk, tiles * key_tile, deep}, options),
               d_v = at::zeros({a.parts, a.B, a.Hk, tiles * key_tile, wide}, options);
  const Tensor out = call.results[0].to(p.q.scalar_type()).contiguous(), lse = call.results[1].contiguous();
  const Tensor d_out = call.gradients[0].defined() ? last_contiguous(call.gradients[0].to(p.q.scalar_type())) : at::zeros_like(out);
  const Tensor d_lse = call.gradients[1].defined() ? call.gradients[1].contiguous() : Tensor();
  Tensor d_q = at::empty({a.B, a.H, a.N, a.D}, options);
  a.keys_across = keys_across.mutable_data_ptr<scalar>();
  a.values_across = values_across.mutable_data_ptr<scalar>();
  a.keys = keys.mutable_data_ptr<scalar>();
  a.values = values.mutable_data_ptr<scalar>();
  a.out = const_cast<scalar*>(out.const_data_ptr<scalar>());  // read only in the backward
  a.lse = const_cast<scalar*>(lse.const_data_ptr<scalar>());
  a.d_out = rows<scalar>(d_out);
  a.d_lse = d_lse.defined() ? d_lse.const_data_ptr<scalar>() : nullptr;
  a.d_q = d_q.mutable_data_ptr<scalar>();
  a.d_k_parts = d_k.mutable_data_ptr<scalar>();
  a.d_v_parts = d_v.mutable_data_ptr<scalar>();
  at::parallel_for(0, heads * tiles, 1, [&](int64_t begin, int64_t end) { run.pack(a, begin, end); });
  const int64_t scratch = query_tile * (2 * run_tiles * key_tile + wide + 2 * deep + 1);
  in_parallel<scalar>(heads * a.parts, scratch, p.q, [&](int64_t begin, int64_t end, scalar* task_room) { run.backward(a, begin, end, task_room); });
  const auto gather = [&](const Tensor& parts, int64_t width) {
    return (a.parts == 1 ? parts[0] : parts.sum(0)).narrow(2, 0, a.M).narrow(3, 0, width).to(c.q.scalar_type()).contiguous();
  };
  std::vector<Tensor> found;
  if (call.wanted[0]) found.push_back(d_q.to(c.q.scalar_type()));
  if (call.wanted[1]) found.push_back(gather(d_k, a.D));
  if (call.wanted[2]) found.push_back(gather(d_v, a.Dv));
  return found;
}

/// What the engine does not do yet goes by the formula: dropout, tables of different length, and gradients through rows.
bool on_the_engine(const AttentionArguments& c) {
  const auto length = [](const optional<Tensor>& table) { return table ? table->size(-2) : -1; };
  const bool one_table = !c.value_rows || !c.rows || length(c.rows) == length(c.value_rows);
  return one_table && !(c.table && (c.rows || c.value_rows)) && !c.dropout_keep && c.q.numel() > 0 && c.k.numel() > 0 && c.v.numel() > 0;
}

}  // namespace

std::tuple<Tensor, Tensor> engine_forward(const AttentionArguments& c) {
  return c.q.scalar_type() == at::kDouble ? forward<double>(c) : forward<float>(c);
}

std::vector<Tensor> engine_backward(const Backward& call, const AttentionArguments& c) {
  return c.q.scalar_type() == at::kDouble ? backward<double>(call, c) : backward<float>(call, c);
}

std::tuple<Tensor, Tensor> attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask,
                                         const optional<Tensor>& key_mask, const optional<Tensor>& bias, const optional<Tensor>& slopes,
                                         const optional<Tensor>& table, const optional<Tensor>& rows, const optional<Tensor>& row_query,
                                         const optional<Tensor>& value_rows, const optional<Tensor>& dropout_keep, Size offset, Size origin,
                                         optional<int64_t> window, bool causal, double scale, double dropout) {
  const AttentionArguments c{
      q,      k,      v,    mask, key_mask, bias, slopes, table, rows, row_query, value_rows, dropout_keep, offset.expect_int(), origin.expect_int(),
      window, causal, scale};
  if (!on_the_engine(c)) {
    return attention_formula(q, k, v, mask, key_mask, bias, slopes, table, rows, row_query, value_rows, dropout_keep, offset, origin, window, causal,
                             scale, dropout);
  }
  return engine_forward(c);
}

Gradients attention_backward_cpu(const Backward& call, Tensor q, Tensor k, Tensor v, optional<Tensor> mask, optional<Tensor> key_mask,
                                 optional<Tensor> bias, optional<Tensor> slopes, optional<Tensor> table, optional<Tensor> rows,
                                 optional<Tensor> row_query, optional<Tensor> value_rows, optional<Tensor> dropout_keep, Size offset, Size origin,
                                 optional<int64_t> window, bool causal, double scale, double) {
  const AttentionArguments c{
      q,      k,      v,    mask, key_mask, bias, slopes, table, rows, row_query, value_rows, dropout_keep, offset.expect_int(), origin.expect_int(),
      window, causal, scale};
  const bool more = std::any_of(call.wanted.begin() + 3, call.wanted.end(), [](bool w) { return w; });  // of biases and tables
  if (more || rows || value_rows || !on_the_engine(c)) return std::nullopt;
  return engine_backward(call, c);
}

}  // namespace foveate::ops
