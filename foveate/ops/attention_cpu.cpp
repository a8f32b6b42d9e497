// attention on the softmax engine: from tensors to the engine's arguments, tasks spread over threads.
#include <foveate/attention_cpu.h>

#include "kernels/softmax.h"

#include <ATen/native/CPUBlas.h>

#include <foveate/pattern_tiles.h>
#include <foveate/prepared.h>

namespace foveate::ops {
namespace {

using kernels::key_tile;
using kernels::query_tile;
using kernels::tiles_of;

constexpr int64_t enough_tasks = 16;  // for any machine; a constant, since the order of summation must not depend on threads

template <class scalar> const kernels::SoftmaxEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().softmax_double;
  else return *cpu_kernels().softmax_float;
}

template <class T> kernels::Plane<T> plane(const optional<Tensor>& t, at::IntArrayRef shape) {
  if (!t) return {};
  const Tensor whole = t->expand(shape);
  return {.data = static_cast<T*>(const_cast<void*>(whole.const_data_ptr())),  // NOLINT: T is const where it is read only
          .batch = whole.stride(0),
          .head = whole.stride(1),
          .row = whole.stride(2),
          .column = whole.stride(3)};
}

/// See kernels/softmax.h.
void multiply_tiles(long m, long n, long k, long a_row, long b_row, long c_row, bool add, const unsigned short* a, const void* b, float* c) {
  const auto* left = reinterpret_cast<const at::BFloat16*>(a);  // NOLINT: the same bits
  at::native::cpublas::brgemm(m, n, k, a_row, b_row, c_row, add, left, static_cast<const at::BFloat16*>(b), c);
}

/// The tensors of a call as the engine wants them, and its arguments, which point into them.
template <class scalar> struct Prepared : Alive {
  const kernels::SoftmaxEngine<scalar>& run = engine<scalar>();
  kernels::Softmax<scalar> a{};

  explicit Prepared(const AttentionArguments& c) : Alive(c.q) {
    const Tensor q = kept(last_contiguous(c.q)), k = kept(last_contiguous(c.k)), v = kept(last_contiguous(c.v));
    a.B = q.size(0);
    a.H = q.size(1);
    a.Hk = k.size(1);
    a.N = queries_of(c).expect_int();
    a.M = keys_of(c).expect_int();
    a.key_rows = k.size(2);
    a.D = q.size(3);
    a.Dv = v.size(3);
    a.q = in_line("q_index", q, c.q_index);
    a.k = in_line("k_index", k, c.k_index);
    a.v = in_line("k_index", v, c.k_index);
    a.scale = static_cast<scalar>(c.scale);
    use_tiles(q, k, v);
    a.softcap = static_cast<scalar>(c.softcap.value_or(0));
    a.offset = c.offset.expect_int();
    a.causal = c.causal;
    a.window = c.window.value_or(0);
    const std::array<int64_t, 4> all{a.B, a.H, a.N, a.M};
    a.bias = plane<const scalar>(exact(c.bias), all);
    a.mask = plane<const unsigned char>(c.mask, all);
    if (c.key_mask) {
      a.key_mask = bytes(c.key_mask);
      if (!c.k_index) a.seen_tiles = some_in_tiles(*c.key_mask);
    }
    a.query_mask = bytes(c.query_mask);
    a.slopes = numbers<scalar>(c.slopes);
    a.origin = c.origin.expect_int();
    if (c.table) a.table = {.length = c.table->size(1), .heads = c.table->size(0), .along = numbers<scalar>(c.table), .across = nullptr};
    if (c.rows) {
      a.rows = by_distance(*exact(c.rows));
      a.row_query = in_line("q_index", kept(last_contiguous(c.row_query.value_or(c.q))), c.q_index);
    }
    if (c.value_rows) a.value_rows = by_distance(*exact(c.value_rows));
    a.keep = plane<const unsigned char>(c.dropout_keep, all);
    if (c.dropout_seed) {
      a.drawn = true;
      a.seed = static_cast<unsigned>(c.dropout_seed->item<int64_t>());
      a.threshold = static_cast<unsigned>(c.dropout * 4294967296.0);
    }
    a.kept_share = static_cast<scalar>(1 / (1 - c.dropout));
    a.splits = 1;
    if (c.pattern) see(pattern_tiles({*c.pattern, c.tables}, a.H, a.N, a.M, a.offset));
  }

  int64_t key_tiles() const { return tiles_of(a.M, key_tile); }
  int64_t deep() const { return padded(a.D, run.vector); }
  int64_t wide() const { return padded(a.Dv, run.vector); }

  scalar* room(int64_t count) { return Alive::room<scalar>({count}); }

  /// Keys and values as the engine wants them. Where all queries of a key head are one tile, it packs what it meets by itself.
  void pack(bool backward) {
    const int64_t tiles = a.B * a.Hk * key_tiles();
    const bool met_once = a.H == a.Hk && a.N <= query_tile;
    const auto held = [&](int64_t size) { return met_once ? nullptr : room(tiles * key_tile * size); };
    a.whole_values = whole_rows(a.v, a.Dv, wide());
    a.values = a.whole_values ? as_it_lies(a.v) : held(run.size_along(a, a.Dv));
    a.keys_across = held(run.size_across(a, a.D));
    if (backward) {
      a.values_across = held(run.size_across(a, a.Dv));
      a.whole_keys = whole_rows(a.k, a.D, deep());
      a.keys = a.whole_keys ? as_it_lies(a.k) : held(run.size_along(a, a.D));
    }
    if (met_once) return;
    at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) { run.pack(a, begin, end); });
  }

  template <class F> void in_parallel(int64_t first, int64_t last, int64_t scratch, const F& f) const {
    Alive::in_parallel<scalar>(a, first, last, scratch, [&](const auto&... arguments) {
      f(arguments...);
      if (a.multiply) at::native::cpublas::brgemm_release();
    });
  }

 private:
  std::shared_ptr<const PatternTiles> pattern_;

  /// Products of bfloat16 in tiles, where the processor has them (AMX).
  void use_tiles(const Tensor& q, const Tensor& k, const Tensor& v) {
    if constexpr (std::is_same_v<scalar, float>) {
      const auto narrow = [](const Tensor& t) { return t.scalar_type() == at::kBFloat16; };
      if (narrow(q) && narrow(k) && narrow(v) && at::native::cpublas::could_pack(at::kBFloat16)) a.multiply = multiply_tiles;
    }
    a.rest = a.scale == 0 ? 1 : a.scale / std::exp2(std::floor(std::log2(std::abs(a.scale))));
  }

  /// Whether rows lie as pack() would put them.
  bool whole_rows(const kernels::Rows& rows, int64_t width, int64_t padded_width) const {
    const bool of_our_type = rows.kind == (std::is_same_v<scalar, double> ? kernels::Kind::float64 : kernels::Kind::float32);
    return of_our_type && !rows.index && width == padded_width && a.M % key_tile == 0 && rows.row == width && rows.head == a.M * width &&
           (a.B == 1 || rows.batch == a.Hk * rows.head);
  }
  static scalar* as_it_lies(const kernels::Rows& rows) { return static_cast<scalar*>(const_cast<void*>(rows.data)); }  // NOLINT: read only

  /// Which tiles of keys hold one that takes part: [B,tiles].
  const unsigned char* some_in_tiles(const Tensor& mask) {
    const Tensor whole = at::constant_pad_nd(mask, {0, key_tiles() * key_tile - a.M}, false);
    return static_cast<const unsigned char*>(kept(whole.view({a.B, key_tiles(), key_tile}).any(2)).const_data_ptr());
  }

  kernels::Rows in_line(const char* name, const Tensor& t, const optional<Tensor>& index) {
    kernels::Rows found = rows(t);
    if (!index) return found;
    const auto largest = index->max().item<int64_t>();
    TORCH_CHECK_INDEX(largest < t.size(2), "attention: ", name, " must name rows below ", t.size(2), ", or -1, got ", largest);
    const Tensor whole = kept(index->contiguous());
    found.index = whole.const_data_ptr<int64_t>();
    found.index_batch = whole.size(0) > 1 ? whole.stride(0) : 0;
    found.index_head = whole.size(1) > 1 ? whole.stride(1) : 0;
    return found;
  }

  kernels::ByDistance<scalar> by_distance(const Tensor& table) {  // [heads,length,width]
    const int64_t width = table.size(2);
    return {.length = table.size(1),
            .heads = table.size(0),
            .along = numbers<scalar>(at::constant_pad_nd(table, {0, padded(width, run.vector) - width})),
            .across = numbers<scalar>(table.transpose(1, 2))};
  }

  void see(std::shared_ptr<const PatternTiles> pattern) {
    pattern_ = std::move(pattern);
    a.tile_start = pattern_->start.data();
    a.tiles = pattern_->tiles.data();
    a.tile_mask = pattern_->mask.data();
    a.pattern_heads = pattern_->heads;
    a.mask_height = pattern_->height;
    a.masks = pattern_->masks.data();
    a.chunks = pattern_->chunks.data();
  }
};

