#include <foveate/clustered_attention.h>
#include <foveate/dropout.h>
#include <foveate/edge_attention.h>
#include <foveate/hamming_clusters.h>
#include <foveate/largest.h>
#include <foveate/segment_sum.h>

#include <limits>

namespace foveate {
namespace {

void check_clustering(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.clusters > 0 && o.iterations > 0, form, ": clusters and iterations must be positive, got ", o.clusters, " and ", o.iterations);
  TORCH_CHECK_VALUE(o.bits > 0 && o.bits < 64, form, ": bits must lie in 1 to 63, got ", o.bits);
  layers::check_dropout(form, "dropout", o.dropout);
  if constexpr (requires { o.topk; }) TORCH_CHECK_VALUE(o.topk > 0, form, ": topk must be positive, got ", o.topk);
}

/// C queries of N, none twice while there are as many.
Tensor drawn_seeds(const Tensor& q, int64_t clusters) {
  const Tensor order = at::rand_symint({extent(q, 2)}, q.options().dtype(at::kFloat)).argsort();
  return order.index_select(0, at::arange(clusters, order.options()).remainder(length_of(order, 0)));
}

/// The clusters of queries, and the mean query of each. Which cluster a query belongs to has no gradient.
struct Means {
  Tensor groups, counts, q;  // [B,H,N], [B,H,C], [B,H,C,D]
};
Means means_of(const char* form, const auto& o, const ClusteredInputs& in) {
  TORCH_CHECK_VALUE(!in.init_centroids || extent(*in.init_centroids, 0) == o.clusters, form,
                    ": init_centroids must be [C] with C = clusters = ", o.clusters, ", got ", in.init_centroids->sym_sizes());
  TORCH_CHECK_VALUE(!in.planes || extent(*in.planes, 1) == extent(in.q, 3) + 1, form, ": planes must be [bits,D+1] with D = ", extent(in.q, 3),
                    " as in q, got ", in.planes->sym_sizes());
  const Tensor planes = in.planes ? *in.planes : at::randn_symint({o.bits, extent(in.q, 3) + 1}, in.q.options());
  const Tensor seeds = in.init_centroids ? *in.init_centroids : drawn_seeds(in.q, o.clusters);
  const auto [groups, counts] = ops::hamming_clusters(
      in.q, planes, seeds, {.iterations = o.iterations, .thresholds = o.hash_bias, .mask = in.query_mask, .empty_codes = in.empty_codes});
  const Tensor sums = ops::segment_sum(in.q, groups, o.clusters);
  return {.groups = groups, .counts = counts, .q = sums / counts.clamp_min(1).to(sums.scalar_type()).unsqueeze(3)};
}

/// The keys that each cluster's mean scores highest: int [B,H,C,topk], -1 where there are fewer.
Tensor largest_keys(const Means& means, const ClusteredInputs& in, int64_t topk) {
  Tensor scores = at::matmul(means.q.detach(), in.k.detach().transpose(2, 3));  // [B,H,C,M]
  if (in.key_mask) scores = scores.masked_fill(in.key_mask->logical_not().unsqueeze(1).unsqueeze(1), -std::numeric_limits<double>::infinity());
  return ops::largest(scores, topk);
}

/// Those of each query, [B,H,N,topk]; none for queries that do not count.
Tensor keys_of_queries(const Tensor& largest, const Tensor& groups) {
  const Tensor none = at::constant_pad_nd(largest, {0, 0, 0, 1}, -1), place = groups.clamp_max(extent(largest, 2));  // one row more
  return none.gather(2, place.unsqueeze(3).expand_symint({-1, -1, -1, extent(largest, 3)}));
}

optional<Tensor> second_draw(const layers::WeightDropout& dropout) {
  return dropout.seed() ? optional(layers::seed_of_part(*dropout.seed(), 1)) : std::nullopt;
}

}  // namespace

void ClusteredAttention::check(const Options& o) { check_clustering("clustered_attention", o); }
void ImprovedClusteredAttention::check(const Options& o) { check_clustering("improved_clustered_attention", o); }
void ImprovedClusteredCausalAttention::check(const Options& o) { check_clustering("improved_clustered_causal_attention", o); }

