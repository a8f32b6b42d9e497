// Blockwise attention (BlockBERT): in each head, block b of queries attends to block pi(b) of keys, and to it alone:
// out_b = softmax(scale Q_b K_pi(b)^T) V_pi(b).  arXiv 1911.02972
#pragma once
#include <foveate/contract.h>
#include <foveate/heads.h>

namespace foveate {

inline constexpr Card blockwise{.slug = "blockwise",
                                .title = "BlockBERT blockwise self-attention",
                                .paper = "1911.02972",
                                .year = 2019,
                                .family = Family::sparse,
                                .cost = "O(N^2 D / n)",
                                .causality = Causality::none,
                                .equation = "out_b = softmax(scale Q_b K_pi(b)^T) V_pi(b) for each of n blocks b, pi a permutation per head"};

/// The bare function.
struct FOVEATE_API BlockwiseAttention {
  static constexpr Form form{.card = &blockwise,
                             .summary = "attention of each block of queries to one block of keys, by a permutation per head",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q = k = v = torch.randn(2, 4, 30, 8)
out = foveate.blockwise_attention(q, k, v, num_blocks=2, heads_per_permutation=[3, 1])
swapped = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 0]])  # the same, spelled out
assert torch.equal(out, foveate.blockwise_attention(q, k, v, permutations=swapped, num_blocks=2)))"};
  struct Options {
    int64_t num_blocks = 2;
    std::vector<int64_t> heads_per_permutation = {};
    optional<double> scale;
    double dropout = 0;
    void fields(auto&& f) {
      f("num_blocks", num_blocks, "n, blocks of the sequence; sizes differ by one position at most (paper: 2 or 3)");
      f("heads_per_permutation", heads_per_permutation,
        "how many heads shift the blocks by 0, 1, ...: b -> (b + shift) mod n (paper, n = 2: [10,2] or [11,1]); empty: heads take turns");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
      f("dropout", dropout, "probability of dropping an attention weight where dropout_keep is given (BERT: 0.1)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> permutations, key_mask, dropout_keep;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,N,D] keys; Hk divides H");
      f("v", v, "[B,Hk,N,Dv] values");
      f("permutations", permutations, "int [H,*] the block of keys that each block of queries sees, instead of heads_per_permutation");
      f("key_mask", key_mask, "bool [B,N] True where a key takes part");
      f("dropout_keep", dropout_keep, "bool [B,H,N,*] the draw of dropout: for each query the ceil(N/n) places of its block of keys");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer, as in BERT: projections with biases, heads, output projection.
struct FOVEATE_API BlockwiseMultiheadAttention {
  static constexpr Form form{
      .card = &blockwise,
      .summary = "multi-head attention layer over permuted blocks",
      .returns = "[B,N,E] attended sequence",
      .example = R"(layer = foveate.nn.BlockwiseMultiheadAttention(embed_dim=32, num_heads=4, num_blocks=2, heads_per_permutation=[3, 1])
assert layer(torch.randn(2, 50, 32)).shape == (2, 50, 32)
assert layer.permutations.tolist() == [[0, 1], [0, 1], [0, 1], [1, 0]])"};
  struct Options {
    int64_t embed_dim = 768;
    int64_t num_heads = 12;
    int64_t num_blocks = 2;
    std::vector<int64_t> heads_per_permutation = {};
    bool bias = true;
    optional<double> scale;
    double dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (paper: 768, as RoBERTa base)");
      f("num_heads", num_heads, "heads H, a divisor of E (paper: 12)");
      f("num_blocks", num_blocks, "n, blocks of the sequence (paper: 2 or 3)");
      f("heads_per_permutation", heads_per_permutation,
        "how many heads shift the blocks by 0, 1, ...: b -> (b + shift) mod n (paper, n = 2: [10,2] or [11,1]); empty: heads take turns");
      f("bias", bias, "whether the projections have biases (BERT: True)");
      f("scale", scale, "multiplies q.k, default 1/sqrt(E/H)");
      f("dropout", dropout, "probability of dropping an attention weight in training (BERT: 0.1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, dropout_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,N] True where a position takes part as a key");
      f("dropout_keep", dropout_keep,
        "bool [B,*,N,*] the draw of dropout: for each head and query the ceil(N/n) places of its block of keys; drawn in training where absent");
    }
  };
  struct Parameters {
    layers::Heads attention;
    Tensor permutations;
    void fields(auto&& f) {
      f("attention", attention, "projections");
      f("permutations", permutations, "int [*,*] of each head, the block of keys that each block of queries sees; may be any permutation", buffer);
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
