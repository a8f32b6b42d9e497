// SCRAM: out_i = softmax over the keys around the best matches of i and its neighbours of (scale q_i.k_j), times v_j; matches are found
// by PatchMatch.   arXiv 1905.10308
#pragma once
#include <foveate/contract.h>
#include <foveate/patch_match.h>

namespace foveate {

inline constexpr Card scram{.slug = "scram",
                            .title = "SCRAM",
                            .paper = "1905.10308",
                            .year = 2019,
                            .family = Family::select,
                            .cost = "O(N log N D)",
                            .causality = Causality::strict,
                            .equation =
                                "out_i = sum over j in S(i) of softmax_j(scale q_i.k_j) v_j, S(i) the keys near a(i'), i' near i, "
                                "a(i) ~ argmax_j q_i.k_j found by PatchMatch"};

/// Attention of the points of an image to those of another one, or to themselves.
struct FOVEATE_API ScramAttention {
  static constexpr Form form{.card = &scram,
                             .summary = "attention to the keys around each query's approximate best match",
                             .example = R"(q, k, v = torch.randn(3, 1, 2, 64, 16)
out, match, support_size = foveate.scram_attention(q, k, v, query_grid=[8, 8], key_grid=[8, 8])
assert out.shape == (1, 2, 64, 16) and match.shape == (1, 2, 64))"};
  struct Options {
    std::vector<int64_t> query_grid;
    std::vector<int64_t> key_grid;
    int64_t iterations = 4;
    int64_t search_levels = 4;
    double search_decay = 0.5;
    int64_t query_radius = 1;
    int64_t key_radius = 1;
    ops::Propagation propagation = ops::Propagation::jacobi;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      f("query_grid", query_grid, "rows and columns of the queries, which stand row by row; empty: one row of any length");
      f("key_grid", key_grid, "the same of the keys; empty: one row of any length");
      f("iterations", iterations, "rounds of the search, each propagation and then random search");
      f("search_levels", search_levels,
        "candidates drawn in a round, each around the best so far, in ever smaller radii; log2 of a grid's side reaches all scales");
      f("search_decay", search_decay, "the radius of level l is the larger side of the keys' grid times search_decay^l");
      f("query_radius", query_radius, "a query also attends around the matches of those so near it, in rows and columns");
      f("key_radius", key_radius, "it attends to the keys so near a match, in rows and columns");
      f("propagation", propagation,
        "how matches spread: jacobi, all queries at once; scan, one after the other, forwards and backwards by turns (forwards only if causal)");
      f("causal", causal, "no key after the query in raster order, neither found nor attended to; a query always sees its own place; grids are one");
      f("scale", scale, "multiplies q.k in the softmax, default 1/sqrt(D); the search compares q.k as it is");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, init_match, search;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
      f("init_match", init_match, "int [B,H,N] the draw of the first matches, default uniform (up to the query itself, if causal)");
      f("search", search, "[*,*,B,H,N,2] the draw of the random search, iterations by levels, down and right, in [-1, 1]; default uniform");
    }
  };
  struct Outputs {
    Tensor out, match, support_size;
    void fields(auto&& f) {
      f("out", out, "[B,H,N,Dv] attended values");
      f("match", match, "int [B,H,N] the key that each query matches");
      f("support_size", support_size, "int [B,H,N] keys that each query sees");
    }
  };
  using Parameters = None;
  struct State {
    Tensor k, v, matches;
    void fields(auto&& f) {
      f("k", k, "[B,H,M,D] keys so far");
      f("v", v, "[B,H,M,Dv] values so far");
      f("matches", matches, "int [*,B,H,M] what the queries so far matched, at the start and after each iteration");
    }
  };
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
