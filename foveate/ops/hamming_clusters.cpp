#include <foveate/attention_formula.h>
#include <foveate/hamming_clusters.h>
#include <foveate/op.h>

namespace foveate::ops {
namespace {

using Result = std::tuple<Tensor, Tensor>;

Result hamming_clusters_formula(const Tensor& x_given, const Tensor& planes_given, const Tensor& seeds, const optional<Tensor>& mask,
                                const optional<Tensor>& empty_codes, int64_t iterations, bool thresholds) {
  const auto type = accumulation_type(x_given.scalar_type());
  const Tensor x = x_given.detach().to(type), planes = planes_given.detach().to(type);
  const int64_t D = x.size(3), C = seeds.size(0);
  const Tensor products = at::matmul(x, planes.narrow(1, 0, D).t());  // [B,H,N,bits]
  const Tensor bits = (thresholds ? products > planes.select(1, D) : products > 0).to(type);
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

Result hamming_clusters_meta(const Tensor& x, const Tensor&, const Tensor& seeds, const optional<Tensor>&, const optional<Tensor>&, int64_t, bool) {
  const Size B = extent(x, 0), H = extent(x, 1);
  return {seeds.new_empty_symint({B, H, extent(x, 2)}), seeds.new_empty_symint({B, H, extent(seeds, 0)})};
}

}  // namespace

FOVEATE_OP(hamming_clusters,
           "_hamming_clusters(Tensor x, Tensor planes, Tensor seeds, Tensor? mask, Tensor? empty_codes, int iterations, bool thresholds) -> "
           "(Tensor groups, Tensor counts)",
           {.formula = &hamming_clusters_formula, .meta = &hamming_clusters_meta})

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
