#include <foveate/lsh.h>

#include <ATen/CPUGeneratorImpl.h>
#include <foveate/attention_formula.h>
#include <foveate/op.h>

#include <bit>
#include <numeric>

namespace foveate::ops {
namespace {

/// The number of buckets, in factors.
std::vector<int64_t> factors_for(int64_t N, int64_t chunk, int64_t rule, optional<int64_t> longest) {
  if (static_cast<BucketRule>(rule) == BucketRule::one_a_chunk) return {std::max<int64_t>(2, (N + 2 * chunk - 1) / (2 * chunk) * 2)};
  const auto power = std::max<int64_t>(1, static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(2 * (N / chunk)))) - 1);
  const int64_t chunks = longest.value_or(N) / chunk;
  const int64_t limit = 2 * std::max(static_cast<int64_t>(std::sqrt(static_cast<double>(chunks))), chunk);
  if ((int64_t{1} << power) <= limit) return {int64_t{1} << power};
  return {int64_t{1} << power / 2, int64_t{1} << (power - power / 2)};
}

/// [B or 1,H or 1,D,R or 1,columns]
Tensor rotations_for(const Tensor& x, const optional<Tensor>& given, const optional<Tensor>& seed, bool per_head, int64_t rounds, int64_t columns) {
  const int64_t B = x.size(0), H = x.size(1), D = x.size(3);
  if (!given) {
    const auto generator = at::detail::createCPUGenerator(seed ? static_cast<uint64_t>(seed->item<int64_t>()) : 0);
    return at::randn({1, per_head ? H : 1, D, rounds, columns}, generator, x.options().device(at::kCPU)).to(x.device());
  }
  const int64_t many = given->size(0);
  TORCH_CHECK_VALUE((many == 1 || many == H || many == B * H) && given->size(1) == D && given->size(2) == rounds && given->size(3) == columns,
                    "lsh_buckets: rotations must be [1 or H or B H,D,rounds,columns] = [1 or ", H, " or ", B * H, ",", D, ",", rounds, ",", columns,
                    "], got ", given->sizes());
  const Tensor w = given->detach().to(x.scalar_type());
  return many == B * H && many != H ? w.unflatten(0, {B, H}) : w.unsqueeze(0);
}

Tensor lsh_buckets_formula(const Tensor& x_given, const optional<Tensor>& rotations, const optional<Tensor>& seed, const optional<Tensor>& mask,
                           const std::vector<int64_t>& given_factors, int64_t rounds, int64_t chunk, int64_t rule, optional<int64_t> longest,
                           bool per_head, bool rehash) {
  const Tensor x = x_given.detach().to(accumulation_type(x_given.scalar_type()));
  const std::vector<int64_t> factors = given_factors.empty() ? factors_for(x.size(2), chunk, rule, longest) : given_factors;
  const int64_t columns = std::accumulate(factors.begin(), factors.end(), int64_t{0}) / 2;
  const Tensor w = rotations_for(x, rotations, seed, per_head, rehash ? rounds : 1, columns);
  const auto both = [](const Tensor& p) { return at::cat({p, p.neg()}, -1); };
  const int64_t buckets = std::accumulate(factors.begin(), factors.end(), int64_t{1}, std::multiplies<>());
  Tensor bucket;  // [B,H,R,N]
  if (rehash) {
    std::vector<Tensor> of_round;
    for (int64_t r = 0; r < rounds; ++r) {
      const Tensor p = at::matmul(x, w.select(3, r));  // [B,H,N,columns]
      Tensor found;
      int64_t base = 1, column = 0;
      for (const int64_t f : factors) {
        const Tensor best = both(p.narrow(3, column, f / 2)).argmax(-1) * base;
        found = found.defined() ? found + best : best;
        base *= f;
        column += f / 2;
      }
      of_round.push_back(found);
    }
    bucket = at::stack(of_round, 2);
  } else {
    const Tensor order = std::get<1>(both(at::matmul(x, w.select(3, 0))).sort(/*stable=*/true, /*dim=*/-1, /*descending=*/false));
    bucket = order.narrow(3, buckets - rounds, rounds).transpose(2, 3);
  }
  Tensor many = at::full({}, buckets, bucket.options());
  if (mask) {
    const Tensor hidden = mask->logical_not();
    many = many + hidden.any().to(at::kLong);
    bucket = at::where(hidden.unsqueeze(1).unsqueeze(1), at::full({}, buckets, bucket.options()), bucket);
  }
  return (bucket + many * at::arange(rounds, bucket.options()).unsqueeze(1)).contiguous();
}

