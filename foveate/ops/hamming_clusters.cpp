#include <foveate/hamming_clusters.h>

#include "kernels/dispatch.h"
#include "kernels/selection.h"

#include <ATen/Parallel.h>
#include <foveate/attention_formula.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

using Result = std::tuple<Tensor, Tensor>;

/// 0 or 1 for each plane: [B,H,N,bits]
Tensor bits_of(const Tensor& x_given, const Tensor& planes_given, bool thresholds) {
  const auto type = accumulation_type(x_given.scalar_type());
  const Tensor x = x_given.detach().to(type), planes = planes_given.detach().to(type);
  const int64_t D = x.size(3);
  const Tensor products = at::matmul(x, planes.narrow(1, 0, D).t());
  return (thresholds ? products > planes.select(1, D) : products > 0).to(type);
}

Result hamming_clusters_formula(const Tensor& x_given, const Tensor& planes_given, const Tensor& seeds, const optional<Tensor>& mask,
                                const optional<Tensor>& empty_codes, int64_t iterations, bool thresholds) {
  const Tensor bits = bits_of(x_given, planes_given, thresholds);
  const auto type = bits.scalar_type();
  const int64_t C = seeds.size(0);
  const Tensor numbers = at::arange(C, seeds.options());
  Tensor codes = bits.index_select(2, seeds), groups, member;  // [B,H,C,bits], [B,H,N], [B,H,N,C]
  for (int64_t it = 0; it < iterations; ++it) {
    const Tensor away = codes.sum(-1).unsqueeze(2) - at::matmul(bits, codes.transpose(2, 3)) * 2;  // distance, less the ones of a vector
    groups = away.argmin(-1);
    member = groups.unsqueeze(3) == numbers;
    if (mask) member = member & mask->unsqueeze(1).unsqueeze(3);
    if (it + 1 == iterations) break;
    const Tensor ones = at::matmul(member.to(type).transpose(2, 3), bits), size = member.sum(2).unsqueeze(3);  // [B,H,C,bits], [B,H,C,1]
    codes = at::where(size > 0, (ones * 2 > size).to(type), empty_codes ? empty_codes->select(0, it).to(type) : codes);
  }
  if (mask) groups = groups.masked_fill(mask->logical_not().unsqueeze(1), C + 1);
  return {groups.contiguous(), member.sum(2).contiguous()};
}

/// bool or 0 and 1 [...,bits] -> int [...], the first bit lowest
Tensor packed(const Tensor& bits) {
  Tensor code = at::zeros(bits.sizes().slice(0, static_cast<std::size_t>(bits.dim() - 1)), bits.options().dtype(at::kLong));
  for (int64_t r = 0; r < bits.size(-1); ++r) code.add_(bits.select(-1, r).to(at::kLong), int64_t{1} << r);
  return code;
}

Result hamming_clusters_cpu(const Tensor& x, const Tensor& planes, const Tensor& seeds_given, const optional<Tensor>& mask_given,
                            const optional<Tensor>& empty_codes, int64_t iterations, bool thresholds) {
  const int64_t B = x.size(0), H = x.size(1), N = x.size(2), C = seeds_given.size(0), bits = planes.size(0);
  if (x.numel() == 0) return hamming_clusters_formula(x, planes, seeds_given, mask_given, empty_codes, iterations, thresholds);
  const Tensor seeds = seeds_given.contiguous(), mask = mask_given ? mask_given->contiguous() : Tensor();
  TORCH_CHECK_VALUE(seeds.min().item<int64_t>() >= 0 && seeds.max().item<int64_t>() < N, "hamming_clusters: seeds must lie in 0 to N - 1 = ", N - 1,
                    ", got ", seeds);
  const Tensor code = packed(bits_of(x, planes, thresholds)), empty = empty_codes ? packed(*empty_codes) : Tensor();
  Tensor groups = at::empty({B, H, N}, code.options()), counts = at::empty({B, H, C}, code.options());
  Tensor centre = at::empty({B, H, C}, code.options()), ones = at::empty({B, H, C, bits}, code.options());
  const auto as_codes = [](const Tensor& t) { return reinterpret_cast<const unsigned long*>(t.const_data_ptr<int64_t>()); };
  const kernels::Codes arguments{.H = H,
                                 .N = N,
                                 .C = C,
                                 .bits = bits,
                                 .iterations = iterations,
                                 .code = as_codes(code),
                                 .seeds = seeds.const_data_ptr<int64_t>(),
                                 .mask = mask_given ? reinterpret_cast<const unsigned char*>(mask.const_data_ptr<bool>()) : nullptr,
                                 .empty_codes = empty_codes ? as_codes(empty) : nullptr,
                                 .groups = groups.mutable_data_ptr<int64_t>(),
                                 .counts = counts.mutable_data_ptr<int64_t>(),
                                 .centre = reinterpret_cast<unsigned long*>(centre.mutable_data_ptr<int64_t>()),
                                 .ones = ones.mutable_data_ptr<int64_t>()};
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) { cpu_kernels().cluster_codes(arguments, begin, end); });
  return {groups, counts};
}

Result hamming_clusters_meta(const Tensor& x, const Tensor&, const Tensor& seeds, const optional<Tensor>&, const optional<Tensor>&, int64_t, bool) {
  const Size B = extent(x, 0), H = extent(x, 1);
  return {seeds.new_empty_symint({B, H, extent(x, 2)}), seeds.new_empty_symint({B, H, extent(seeds, 0)})};
}

}  // namespace

FOVEATE_OP(hamming_clusters,
           "_hamming_clusters(Tensor x, Tensor planes, Tensor seeds, Tensor? mask, Tensor? empty_codes, int iterations, bool thresholds) -> "
           "(Tensor groups, Tensor counts)",
           {.formula = &hamming_clusters_formula, .meta = &hamming_clusters_meta, .cpu = &hamming_clusters_cpu})

Clustered hamming_clusters(const Tensor& x, const Tensor& planes, const Tensor& seeds, const HammingClusters& o) {
  TORCH_CHECK_VALUE(planes.dim() == 2 && extent(planes, 1) == extent(x, 3) + 1, "hamming_clusters: planes must be [bits,D+1] with D = ", extent(x, 3),
                    ", got ", planes.sym_sizes());
  TORCH_CHECK_VALUE(extent(planes, 0) > 0 && extent(planes, 0) < 64, "hamming_clusters: planes must be 1 to 63, got ", extent(planes, 0));
  TORCH_CHECK_VALUE(o.iterations > 0 && extent(seeds, 0) > 0, "hamming_clusters: there must be an iteration and a seed, got ", o.iterations, " and ",
                    extent(seeds, 0));
  TORCH_CHECK_VALUE(!o.empty_codes || (extent(*o.empty_codes, 0) >= o.iterations - 1 && extent(*o.empty_codes, 1) == extent(seeds, 0) &&
                                       extent(*o.empty_codes, 2) == extent(planes, 0)),
                    "hamming_clusters: empty_codes must be [iterations - 1,C,bits], got ",
                    o.empty_codes ? o.empty_codes->sym_sizes() : c10::SymIntArrayRef());
  const auto [groups, counts] = primitive<decltype(hamming_clusters_formula)>("foveate::_hamming_clusters")
                                    .call(x.detach(), planes.detach(), seeds, o.mask, o.empty_codes, o.iterations, o.thresholds);
  return {.groups = groups, .counts = counts};
}

}  // namespace foveate::ops
