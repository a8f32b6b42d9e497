#include <ATen/OpMathType.h>
#include <foveate/cluster_attention.h>
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
  const Size N = extent(in.q, 2), M = extent(in.k, 2);
  const Size of_queries = (N + (o.q_cluster_size - 1)) / o.q_cluster_size, of_keys = (M + (o.k_cluster_size - 1)) / o.k_cluster_size;
  TORCH_CHECK_VALUE(of_queries == of_keys,
                    "smyrf_attention: q_cluster_size and k_cluster_size must cut queries and keys into equally many clusters, got ", of_queries,
                    " of ", N, " queries and ", of_keys, " of ", M, " keys");
  optional<Tensor> keep;  // as each round sorts the queries
  if (in.dropout_keep) keep = in.dropout_keep->gather(3, q_order.unsqueeze(-1).expand_symint({-1, -1, -1, -1, extent(*in.dropout_keep, 4)}));
  const Tensor out = ops::cluster_attention(in.q, in.k, in.v,
                                            {.q_index = q_order,
                                             .k_index = k_order,
                                             .q_size = o.q_cluster_size,
                                             .k_size = o.k_cluster_size,
                                             .key_mask = in.key_mask,
                                             .scale = o.scale,
                                             .dropout_keep = keep,
                                             .dropout = o.dropout,
                                             .merged = true})
                         .out;
  return {.out = masked_rows(out, in.query_mask), .q_order = q_order, .k_order = k_order};
}

FOVEATE_MECHANISM(SmyrfAttention)

}  // namespace foveate
