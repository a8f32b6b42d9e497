#include <foveate/product_key_lookup.h>

#include "kernels/product_keys.h"

#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <foveate/op.h>
#include <foveate/prepared.h>

namespace foveate::ops {
namespace {

using Chosen = std::tuple<Tensor, Tensor>;  // scores, slots

template <class scalar> const kernels::ProductKeysEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().product_keys_double;
  else return *cpu_kernels().product_keys_float;
}

/// The best k along the last dimension and where they are, falling; of equals the first.
Chosen best(const Tensor& x, int64_t k) {
  const auto [values, places] = at::sort(x, /*stable=*/true, /*dim=*/-1, /*descending=*/true);
  return {values.narrow(-1, 0, k), places.narrow(-1, 0, k)};
}

Chosen product_keys_formula(const Tensor& q, const Tensor& keys, int64_t k) {
  const auto type = accumulation_type(q.scalar_type());
  const Tensor halves = at::matmul(q.to(type).permute({1, 2, 0, 3}), keys.to(type).transpose(-1, -2)).permute({2, 0, 1, 3});  // [T,H,2,n]
  auto [scores, slots] = best_products(halves, k);
  return {scores.contiguous(), slots.contiguous()};
}

Chosen product_keys_meta(const Tensor& q, const Tensor&, int64_t k) {
  const auto shape = {extent(q, 0), extent(q, 1), Size(k)};
  return {q.new_empty_symint(shape, q.options().dtype(accumulation_type(q.scalar_type()))), q.new_empty_symint(shape, q.options().dtype(at::kLong))};
}

/// Contiguous tensors in the type that is computed in, and the arguments that point into them.
template <class scalar> kernels::ProductKeys<scalar> prepared(const Tensor& q, const Tensor& keys, int64_t k, Alive& alive) {
  return {.q = alive.numbers<scalar>(q),
          .panels = nullptr,
          .keys = alive.numbers<scalar>(keys),
          .head = keys.size(0) == 1 ? 0 : keys.size(1),
          .half = keys.size(1) == 1 ? 0 : 1,
          .T = q.size(0),
          .H = q.size(1),
          .h = q.size(3),
          .n = keys.size(2),
          .k = k,
          .tables = keys.size(0) * keys.size(1),
          .ranges = 8};
}

template <class scalar> Chosen choose(const Tensor& q, const Tensor& keys, int64_t k) {
  Alive alive(q);
  const auto& run = engine<scalar>();
  auto a = prepared<scalar>(q, keys, k, alive);
  const Tensor across = at::constant_pad_nd(keys.to(alive.options.dtype()), {0, 0, 0, padded(a.n, run.panel) - a.n});
  a.panels = alive.numbers<scalar>(across.unflatten(2, {-1, run.panel}).transpose(-1, -2));
  const Tensor scores = at::empty({a.T, a.H, k}, alive.options), slots = at::empty({a.T, a.H, k}, q.options().dtype(at::kLong));
  a.scores = scores.mutable_data_ptr<scalar>();
  a.slots = slots.mutable_data_ptr<int64_t>();
  alive.in_parallel<scalar>(a, 0, (a.T + kernels::product_tile - 1) / kernels::product_tile * a.H, run.choose_room(a), run.choose);
  return {scores, slots};
}

Chosen product_keys_cpu(const Tensor& q, const Tensor& keys, int64_t k) {
  if (q.numel() == 0) return product_keys_formula(q, keys, k);
  return q.scalar_type() == at::kDouble ? choose<double>(q, keys, k) : choose<float>(q, keys, k);
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Tensor& q, const Tensor& keys, int64_t k) {
  Alive alive(q);
  const auto& run = engine<scalar>();
  auto a = prepared<scalar>(q, keys, k, alive);
  const Tensor slots = call.results[1].contiguous();
  a.slots = const_cast<int64_t*>(slots.const_data_ptr<int64_t>());  // NOLINT: read only in the backward
  a.d_scores = alive.numbers<scalar>(call.gradients[0]);
  Wanted wanted(call);
  std::vector<Tensor> found;
  give(found, wanted(q), q, [&] {
    Tensor d_q = at::empty(q.sizes(), alive.options);
    a.d_q = d_q.mutable_data_ptr<scalar>();
    constexpr int64_t queries_a_thread = 32;
    at::parallel_for(0, a.T * a.H, queries_a_thread, [&](int64_t begin, int64_t end) { run.d_q(a, begin, end); });
    return d_q;
  });
  give(found, wanted(keys), keys, [&] {
    Tensor d_keys = at::zeros(keys.sizes(), alive.options);
    a.d_keys = d_keys.mutable_data_ptr<scalar>();
    at::parallel_for(0, a.tables * a.ranges, 1, [&](int64_t begin, int64_t end) { run.d_keys(a, begin, end); });
    return d_keys;
  });
  return found;
}

Gradients product_keys_backward_cpu(const Backward& call, Tensor q, Tensor keys, int64_t k) {
  if (q.numel() == 0 || !call.gradients[0].defined()) return std::nullopt;
  return q.scalar_type() == at::kDouble ? backward<double>(call, q, keys, k) : backward<float>(call, q, keys, k);
}

}  // namespace

