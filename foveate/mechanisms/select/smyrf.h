// SMYRF: queries and keys sorted along a random line and cut into as many clusters, cluster meets cluster, rounds merged.   arXiv 2010.05315
#pragma once
#include <foveate/contract.h>

namespace foveate {

inline constexpr Card smyrf{.slug = "smyrf",
                            .title = "SMYRF: asymmetric clustering",
                            .paper = "2010.05315",
                            .year = 2020,
                            .family = Family::select,
                            .cost = "O(R N log N D)",
                            .causality = Causality::none,
                            .equation = "out = sum_r softmax_r(lse_r) softmax(scale Q_c K_c^T) V_c, c the cluster of a query in round r"};

/// Drop-in for attention: nothing is learned, so a trained model may use it as it is.
struct FOVEATE_API SmyrfAttention {
  static constexpr Form form{.card = &smyrf,
                             .summary = "balanced asymmetric clusters of queries and keys, attention inside them",
                             .example = R"(q, k, v = torch.randn(3, 1, 2, 100, 16)
out, q_order, k_order = foveate.smyrf_attention(q, k, v, n_hashes=4, q_cluster_size=16, k_cluster_size=16)
assert out.shape == (1, 2, 100, 16) and q_order.shape == (1, 2, 4, 100))"};
  struct Options {
    int64_t n_hashes = 2;
    int64_t q_cluster_size = 32;
    int64_t k_cluster_size = 32;
    optional<double> scale;
    double r = 1;
    double dropout = 0;
    void fields(auto&& f) {
      f("n_hashes", n_hashes, "rounds R of sorting (paper: 2 on GLUE)");
      f("q_cluster_size", q_cluster_size, "queries of a cluster (paper: 32 on GLUE)");
      f("k_cluster_size", k_cluster_size, "keys of a cluster; there must be as many clusters of keys as of queries (paper: 32 on GLUE)");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D) (the authors' code divides by norm_factor, by default 1: scale=1.0)");
      f("r", r, "beta is drawn from [0, r); it shifts all projections alike, so that the result does not depend on it (authors' code: 1)");
      f("dropout", dropout, "probability of dropping an attention weight where dropout_keep is given");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, query_mask, alpha, beta, dropout_keep;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part; the others are sorted to the end");
      f("query_mask", query_mask, "bool [B,N] True where a query counts; the others are sorted to the end and get zeros");
      f("alpha", alpha, "[*,R] the draw of the lines, one column of D+2 a round, default standard normal");
      f("beta", beta, "[R] the draw of the shifts, default uniform in [0, r)");
      f("dropout_keep", dropout_keep,
        "bool [B,H,R,N,*] the draw of dropout: for each query the k_cluster_size keys of its cluster, in the order of k_order");
    }
  };
  struct Outputs {
    Tensor out, q_order, k_order;
    void fields(auto&& f) {
      f("out", out, "[B,H,N,Dv] attended values");
      f("q_order", q_order, "int [B,H,R,N] the queries as each round sorts them");
      f("k_order", k_order, "int [B,H,R,M] the keys as each round sorts them");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
