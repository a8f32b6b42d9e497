// Reformer token by token: a token attends to those before it that share a bucket with it, then to the latest others, so many in all.
//   out_t = softmax over S_t of q_t.k_j, S_t the K best of j < t by (a bucket shared in some round, j).   arXiv 2001.04451
#pragma once
#include <foveate/reformer.h>

namespace foveate {

/// What LSH attention becomes where text is generated (trax). Strictly causal, so it can train, too; it is not the sorted form's result.
struct FOVEATE_API LSHIncrementalAttention {
  static constexpr Form form{.card = &reformer,
                             .summary = "strictly causal LSH attention, for decoding: the past of a token's buckets, then the latest",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(qk, v, rotations = torch.randn(2, 4, 64, 16), torch.randn(2, 4, 64, 16), torch.randn(1, 16, 2, 4)
attend = foveate.nn.LSHIncrementalAttention(bucket_size=4, n_hashes=2, n_buckets=[8])
first, state = attend.step(qk[:, :, :60], v[:, :, :60], rotations)
rest, state = attend.step(qk[:, :, 60:], v[:, :, 60:], rotations, state=state)
assert torch.allclose(torch.cat([first, rest], 2), attend(qk, v, rotations), atol=1e-5))"};
  struct Options {
    ReformerVariant variant = ReformerVariant::rmsnorm;
    int64_t bucket_size = 64;
    std::vector<int64_t> n_buckets = {};
    int64_t n_hashes = 1;
    int64_t chunks_before = 1;
    optional<int64_t> mem_len;
    bool rotations_per_head = true;
    void fields(auto&& f) {
      f("variant", variant, "l2norm: keys of unit length (paper); rmsnorm: trax and transformers");
      f("bucket_size", bucket_size, "L: with R rounds a token sees R L (1 + chunks_before) tokens, itself among them (trax: 128)");
      f("n_buckets", n_buckets, "even numbers whose product is the number of buckets, which no length changes", required);
      f("n_hashes", n_hashes, "R: rounds of hashing (trax: 1)");
      f("chunks_before", chunks_before, "chunks before its own that a query of the sorted form sees (1)");
      f("mem_len", mem_len, "how far back a token sees, itself counted; default to the first");
      f("rotations_per_head", rotations_per_head, "a rotation is drawn for each head (trax: True)");
    }
    int64_t seen() const { return n_hashes * bucket_size * (1 + chunks_before); }
  };
  struct Inputs {
    Tensor qk, v;
    optional<Tensor> rotations;
    void fields(auto&& f) {
      f("qk", qk, "[B,H,N,D] queries, which are keys, too");
      f("v", v, "[B,H,N,Dv] values");
      f("rotations", rotations, "[*,*,*,*] as LSHAttention takes them, the same in all steps; drawn if absent");
    }
  };
  using Parameters = None;
  struct State {
    Tensor qk, v, buckets;
    void fields(auto&& f) {
      f("qk", qk, "[B,H,M,D] queries so far");
      f("v", v, "[B,H,M,Dv] their values");
      f("buckets", buckets, "int [B,H,*,M] their bucket in each round");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