ClusteredOutputs ClusteredAttention::forward(const Options& o, const Parameters&, const Inputs& in, bool training) {
  const Means means = means_of("clustered_attention", o, in);
  const layers::WeightDropout dropout(o.dropout, in.dropout_seed, training, in.q);
  const Tensor shared = ops::attention(means.q, in.k, in.v, dropout.with({.key_mask = in.key_mask, .scale = o.scale})).out;  // [B,H,C,Dv]
  return {.out = ops::take_rows(shared, means.groups), .groups = means.groups, .counts = means.counts};
}

ClusteredOutputs ImprovedClusteredAttention::forward(const Options& o, const Parameters&, const Inputs& in, bool training) {
  const Means means = means_of("improved_clustered_attention", o, in);
  const layers::WeightDropout dropout(o.dropout, in.dropout_seed, training, in.q);
  const Tensor largest = largest_keys(means, in, o.topk);  // [B,H,C,topk]

  // The rest, as the cluster weighs it among all keys: its mass r_c = 1 - sigmoid(lse of the largest - lse of the rest).
  const Size M = extent(in.k, 2);
  const Tensor column = at::where(largest < 0, at::ones_symint({M}, largest.options()).sum(), largest);  // one more for those that are none
  const Tensor is_large = at::zeros_symint({extent(largest, 0), extent(largest, 1), o.clusters, M + 1}, in.q.options().dtype(at::kBool));
  const Tensor is_rest = is_large.scatter(3, column, true).slice_symint(3, 0, M).logical_not();
  const auto rest = ops::attention(means.q, in.k, in.v, dropout.with({.mask = is_rest, .key_mask = in.key_mask, .scale = o.scale}));
  const Tensor large = ops::edge_attention(means.q, in.k, in.v, largest.flatten(2), {.scale = o.scale}).lse;  // [B,H,C]
  const Tensor there = large > -std::numeric_limits<double>::infinity();
  const Tensor mass = at::where(there, large - rest.lse, at::zeros_like(large)).sigmoid().unsqueeze(3);  // 1 - r_c
  const Tensor bottom = rest.out * (1 - mass).to(rest.out.scalar_type());

  const auto fine = ops::edge_attention(in.q, in.k, in.v, keys_of_queries(largest, means.groups).flatten(2),
                                        {.scale = o.scale, .dropout = o.dropout, .dropout_seed = second_draw(dropout)});
  const Tensor share = ops::take_rows(o.full_gradient ? mass : mass.detach(), means.groups).to(fine.out.scalar_type());
  return {.out = share * fine.out + ops::take_rows(bottom, means.groups), .groups = means.groups, .counts = means.counts};
}

ClusteredOutputs ImprovedClusteredCausalAttention::forward(const Options& o, const Parameters&, const Inputs& in, bool training) {
  const Means means = means_of("improved_clustered_causal_attention", o, in);
  const layers::WeightDropout dropout(o.dropout, in.dropout_seed, training, in.q);
  Tensor largest = largest_keys(means, in, o.topk);
  if (in.key_mask) {  // all sequences have as many as the shortest one can have
    const Tensor within = at::arange(o.topk, largest.options()) < in.key_mask->sum(1).unsqueeze(1);  // [B,topk]
    largest = largest.masked_fill(within.all(0).logical_not(), -1);
  }
  const Tensor keys = keys_of_queries(largest, means.groups);  // [B,H,N,topk]
  const Tensor later = keys > at::arange(extent(in.q, 2), keys.options()).unsqueeze(1);
  const auto out = ops::edge_attention(in.q, in.k, in.v, keys.masked_fill(later, -1).flatten(2),
                                       {.scale = o.scale, .dropout = o.dropout, .dropout_seed = second_draw(dropout)});
  return {.out = out.out, .groups = means.groups, .counts = means.counts};
}

FOVEATE_MECHANISM(ClusteredAttention)
FOVEATE_MECHANISM(ImprovedClusteredAttention)
FOVEATE_MECHANISM(ImprovedClusteredCausalAttention)

}  // namespace foveate