Tensor lsh_buckets_meta(const Tensor& x, const optional<Tensor>&, const optional<Tensor>&, const optional<Tensor>&, const std::vector<int64_t>&,
                        int64_t rounds, int64_t, int64_t, optional<int64_t>, bool, bool) {
  return x.new_empty_symint({extent(x, 0), extent(x, 1), rounds, extent(x, 2)}, x.options().dtype(at::kLong));
}

using Line = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Line lsh_line_formula(const Tensor& buckets, int64_t chunk, bool within) {
  const int64_t R = buckets.size(2), N = buckets.size(3), full = (N + chunk - 1) / chunk * chunk;  // places of a round
  const auto [label, order] = buckets.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/false);
  const auto in_line = [&](const Tensor& x) { return at::constant_pad_nd(x, {0, full - N}, -1).flatten(2).contiguous(); };
  const Tensor first = at::arange(R, order.options()).unsqueeze(1) * full;                                                // [R,1]
  const Tensor place = at::zeros_like(order).scatter(3, order, at::arange(N, order.options()).expand_as(order)) + first;  // [B,H,R,N]
  const int64_t chunks = std::max<int64_t>(1, R * full / chunk);
  Tensor here = place.floor_divide(chunk), behind = (here + 1).remainder(chunks);
  if (within) {
    here = here + buckets * chunks;
    behind = behind + buckets * chunks;
  }
  return {in_line(order), place.flatten(2).contiguous(), in_line(label), at::stack({here, behind})};
}

Line lsh_line_meta(const Tensor& buckets, int64_t chunk, bool) {
  const Size B = extent(buckets, 0), H = extent(buckets, 1), R = extent(buckets, 2), N = extent(buckets, 3);
  const auto make = [&](at::SymIntArrayRef shape) { return buckets.new_empty_symint(shape); };
  const Size places = R * ((N + chunk - 1) / chunk * chunk);
  return {make({B, H, places}), make({B, H, R * N}), make({B, H, places}), make({Size(2), B, H, R, N})};
}

}  // namespace

FOVEATE_OP(lsh_buckets,
           "_lsh_buckets(Tensor x, Tensor? rotations, Tensor? seed, Tensor? mask, int[] factors, int rounds, int chunk, int rule, int? longest, "
           "bool per_head, bool rehash) -> Tensor",
           {.formula = &lsh_buckets_formula, .meta = &lsh_buckets_meta})

FOVEATE_OP(lsh_line, "_lsh_line(Tensor buckets, int chunk, bool within) -> (Tensor token, Tensor place, Tensor label, Tensor meetings)",
           {.formula = &lsh_line_formula, .meta = &lsh_line_meta})

Tensor lsh_buckets(const Tensor& x, const LSHBuckets& o) {
  TORCH_CHECK_VALUE(o.rounds > 0 && o.chunk > 0, "lsh_buckets: rounds and chunk must be positive, got ", o.rounds, " and ", o.chunk);
  for (const int64_t f : o.factors) TORCH_CHECK_VALUE(f > 0 && f % 2 == 0, "lsh_buckets: numbers of buckets must be even, got ", f);
  TORCH_CHECK_VALUE(o.rehash || o.factors.size() <= 1, "lsh_buckets: several buckets of one rotation must not be factors, got ", o.factors.size());
  return primitive<decltype(lsh_buckets_formula)>("foveate::_lsh_buckets")
      .call(x.detach(), o.rotations ? optional(o.rotations->detach()) : std::nullopt, o.seed, o.mask, o.factors, o.rounds, o.chunk,
            static_cast<int64_t>(o.rule), o.longest, o.per_head, o.rehash);
}

LSHLine lsh_line(const Tensor& buckets, int64_t chunk, bool within) {
  TORCH_CHECK_VALUE(chunk > 0, "lsh_line: chunk must be positive, got ", chunk);
  auto [token, place, label, meetings] = primitive<decltype(lsh_line_formula)>("foveate::_lsh_line").call(buckets, chunk, within);
  return {.token = std::move(token), .place = std::move(place), .label = std::move(label), .meetings = std::move(meetings)};
}

}  // namespace foveate::ops