FOVEATE_OP(product_keys, "_product_keys(Tensor q, Tensor keys, int k) -> (Tensor scores, Tensor slots)",
           {.formula = &product_keys_formula, .meta = &product_keys_meta, .cpu = &product_keys_cpu, .cpu_backward = &product_keys_backward_cpu})

ProductKeys best_products(const Tensor& halves, int64_t k) {
  const int64_t n = plain_extent(halves, 3);
  const auto [values, places] = best(halves.detach(), k);  // [T,H,2,k]
  std::vector<Tensor> sums, slots;
  for (int64_t a = 0; a < k; ++a) {
    const int64_t partners = k / (a + 1);
    sums.push_back(values.select(2, 0).narrow(-1, a, 1) + values.select(2, 1).narrow(-1, 0, partners));
    slots.push_back(places.select(2, 0).narrow(-1, a, 1) * n + places.select(2, 1).narrow(-1, 0, partners));
  }
  const Tensor chosen = at::cat(slots, -1).gather(-1, std::get<1>(best(at::cat(sums, -1), k)));
  return {.scores = halves.select(2, 0).gather(-1, chosen.floor_divide(n)) + halves.select(2, 1).gather(-1, chosen.remainder(n)), .slots = chosen};
}

ProductKeys product_keys(const Tensor& q, const Tensor& keys, int64_t k) {
  TORCH_CHECK_VALUE(q.dim() == 4 && extent(q, 2) == 2, "product_keys: q must be [T,H,2,h], got ", q.sym_sizes());
  TORCH_CHECK_VALUE(keys.dim() == 4 && extent(keys, 3) == extent(q, 3) && (extent(keys, 0) == 1 || extent(keys, 0) == extent(q, 1)) &&
                        (extent(keys, 1) == 1 || extent(keys, 1) == 2),
                    "product_keys: keys must be [H or 1,2 or 1,n,h] beside q ", q.sym_sizes(), ", got ", keys.sym_sizes());
  TORCH_CHECK_VALUE(k > 0 && k <= plain_extent(keys, 2), "product_keys: k must lie between 1 and the number of keys of a half, ", extent(keys, 2),
                    ", got ", k);
  TORCH_CHECK_TYPE(keys.scalar_type() == q.scalar_type(), "product_keys: keys must be ", q.scalar_type(), " like q, got ", keys.scalar_type());
  auto [scores, slots] = primitive<decltype(product_keys_formula)>("foveate::_product_keys").call(q, keys, k);
  return {.scores = std::move(scores), .slots = std::move(slots)};
}

