#include <ATen/OpMathType.h>
#include <foveate/merge_attention.h>
#include <foveate/smyrf.h>

namespace foveate {
namespace {

/// Tokens in ascending order of their place h [B,H,N,R] on each line, those that do not count behind all others: [B,H,R,N]
Tensor sorted(const Tensor& h, const optional<Tensor>& mask) {
  Tensor key = h.transpose(2, 3);
  if (mask) {
    const Tensor beyond = key.amax(-1, true) - key.amin(-1, true) + 1;
    key = key + beyond * mask->logical_not().to(key.scalar_type()).unsqueeze(1).unsqueeze(1);
  }
  return at::argsort(key, /*stable=*/true, /*dim=*/-1, /*descending=*/false);
}

/// The orders of queries and keys. Both are lifted to one length,
///   q' = [q, 0, sqrt(m - |q|^2)],  k' = [k, sqrt(m - |k|^2), 0],  m = max |q|^2 + max |k|^2  (over all tokens, padding too),
/// so that q'.k' = q.k and the nearest are those of the largest inner product; then projected on random lines. No gradient.
std::pair<Tensor, Tensor> orders(const SmyrfAttention::Options& o, const SmyrfAttention::Inputs& in) {
  const auto type = at::toOpMathType(in.q.scalar_type());
  const Tensor q = in.q.detach().to(type), k = in.k.detach().to(type);
  const Size D = extent(q, 3);
  const Tensor alpha = in.alpha ? in.alpha->detach().to(type) : at::randn_symint({D + 2, o.n_hashes}, q.options());  // [D+2,R]
  const Tensor beta = in.beta ? in.beta->detach().to(type) : at::rand({o.n_hashes}, q.options()) * o.r;              // [R]
  const Tensor q2 = q.square().sum(-1, true), k2 = k.square().sum(-1, true);                                         // [B,H,N,1], [B,H,M,1]
  const Tensor m = q2.amax(2, true) + k2.amax(2, true);                                                              // [B,H,1,1]
  const Tensor line = alpha.narrow_symint(0, 0, D);
  const Tensor hq = at::matmul(q, line) + (m - q2).clamp_min(0).sqrt() * alpha.select_symint(0, D + 1) + beta;
  const Tensor hk = at::matmul(k, line) + (m - k2).clamp_min(0).sqrt() * alpha.select_symint(0, D) + beta;
  return {sorted(hq, in.query_mask), sorted(hk, in.key_mask)};
}

/// Sorted tokens cut into clusters; where the last one is not full, its last token stands in, seen by nobody.
struct Clusters {
  Tensor order;         // [B,H,R,N]
  Tensor full;          // [B,H,R,C size]
  Tensor place;         // [C size]
  Size length, places;  // N, C size
  int64_t size;

  Clusters(const Tensor& sorted_tokens, int64_t cluster_size)
      : order(sorted_tokens), full(sorted_tokens), length(extent(sorted_tokens, 3)), size(cluster_size) {
    places = (length + size - 1) / size * size;
    place = at::arange(places, order.options());
    if (!is_whole()) full = order.index_select(3, place.clamp_max(length - 1));
  }
  /// False where it depends on a length not known yet.
  bool is_whole() const { return (places - length).maybe_as_int() == 0; }

  /// x [B,H,N,D] -> [C,B H R,size,D]
  Tensor pick(const Tensor& x) const { return cut(x.unsqueeze(2).expand_symint({-1, -1, extent(order, 2), -1, -1})); }

  /// x [B,H,R,N,D] -> [C,B H R,size,D]
  Tensor cut(const Tensor& x) const { return clusters_first(x.gather(3, full.unsqueeze(-1).expand_symint({-1, -1, -1, -1, extent(x, 4)}))); }

  /// Which of the places hold a token that takes part: [C,B H R,1,size]
  optional<Tensor> visible(const optional<Tensor>& mask) const {
    if (!mask && is_whole()) return std::nullopt;
    Tensor taken = (place < length).expand_as(full);
    if (mask) taken = taken & mask->unsqueeze(1).unsqueeze(1).expand_symint(order.sym_sizes()).gather(3, full);
    return clusters_first(taken).unsqueeze(2);
  }

  /// x [C,B H R,size,D] -> [R,B,H,N,D], each row back where its token stands
  Tensor put_back(const Tensor& x) const {
    const Tensor rank = at::scatter(at::zeros_like(order), 3, order, at::arange(length, order.options()).expand_as(order));
    const Tensor head = at::arange(extent(x, 1), order.options()).view_symint({extent(order, 0), extent(order, 1), extent(order, 2), 1});
    const c10::List<optional<Tensor>> where({rank.floor_divide(size), head, rank.remainder(size)});  // cluster, head and place: [B,H,R,N]
    return at::index(x, where).movedim(2, 0);
  }

 private:
  /// Sorted x [B,H,R,C size,...], cut. Clusters come first since torch.export cannot bound other foldings of a number that depends on the length.
  Tensor clusters_first(const Tensor& x) const { return x.unflatten_symint(3, {places / size, size}).movedim(3, 0).flatten(1, 3); }
};

}  // namespace

void SmyrfAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.n_hashes > 0, "smyrf_attention: n_hashes must be positive, got ", o.n_hashes);
  TORCH_CHECK_VALUE(o.q_cluster_size > 0 && o.k_cluster_size > 0, "smyrf_attention: q_cluster_size and k_cluster_size must be positive, got ",
                    o.q_cluster_size, " and ", o.k_cluster_size);
}

SmyrfAttention::Outputs SmyrfAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  TORCH_CHECK_VALUE(!in.alpha || (extent(*in.alpha, 0) == extent(in.q, 3) + 2 && extent(*in.alpha, 1) == o.n_hashes),
                    "smyrf_attention: alpha must be [D+2,R] with D = ", extent(in.q, 3), " as in q and R = n_hashes = ", o.n_hashes, ", got ",
                    in.alpha->sym_sizes());
  TORCH_CHECK_VALUE(!in.beta || extent(*in.beta, 0) == o.n_hashes, "smyrf_attention: beta must be [R] with R = n_hashes = ", o.n_hashes, ", got ",
                    in.beta->sym_sizes());
  const auto [q_order, k_order] = orders(o, in);
  const Clusters queries(q_order, o.q_cluster_size), keys(k_order, o.k_cluster_size);
  TORCH_CHECK_VALUE(queries.places / o.q_cluster_size == keys.places / o.k_cluster_size,
                    "smyrf_attention: q_cluster_size and k_cluster_size must cut queries and keys into equally many clusters, got ",
                    queries.places / o.q_cluster_size, " of ", queries.length, " queries and ", keys.places / o.k_cluster_size, " of ", keys.length,
                    " keys");

  const auto [out, lse] = ops::attention(queries.pick(in.q), keys.pick(in.k), keys.pick(in.v),
                                         {.mask = keys.visible(in.key_mask),
                                          .scale = o.scale.value_or(default_scale(in.q)),
                                          .dropout_keep = in.dropout_keep ? optional(queries.cut(*in.dropout_keep)) : std::nullopt,
                                          .dropout = o.dropout});
  const Tensor merged = ops::merge_attention(queries.put_back(out), queries.put_back(lse.unsqueeze(-1)).squeeze(-1)).out;
  return {.out = masked_rows(merged, in.query_mask), .q_order = q_order, .k_order = k_order};
}

FOVEATE_MECHANISM(SmyrfAttention)

}  // namespace foveate