/// How many parts to split the keys into, so that few tasks become enough: each part a thousand keys or more.
int64_t splits(int64_t tasks, int64_t keys) {
  return std::clamp<int64_t>(std::min(enough_tasks / std::max<int64_t>(1, tasks), keys / 1024), 1, enough_tasks);
}

template <class scalar> OutAndLse forward(const AttentionArguments& c) {
  Prepared<scalar> p(c);
  auto& a = p.a;
  const bool few = a.N <= kernels::few_rows && a.N * (a.H / a.Hk) <= query_tile && !c.rows && !c.value_rows;
  const int64_t tasks = few ? a.B * a.Hk : a.B * a.H * tiles_of(a.N, query_tile);
  if (!a.tile_start) a.splits = splits(tasks, a.M);
  const Tensor outs = at::empty({a.splits, a.B, a.H, a.N, a.Dv}, p.options), lses = at::empty({a.splits, a.B, a.H, a.N}, p.options);
  a.out = outs.mutable_data_ptr<scalar>();
  a.lse = lses.mutable_data_ptr<scalar>();
  if (!few) p.pack(false);
  p.in_parallel(0, tasks * a.splits, few ? p.run.few_room(a) : p.run.forward_room(a), few ? p.run.few : p.run.forward);
  if (a.splits == 1) return {outs[0].to(c.q.scalar_type()), lses[0]};
  const auto [out, lse] = primitive<OutAndLse(const Tensor&, const Tensor&)>("foveate::_merge_attention").call(outs, lses);
  return {out.to(c.q.scalar_type()), lse};
}