namespace {

Tensor weighted_rows_formula(const Tensor& values, const Tensor& weights, const Tensor& index, bool) {
  const auto type = accumulation_type(values.scalar_type());
  const Tensor rows = values.index_select(0, index.reshape({-1})).to(type).reshape({index.size(0), index.size(1), values.size(1)});  // [T,K,Dv]
  return (weights.to(type).unsqueeze(-1) * rows).sum(1).to(values.scalar_type());
}

Tensor weighted_rows_meta(const Tensor& values, const Tensor& weights, const Tensor&, bool) {
  return values.new_empty_symint({extent(weights, 0), extent(values, 1)});
}

template <class scalar> kernels::WeightedRows<scalar> prepared_rows(const Tensor& values, const Tensor& weights, const Tensor& index, Alive& alive) {
  const Tensor& kept = alive.kept(values.contiguous());
  return {.values = kept.const_data_ptr(),
          .kind = kind_of(kept.scalar_type()),
          .weights = alive.numbers<scalar>(weights),
          .index = alive.kept(index.to(at::kLong).contiguous()).const_data_ptr<int64_t>(),
          .T = index.size(0),
          .K = index.size(1),
          .width = values.size(1)};
}

constexpr int64_t rows_a_thread = 8;

template <class scalar> Tensor sum_rows(const Tensor& values, const Tensor& weights, const Tensor& index) {
  Alive alive(values);
  auto a = prepared_rows<scalar>(values, weights, index, alive);
  const Tensor out = at::empty({a.T, a.width}, alive.options);
  a.out = out.mutable_data_ptr<scalar>();
  at::parallel_for(0, a.T, rows_a_thread, [&](int64_t begin, int64_t end) { engine<scalar>().rows(a, begin, end); });
  return out.to(values.scalar_type());
}

Tensor weighted_rows_any(const Tensor& values, const Tensor& weights, const Tensor& index, bool sparse) {
  if (!values.is_cpu()) return weighted_rows_formula(values, weights, index, sparse);
  if (index.numel() > 0) {
    const auto [least, most] = index.aminmax();
    TORCH_CHECK_INDEX(least.item<int64_t>() >= 0 && most.item<int64_t>() < values.size(0), "weighted_rows: index must lie in [0, ", values.size(0),
                      "), got ", least.item<int64_t>(), " to ", most.item<int64_t>());
  }
  return values.scalar_type() == at::kDouble ? sum_rows<double>(values, weights, index) : sum_rows<float>(values, weights, index);
}

/// The places that read each row, in order, found by counting.
struct Readers {
  Tensor order, start, row;
  int64_t rows = 0;

  Readers(const Tensor& index, int64_t slots, bool only_read) {
    const int64_t places = index.numel();
    const auto* read = index.const_data_ptr<int64_t>();
    std::vector<int64_t> first(static_cast<std::size_t>(slots) + 1, 0);
    const auto of = [&](int64_t slot) -> int64_t& { return first[static_cast<std::size_t>(slot)]; };
    for (int64_t i = 0; i < places; ++i) ++of(read[i] + 1);
    std::vector<int64_t> starts, rows_read;
    for (int64_t slot = 0; slot < slots; ++slot) {
      const bool is_read = of(slot + 1) > 0;
      of(slot + 1) += of(slot);
      if (only_read && !is_read) continue;
      starts.push_back(of(slot));
      rows_read.push_back(slot);
    }
    starts.push_back(places);
    order = at::empty({places}, at::kLong);
    auto* to = order.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < places; ++i) to[of(read[i])++] = i;
    start = at::tensor(starts, at::kLong);
    row = at::tensor(rows_read, at::kLong);
    rows = row.numel();
  }
};

