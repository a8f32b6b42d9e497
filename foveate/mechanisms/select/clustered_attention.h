// Clustered attention: queries of a cluster share the attention of their mean, softmax(scale q_c K^T) V; improved, each query weighs the
// keys that its cluster finds largest by itself.   arXiv 2007.04825
#pragma once
#include <foveate/contract.h>

namespace foveate {

inline constexpr Card clustered_attention{.slug = "clustered-attention",
                                          .title = "Clustered attention",
                                          .paper = "2007.04825",
                                          .year = 2020,
                                          .family = Family::select,
                                          .cost = "O(N C D)",
                                          .causality = Causality::logits_only,
                                          .equation =
                                              "out_n = softmax(scale q_c K^T) V, c the cluster of n; improved: (1 - r_c) sum over T_c of "
                                              "softmax_j(scale q_n.k_j) v_j + sum over j not in T_c of softmax_j(scale q_c.k_j) v_j"};

namespace detail {

/// The options of how queries are clustered.
void clustering_fields(auto&& f, auto& o) {
  f("clusters", o.clusters, "clusters C (paper: 25 to 200)", required);
  f("iterations", o.iterations, "assignments of queries to clusters; between them the clusters' codes are updated (authors' code: 10)");
  f("bits", o.bits, "hash bits of a query, 1 to 63, where planes are not given (authors' layer: 32, their builder: 63)");
  f("hash_bias", o.hash_bias, "whether a plane's last number is its threshold; False: all pass through 0");
  f("scale", o.scale, "multiplies q.k (the authors' softmax_temp), default 1/sqrt(D)");
  f("dropout", o.dropout, "probability of dropping an attention weight in training, or where dropout_seed is given (authors' code: 0.1)");
}

/// Those of the improved forms.
void refinement_fields(auto&& f, auto& o) {
  clustering_fields(f, o);
  f("topk", o.topk, "keys that a cluster finds largest, of equal ones the first (authors' code: 32)");
}

}  // namespace detail

/// What all forms take.
struct FOVEATE_API ClusteredInputs {
  Tensor q, k, v;
  optional<Tensor> key_mask, query_mask, planes, init_centroids, empty_codes, dropout_seed;
  void fields(auto&& f) {
    f("q", q, "[B,H,N,D] queries");
    f("k", k, "[B,H,M,D] keys");
    f("v", v, "[B,H,M,Dv] values");
    f("key_mask", key_mask, "bool [B,M] True where a key takes part");
    f("query_mask", query_mask, "bool [B,N] True where a query counts; the others belong to no cluster and get zeros");
    f("planes", planes, "[*,*] the draw of the planes, bits by D+1, thresholds last; default standard normal");
    f("init_centroids", init_centroids, "int [*] C queries whose codes start the clusters, the same for all heads; default drawn without repetition");
    f("empty_codes", empty_codes,
      "bool [*,*,*] for each of iterations - 1 updates, the codes, C by bits, of clusters that were left without a query (authors' code: random); "
      "default they keep theirs");
    f("dropout_seed", dropout_seed, "int [] seed of the draw of dropout");
  }
};

struct FOVEATE_API ClusteredOutputs {
  Tensor out, groups, counts;
  void fields(auto&& f) {
    f("out", out, "[B,H,N,Dv] attended values");
    f("groups", groups, "int [B,H,N] the cluster of each query, C + 1 where it does not count");
    f("counts", counts, "int [B,H,*] queries of each cluster");
  }
};

/// One attention for each cluster of queries.
struct FOVEATE_API ClusteredAttention {
  static constexpr Form form{.card = &clustered_attention,
                             .summary = "queries of a cluster share the attention of their mean",
                             .example = R"(q, k, v = torch.randn(3, 1, 2, 100, 16)
out, groups, counts = foveate.clustered_attention(q, k, v, clusters=10)
assert out.shape == (1, 2, 100, 16) and counts.sum() == 200)"};
  struct Options {
    int64_t clusters = 0;
    int64_t iterations = 10;
    int64_t bits = 32;
    bool hash_bias = true;
    optional<double> scale;
    double dropout = 0;
    void fields(auto&& f) { detail::clustering_fields(f, *this); }
  };
  using Inputs = ClusteredInputs;
  using Outputs = ClusteredOutputs;
  using Parameters = None;
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// The same, but a cluster only says which keys matter: each of its queries weighs those itself, the rest as the cluster does.
struct FOVEATE_API ImprovedClusteredAttention {
  static constexpr Form form{.card = &clustered_attention,
                             .summary = "each query weighs its cluster's largest keys itself, the rest are weighed by the cluster's mean",
                             .example = R"(q, k, v = torch.randn(3, 1, 2, 100, 16)
out, groups, counts = foveate.improved_clustered_attention(q, k, v, clusters=10, topk=8)
assert out.shape == (1, 2, 100, 16))"};
  struct Options {
    int64_t clusters = 0;
    int64_t iterations = 10;
    int64_t bits = 32;
    bool hash_bias = true;
    optional<double> scale;
    double dropout = 0;
    int64_t topk = 32;
    bool full_gradient = false;
    void fields(auto&& f) {
      detail::refinement_fields(f, *this);
      f("full_gradient", full_gradient,
        "the gradient of the mass that the largest keys have together, too; False: that is a constant where it multiplies them (authors' code)");
    }
  };
  using Inputs = ClusteredInputs;
  using Outputs = ClusteredOutputs;
  using Parameters = None;
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// The largest keys alone, those after the query left out. Clusters and their keys are found looking at the whole sequence.
struct FOVEATE_API ImprovedClusteredCausalAttention {
  static constexpr Form form{.card = &clustered_attention,
                             .summary = "each query weighs those of its cluster's largest keys that do not come after it",
                             .example = R"(q, k, v = torch.randn(3, 1, 2, 100, 16)
out, groups, counts = foveate.improved_clustered_causal_attention(q, k, v, clusters=10, topk=8)
assert out.shape == (1, 2, 100, 16))"};
  struct Options {
    int64_t clusters = 0;
    int64_t iterations = 10;
    int64_t bits = 32;
    bool hash_bias = true;
    optional<double> scale;
    double dropout = 0;
    int64_t topk = 32;
    void fields(auto&& f) { detail::refinement_fields(f, *this); }
  };
  using Inputs = ClusteredInputs;
  using Outputs = ClusteredOutputs;
  using Parameters = None;
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