/// The four sizes of a bias that is broadcast.
std::vector<int64_t> four_sizes(const Tensor& bias) {
  std::vector<int64_t> shape(static_cast<std::size_t>(4 - bias.dim()), 1);
  shape.insert(shape.end(), bias.sizes().begin(), bias.sizes().end());
  return shape;
}

/// Room for the sums of the gradient of a bias, [slots,b,h,n,m]: a slot for each part where parts would add to the same numbers.
template <class scalar> Tensor bias_sums(Prepared<scalar>& p, std::vector<int64_t> shape) {
  auto& a = p.a;
  const bool parts_meet = shape[2] == 1 && a.N > 1;
  shape.insert(shape.begin(), parts_meet ? a.parts : 1);
  Tensor sums = at::zeros(shape, p.options);
  a.d_bias = plane<scalar>(sums[0], {a.B, a.H, a.N, a.M});
  a.d_bias_part = parts_meet ? sums.stride(0) : 0;
  return sums;
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const AttentionArguments& c) {
  Prepared<scalar> p(c);
  auto& a = p.a;
  Wanted wanted(call);
  const bool q = wanted(c.q), k = wanted(c.k), v = wanted(c.v);
  wanted.pass(c.tables.size());
  for (const auto* t : {&c.mask, &c.key_mask, &c.query_mask}) static_cast<void>(wanted(*t));
  const bool bias = wanted(c.bias), slopes = wanted(c.slopes), table = wanted(c.table), rows_too = wanted(c.rows), row_query = wanted(c.row_query),
             value_rows = wanted(c.value_rows);

  const int64_t heads = a.B * a.Hk, tiles = p.key_tiles(), deep = p.deep(), wide = p.wide();
  const auto bias_shape = bias ? four_sizes(*c.bias) : std::vector<int64_t>();
  // Where tasks of different heads would add to the same numbers, one head comes after another, in as many parts as there may be.
  const bool heads_meet = bias && ((bias_shape[0] == 1 && a.B > 1) || (bias_shape[1] == 1 && a.H > 1));
  a.parts = std::clamp<int64_t>(heads_meet ? enough_tasks : enough_tasks / heads, 1, tiles_of(a.N, query_tile));
  const Tensor d_bias = bias ? bias_sums(p, bias_shape) : Tensor();
  p.pack(true);
  const Tensor out = call.results[0].to(p.options.dtype()).contiguous(), lse = call.results[1].contiguous();
  const Tensor d_out = call.gradients[0].defined() ? last_contiguous(call.gradients[0]) : at::zeros_like(out);
  const Tensor d_lse = call.gradients[1].defined() ? call.gradients[1].contiguous() : Tensor();
  a.out = const_cast<scalar*>(out.const_data_ptr<scalar>());  // NOLINT: read only in the backward
  a.lse = const_cast<scalar*>(lse.const_data_ptr<scalar>());  // NOLINT
  a.d_out = rows(d_out);
  a.d_lse = d_lse.defined() ? d_lse.const_data_ptr<scalar>() : nullptr;

  const auto at_hand = [](Tensor t, scalar*& to) {
    to = t.defined() ? t.mutable_data_ptr<scalar>() : nullptr;
    return t;
  };
  const auto sums = [&](bool want, scalar*& to, at::IntArrayRef shape) { return at_hand(want ? at::zeros(shape, p.options) : Tensor(), to); };
  const auto written = [&](bool want, scalar*& to, at::IntArrayRef shape) { return at_hand(want ? at::empty(shape, p.options) : Tensor(), to); };
  const auto of_head = [&](scalar*& to, int64_t width, int64_t padded_width) {
    return a.parts == 1 ? written(true, to, {1, a.B, a.Hk, a.M, width}) : sums(true, to, {a.parts, a.B, a.Hk, tiles * key_tile, padded_width});
  };
  const Tensor d_q = written(true, a.d_q, {a.B, a.H, a.N, a.D});
  const Tensor d_row_query = written(row_query || (q && c.rows && !c.row_query), a.d_row_query, {a.B, a.H, a.N, a.D});
  const Tensor d_k = of_head(a.d_k, a.D, deep);
  const Tensor d_v = of_head(a.d_v, a.Dv, wide);
  const Tensor d_slopes = sums(slopes, a.d_slopes, {a.parts, a.B, a.H});
  const Tensor d_table = sums(table, a.d_table, {a.parts, a.B, a.H, a.table.length});
  const Tensor d_rows = sums(rows_too, a.d_rows, {a.parts, a.B, a.H, a.rows.length, deep});
  const Tensor d_value_rows = sums(value_rows, a.d_value_rows, {a.parts, a.B, a.H, a.value_rows.length, wide});

  const int64_t scratch = p.run.backward_room(a);
  if (heads_meet) {
    for (int64_t head = 0; head < heads; ++head) p.in_parallel(head * a.parts, (head + 1) * a.parts, scratch, p.run.backward);
  } else {
    p.in_parallel(0, heads * a.parts, scratch, p.run.backward);
  }

  const auto of_keys = [&](const Tensor& parts, int64_t width, scalar factor) {
    if (a.parts == 1) return parts[0];
    Tensor summed = parts.sum(0);
    if (a.multiply) summed = (factor * summed).view({a.B, a.Hk, tiles, -1, key_tile}).transpose(3, 4).flatten(2, 3);  // it was summed turned
    return summed.narrow(2, 0, a.M).narrow(3, 0, width);
  };
  const auto of_tables = [&](const Tensor& parts, const Tensor& t) {  // [parts,B,H,...] -> [H or 1,...]
    const Tensor by_head = parts.sum(at::IntArrayRef{0, 1});
    const Tensor summed = t.size(0) == 1 ? by_head.sum(0, true) : by_head;
    return t.dim() == 3 ? summed.narrow(2, 0, t.size(2)) : summed;
  };
  const auto out_of_line = [](const Tensor& d, const optional<Tensor>& index, const Tensor& like) {  // to the rows that stood there
    if (!index) return d;
    const Tensor place = index->clamp_min(0).expand({d.size(0), d.size(1), -1}).unsqueeze(3).expand_as(d);
    return at::zeros(like.sizes(), d.options()).scatter_add(2, place, d * (*index >= 0).unsqueeze(3));
  };
  std::vector<Tensor> found;
  const auto add = [&](bool want, const optional<Tensor>& argument, const auto& gradient) { give(found, want, argument, gradient); };
  add(q, c.q, [&] { return out_of_line(c.rows && !c.row_query ? d_q + d_row_query : d_q, c.q_index, c.q); });
  add(k, c.k, [&] { return out_of_line(of_keys(d_k, a.D, a.rest), c.k_index, c.k); });
  add(v, c.v, [&] { return out_of_line(of_keys(d_v, a.Dv, 1), c.k_index, c.v); });
  add(bias, c.bias, [&] { return (d_bias.size(0) == 1 ? d_bias[0] : d_bias.sum(0)).view(c.bias->sizes()); });
  add(slopes, c.slopes, [&] { return of_tables(d_slopes, *c.slopes); });
  add(table, c.table, [&] { return of_tables(d_table, *c.table); });
  add(rows_too, c.rows, [&] { return of_tables(d_rows, *c.rows); });
  add(row_query, c.row_query, [&] { return out_of_line(d_row_query, c.q_index, *c.row_query); });
  add(value_rows, c.value_rows, [&] { return of_tables(d_value_rows, *c.value_rows); });
  return found;
}

bool empty(const AttentionArguments& c) { return c.q.numel() == 0 || c.k.numel() == 0 || c.v.numel() == 0 || queries_of(c) == 0 || keys_of(c) == 0; }

}  // namespace

OutAndLse attention_cpu(const AttentionArguments& c) {
  if (empty(c)) return attention_formula(c);
  return c.q.scalar_type() == at::kDouble ? forward<double>(c) : forward<float>(c);
}

Gradients attention_backward_cpu(const Backward& call, const AttentionArguments& c) {
  if (empty(c)) return std::nullopt;
  return c.q.scalar_type() == at::kDouble ? backward<double>(call, c) : backward<float>(call, c);
}

}  // namespace foveate::ops