template <class scalar> std::vector<Tensor> rows_backward(const Backward& call, const Tensor& values, const Tensor& weights, const Tensor& index,
                                                          bool sparse) {
  Alive alive(values);
  const auto& run = engine<scalar>();
  auto a = prepared_rows<scalar>(values, weights, index, alive);
  a.d_out = alive.numbers<scalar>(call.gradients[0]);
  Wanted wanted(call);
  std::vector<Tensor> found;
  if (wanted(values)) {
    const Readers readers(index.to(at::kLong).contiguous(), values.size(0), sparse);
    const Tensor d_values = at::empty({readers.rows, a.width}, alive.options);
    a.order = readers.order.const_data_ptr<int64_t>();
    a.start = readers.start.const_data_ptr<int64_t>();
    a.d_values = d_values.mutable_data_ptr<scalar>();
    at::parallel_for(0, readers.rows, rows_a_thread, [&](int64_t begin, int64_t end) { run.d_values(a, begin, end); });
    const Tensor typed = d_values.to(values.scalar_type());
    found.push_back(sparse ? at::_sparse_coo_tensor_unsafe(readers.row.unsqueeze(0), typed, values.sizes(), typed.options().layout(at::kSparse),
                                                           /*is_coalesced=*/true)
                           : typed);
  }
  give(found, wanted(weights), weights, [&] {
    Tensor d_weights = at::empty({a.T, a.K}, alive.options);
    a.d_weights = d_weights.mutable_data_ptr<scalar>();
    at::parallel_for(0, a.T, rows_a_thread, [&](int64_t begin, int64_t end) { run.d_weights(a, begin, end); });
    return d_weights;
  });
  return found;
}

Gradients weighted_rows_backward(const Backward& call, Tensor values, Tensor weights, Tensor index, bool sparse) {
  if (!call.gradients[0].defined()) return std::nullopt;
  if (values.is_cpu()) {
    return values.scalar_type() == at::kDouble ? rows_backward<double>(call, values, weights, index, sparse)
                                               : rows_backward<float>(call, values, weights, index, sparse);
  }
  if (!sparse) return std::nullopt;
  const auto type = accumulation_type(values.scalar_type());
  const Tensor g = call.gradients[0].to(type).unsqueeze(1);  // [T,1,Dv]
  Wanted wanted(call);
  std::vector<Tensor> found;
  if (wanted(values)) {
    const Tensor rows = (weights.to(type).unsqueeze(-1) * g).flatten(0, 1).to(values.scalar_type());
    found.push_back(
        at::_sparse_coo_tensor_unsafe(index.to(at::kLong).reshape({1, -1}), rows, values.sizes(), rows.options().layout(at::kSparse)).coalesce());
  }
  give(found, wanted(weights), weights,
       [&] { return (values.index_select(0, index.reshape({-1})).to(type).reshape({index.size(0), index.size(1), values.size(1)}) * g).sum(-1); });
  return found;
}

}  // namespace

FOVEATE_OP(weighted_rows, "_weighted_rows(Tensor values, Tensor weights, Tensor index, bool sparse) -> Tensor",
           {.formula = &weighted_rows_formula,
            .meta = &weighted_rows_meta,
            .cpu = &weighted_rows_any,
            .cpu_backward = &weighted_rows_backward,
            .any_device = true})

Tensor weighted_rows(const Tensor& values, const Tensor& weights, const Tensor& index, bool sparse) {
  TORCH_CHECK_VALUE(values.dim() == 2, "weighted_rows: values must be [S,Dv], got ", values.sym_sizes());
  TORCH_CHECK_VALUE(weights.dim() == 2 && index.dim() == 2 && extent(weights, 0) == extent(index, 0) && extent(weights, 1) == extent(index, 1),
                    "weighted_rows: weights and index must be [T,K], got ", weights.sym_sizes(), " and ", index.sym_sizes());
  TORCH_CHECK_TYPE(weights.scalar_type() == values.scalar_type() || weights.scalar_type() == accumulation_type(values.scalar_type()),
                   "weighted_rows: weights must be ", values.scalar_type(), " like values, or ", accumulation_type(values.scalar_type()), ", got ",
                   weights.scalar_type());
  TORCH_CHECK_TYPE(at::isIntegralType(index.scalar_type(), /*includeBool=*/false), "weighted_rows: index must be an integer tensor, got ",
                   index.scalar_type());
  return primitive<decltype(weighted_rows_formula)>("foveate::_weighted_rows").call(values, weights, index, sparse);
}

}  // namespace foveate::ops
