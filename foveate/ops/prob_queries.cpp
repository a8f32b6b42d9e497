#include <foveate/prob_queries.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <foveate/op.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace foveate::ops {

int64_t active_count(int64_t factor, int64_t length) {
  const auto logarithm = static_cast<int64_t>(std::ceil(std::log(static_cast<double>(std::max<int64_t>(length, 1)))));
  return std::min(std::max<int64_t>(factor * logarithm, 1), length);
}

namespace {

/// [N,U]
Tensor drawn(const Tensor& q, const Tensor& k, const optional<Tensor>& sample, const optional<Tensor>& seed, int64_t factor) {
  if (sample) return sample->to(at::kLong);
  const auto generator = at::detail::createCPUGenerator(seed ? static_cast<uint64_t>(seed->item<int64_t>()) : 0);
  const int64_t M = k.size(2);
  return at::randint(std::max<int64_t>(M, 1), {q.size(2), active_count(factor, M)}, generator, at::TensorOptions().dtype(at::kLong)).to(q.device());
}

/// The u largest of m [B,H,N].
std::tuple<Tensor, Tensor> active(const Tensor& m, int64_t factor) {
  const int64_t N = m.size(2), u = active_count(factor, N);
  const Tensor best = std::get<1>(m.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true)).narrow(2, 0, u);
  const Tensor order = at::constant_pad_nd(std::get<0>(best.sort(-1)), {0, N - u}, -1);
  const Tensor places = at::arange(u, best.options()).expand_as(best);
  const Tensor place = at::full_like(order, -1).scatter(2, order.narrow(2, 0, u), places);
  return {order, place};
}

std::tuple<Tensor, Tensor> prob_queries_formula(const Tensor& q, const Tensor& k, const optional<Tensor>& sample, const optional<Tensor>& seed,
                                                int64_t factor) {
  const auto type = at::toOpMathType(q.scalar_type());
  const Tensor index = drawn(q, k, sample, seed, factor), none = index < 0;                                           // [N,U]
  const Tensor keys = k.detach().to(type).index_select(2, index.clamp_min(0).flatten()).unflatten(2, index.sizes());  // [B,H,N,U,D]
  const Tensor p = at::matmul(keys, q.detach().to(type).unsqueeze(-1)).squeeze(-1);                                   // [B,H,N,U]
  const Tensor most = p.masked_fill(none, -std::numeric_limits<double>::infinity()).amax(-1);
  return active(most - p.masked_fill(none, 0).sum(-1) / k.size(2), factor);
}

std::tuple<Tensor, Tensor> prob_queries_meta(const Tensor& q, const Tensor&, const optional<Tensor>&, const optional<Tensor>&, int64_t) {
  const auto make = [&] { return q.new_empty_symint({extent(q, 0), extent(q, 1), extent(q, 2)}, q.options().dtype(at::kLong)); };
  return {make(), make()};
}

/// The measure of every query, without its sampled keys side by side.
std::tuple<Tensor, Tensor> prob_queries_cpu(const Tensor& q_given, const Tensor& k_given, const optional<Tensor>& sample,
                                            const optional<Tensor>& seed, int64_t factor) {
  const auto type = at::toOpMathType(q_given.scalar_type());
  const Tensor q = q_given.detach().to(type).contiguous(), k = k_given.detach().to(type).contiguous();
  const Tensor index = drawn(q, k, sample, seed, factor).contiguous();
  const int64_t heads = q.size(0) * q.size(1), N = q.size(2), M = k.size(2), D = q.size(3), U = index.size(1);
  Tensor m = at::empty({q.size(0), q.size(1), N}, q.options());
  AT_DISPATCH_FLOATING_TYPES(type, "prob_queries", [&] {
    const auto* qs = q.const_data_ptr<scalar_t>();
    const auto* ks = k.const_data_ptr<scalar_t>();
    const auto* keys = index.const_data_ptr<int64_t>();
    auto* measures = m.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, heads * N, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const scalar_t* const query = qs + row * D;
        const scalar_t* const head = ks + row / N * M * D;
        scalar_t most = -std::numeric_limits<scalar_t>::infinity(), sum = 0;
        for (int64_t j = 0; j < U; ++j) {
          const int64_t chosen = keys[row % N * U + j];
          if (chosen < 0) continue;
          const scalar_t* const key = head + chosen * D;
          const scalar_t dot = std::inner_product(query, query + D, key, scalar_t(0));
          most = std::max(most, dot);
          sum += dot;
        }
        measures[row] = most - sum / static_cast<scalar_t>(M);
      }
    });
  });
  return active(m, factor);
}

}  // namespace

FOVEATE_OP(prob_queries, "_prob_queries(Tensor q, Tensor k, Tensor? sample, Tensor? seed, int factor) -> (Tensor, Tensor)",
           {.formula = &prob_queries_formula, .meta = &prob_queries_meta, .cpu = &prob_queries_cpu})

ActiveQueries prob_queries(const Tensor& q, const Tensor& k, const optional<Tensor>& sample, const optional<Tensor>& seed, int64_t factor) {
  TORCH_CHECK_VALUE(factor > 0, "prob_queries: factor must be positive, got ", factor);
  auto [order, place] = primitive<decltype(prob_queries_formula)>("foveate::_prob_queries").call(q.detach(), k.detach(), sample, seed, factor);
  return {.order = std::move(order), .place = std::move(place)};
}

}  // namespace foveate::ops
