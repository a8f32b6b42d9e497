// Reformer: queries are keys; those that a random rotation sends into one bucket stand together once sorted, and attend in chunks,
//   out = sum_r out_r softmax_r(lse_r) over rounds of hashing.   arXiv 2001.04451
#pragma once
#include <foveate/attention.h>
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/kv_cache.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card reformer{
    .slug = "reformer",
    .title = "Reformer (LSH attention)",
    .paper = "2001.04451",
    .year = 2020,
    .family = Family::select,
    .cost = "O(N log N D)",
    .causality = Causality::logits_only,
    .equation = "out_i = sum_r w_r softmax over j in or next to the chunk of i, sorted by bucket_r; bucket = argmax [x W; -x W]"};

/// Two published forms, whose weights are not exchangeable.
enum class ReformerVariant {
  l2norm,   ///< keys of unit length, scores over sqrt(D), itself -5e4 (reformer-pytorch)
  rmsnorm,  ///< scores sqrt(D) times larger, itself -1e5 (trax, transformers)
};
template <> inline constexpr auto names<ReformerVariant> = std::array<std::string_view, 2>{"l2norm", "rmsnorm"};

namespace detail {
/// Queries [...,D] as keys, scores scaled within.
Tensor reformer_keys(const Tensor& qk, ReformerVariant variant);
/// The score of a token before itself: seen, but a last resort.
double reformer_self_score(ReformerVariant variant);
void check_reformer_buckets(const char* form, const char* option, const std::vector<int64_t>& counts);
}  // namespace detail

/// The bare function.
struct FOVEATE_API LSHAttention {
  static constexpr Form form{.card = &reformer,
                             .summary = "attention among queries that hash alike",
                             .returns = "",
                             .example = R"(qk, v = torch.randn(2, 4, 64, 16), torch.randn(2, 4, 64, 16)
out = foveate.lsh_attention(qk, v, bucket_size=8, n_hashes=4)
again = foveate.lsh_attention(qk, v, torch.randn(1, 16, 4, 4), bucket_size=8, n_hashes=4)  # the rotation given
assert out.out.shape == v.shape and out.buckets.shape == (2, 4, 4, 64))"};
  struct Options {
    ReformerVariant variant = ReformerVariant::l2norm;
    int64_t bucket_size = 64;
    std::vector<int64_t> n_buckets = {};
    int64_t n_hashes = 8;
    bool causal = false;
    int64_t chunks_before = 1;
    int64_t chunks_after = 0;
    bool allow_duplicate_attention = true;
    bool attend_across_buckets = true;
    bool rotations_per_head = false;
    bool rehash_each_round = true;
    optional<int64_t> query_len;
    int64_t full_attn_thres = 0;
    void fields(auto&& f) {
      f("variant", variant, "l2norm: keys of unit length (paper, reformer-pytorch); rmsnorm: trax and transformers");
      f("bucket_size", bucket_size, "L: positions of a chunk (reformer-pytorch, transformers: 64; trax: 128)");
      f("n_buckets", n_buckets, "even numbers whose product is the number of buckets; default about N / L");
      f("n_hashes", n_hashes, "R: rounds of hashing (reformer-pytorch: 8; paper: 1 to 16)");
      f("causal", causal, "a query sees no key after it; where keys stand once sorted depends on the whole sequence");
      f("chunks_before", chunks_before, "chunks before its own that a query sees; before the first comes the last (1)");
      f("chunks_after", chunks_after, "chunks behind its own (0)");
      f("allow_duplicate_attention", allow_duplicate_attention,
        "a pair that meets in several rounds counts in each; False, of l2norm: once in all, as in the paper (reformer-pytorch: True)");
      f("attend_across_buckets", attend_across_buckets, "a chunk's keys of other buckets are seen (True); False is of l2norm");
      f("rotations_per_head", rotations_per_head, "a rotation is drawn for each head (reformer-pytorch: False); rmsnorm always does");
      f("rehash_each_round", rehash_each_round,
        "rounds have rotations of their own; False, of l2norm: one rotation, and round r takes a token's r-th best bucket");
      f("query_len", query_len, "only so many tokens are queries; the others are keys for all, even where causal");
      f("full_attn_thres", full_attn_thres, "shorter sequences are attended in full (reformer-pytorch: 0)");
    }
  };
  struct Inputs {
    Tensor qk, v;
    optional<Tensor> rotations, mask;
    void fields(auto&& f) {
      f("qk", qk, "[B,H,N,D] queries, which are keys, too");
      f("v", v, "[B,H,N,Dv] values");
      f("rotations", rotations,
        "[*,*,*,*] normal numbers: of all, of each head or of each head of each sequence, by D, R, half the buckets; drawn if absent");
      f("mask", mask, "bool [B,N] True where a token takes part");
    }
  };
  using Parameters = None;
  struct Outputs {
    Tensor out, buckets;
    void fields(auto&& f) {
      f("out", out, "[B,H,*,Dv] attended values of the queries");
      f("buckets", buckets, "int [B,H,*,N] of each round the bucket of each token, rounds counted on; zeros where all is attended in full");
    }
  };
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer of reformer-pytorch.
struct FOVEATE_API LSHSelfAttention {
  static constexpr Form form{.card = &reformer,
                             .summary = "multi-head LSH attention with local heads and learned keys (reformer-pytorch)",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.LSHSelfAttention(embed_dim=32, num_heads=4, bucket_size=8, n_hashes=2, causal=True)
assert layer(torch.randn(2, 32, 32)).shape == (2, 32, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t bucket_size = 64;
    std::vector<int64_t> n_buckets = {};
    int64_t n_hashes = 8;
    bool causal = false;
    int64_t n_local_heads = 0;
    int64_t num_mem_kv = 0;
    bool one_value_head = false;
    bool allow_duplicate_attention = true;
    bool attend_across_buckets = true;
    bool rotations_per_head = false;
    bool rehash_each_round = true;
    bool rotary = false;
    int64_t full_attn_thres = 0;
    double dropout = 0;
    double attention_dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads, must divide embed_dim (8)");
      f("bucket_size", bucket_size, "L: positions of a chunk (64)");
      f("n_buckets", n_buckets, "even numbers whose product is the number of buckets; default N / L");
      f("n_hashes", n_hashes, "rounds of hashing (8)");
      f("causal", causal, "a query sees no key after it; where keys stand once sorted depends on the whole sequence");
      f("n_local_heads", n_local_heads, "how many heads, the first, attend in windows of 2 L instead (0)");
      f("num_mem_kv", num_mem_kv, "learned tokens that all queries may see (0)");
      f("one_value_head", one_value_head, "all heads share one head of values (False)");
      f("allow_duplicate_attention", allow_duplicate_attention, "a pair that meets in several rounds counts in each; False: once in all (True)");
      f("attend_across_buckets", attend_across_buckets, "a chunk's keys of other buckets are seen (True)");
      f("rotations_per_head", rotations_per_head, "a rotation is drawn for each head (False)");
      f("rehash_each_round", rehash_each_round, "rounds have rotations of their own (True)");
      f("rotary", rotary,
        "once hashed, queries of the sequence are turned by their positions, neighbouring channels together; not those of local heads and of full "
        "attention (reformer-pytorch's model: True, where it has no other positions)");
      f("full_attn_thres", full_attn_thres, "shorter sequences are attended in full (0)");
      f("dropout", dropout, "probability of dropping entries of the result, in training (0)");
      f("attention_dropout", attention_dropout, "probability of dropping attention weights, in training (0)");
    }
    LSHAttention::Options hashed() const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> rotations, mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("rotations", rotations, "[*,*,*,*] as LSHAttention takes them; drawn if absent");
      f("mask", mask, "bool [B,N] True where a token takes part");
    }
  };
  struct Parameters {
    layers::Linear query_key, value, out;
    optional<Tensor> mem_kv;
    void fields(auto&& f) {
      f("query_key", query_key, "queries and keys");
      f("value", value, "values");
      f("out", out, "output projection");
      f("mem_kv", mem_kv, "[1,*,E] learned tokens");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

namespace detail {
void reformer_chunk_fields(auto& o, auto&& f) {
  f("num_heads", o.num_heads, "heads (transformers: 12)");
  f("head_dim", o.head_dim, "width of a head (transformers: 64)");
  f("chunk_length", o.chunk_length, "L: positions of a chunk (transformers: 64)");
  f("chunks_before", o.chunks_before, "chunks before its own that a query sees; before the first comes the last (1)");
  f("chunks_after", o.chunks_after, "chunks behind its own (0)");
  f("causal", o.causal, "a query sees no key after it");
}
}  // namespace detail

/// The LSH layer of transformers, without the output projection.
struct FOVEATE_API ReformerLSHSelfAttention {
  static constexpr Form form{
      .card = &reformer,
      .summary = "multi-head LSH attention as transformers and trax have it",
      .returns = "",
      .example = R"(layer = foveate.nn.ReformerLSHSelfAttention(embed_dim=32, num_heads=4, head_dim=8, chunk_length=8, num_buckets=[4])
assert layer(torch.randn(2, 32, 32)).out.shape == (2, 32, 32))"};
  struct Options {
    int64_t embed_dim = 256;
    int64_t num_heads = 12;
    int64_t head_dim = 64;
    int64_t chunk_length = 64;
    int64_t num_hashes = 1;
    std::vector<int64_t> num_buckets = {};
    int64_t chunks_before = 1;
    int64_t chunks_after = 0;
    bool causal = false;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (transformers: 256)");
      detail::reformer_chunk_fields(*this, f);
      f("num_hashes", num_hashes, "rounds of hashing (transformers: 1)");
      f("num_buckets", num_buckets, "even numbers whose product is the number of buckets; default the largest power of two up to 2 N / L");
    }
    LSHAttention::Options hashed() const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> rotations, mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("rotations", rotations, "[H,*,*,*] normal numbers of each head, by D, R, half the buckets; drawn if absent");
      f("mask", mask, "bool [B,N] True where a token takes part as key");
    }
  };
  struct Parameters {
    layers::Linear query_key, value;
    void fields(auto&& f) {
      f("query_key", query_key, "queries and keys");
      f("value", value, "values");
    }
  };
  struct Outputs {
    Tensor out, buckets;
    void fields(auto&& f) {
      f("out", out, "[B,N,*] attended sequence, heads side by side");
      f("buckets", buckets, "int [B,H,*,N] of each round the bucket of each token, rounds counted on");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// The local layer of transformers, without the output projection.
struct FOVEATE_API ReformerLocalSelfAttention {
  static constexpr Form form{.card = &reformer,
                             .summary = "multi-head attention in chunks and their neighbours",
                             .returns = "[B,N,*] attended sequence, heads side by side",
                             .example = R"(layer = foveate.nn.ReformerLocalSelfAttention(embed_dim=32, num_heads=4, head_dim=8, chunk_length=8)
assert layer(torch.randn(2, 30, 32)).shape == (2, 30, 32))"};
  struct Options {
    int64_t embed_dim = 256;
    int64_t num_heads = 12;
    int64_t head_dim = 64;
    int64_t chunk_length = 64;
    int64_t chunks_before = 1;
    int64_t chunks_after = 0;
    bool causal = false;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (transformers: 256)");
      detail::reformer_chunk_fields(*this, f);
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("mask", mask, "bool [B,N] True where a token takes part as key");
    }
  };
  struct Parameters {
    layers::Linear query, key, value;
    void fields(auto&& f) {
      f("query", query, "queries");
      f("key", key, "keys");
      f("value", value, "values");
    }
  };
  using State = layers::KVCache;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

namespace detail {
/// One attention by hashing: what it reads, and what it draws.
struct ReformerCall {
  Tensor qk, v;
  optional<Tensor> rotations, seed, mask;
  Size queries;                 // tokens that ask; the others are keys alone
  ops::Attention dropout = {};  // what says how weights are dropped
  bool rotary = false;          // queries are turned by their positions, once hashed
};

/// The bucket of each token in each round, rounds counted on: int [B,H,R,N]
Tensor reformer_buckets(const LSHAttention::Options&, const ReformerCall&);
/// Chunks of the sorted line, each with its neighbours, the last before the first; each token's rounds in one softmax.
Tensor reformer_by_buckets(const LSHAttention::Options&, const ReformerCall&, const Tensor& buckets);
/// q, k, v [B,H,N,D] in chunks as they stand, the last before the first.
Tensor reformer_locally(const ReformerLocalSelfAttention::Options&, const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask,
                        const ops::Attention& dropout = {});
layers::Linear reformer_projection(int64_t in, int64_t out);
}  // namespace detail

}  // namespace foveate
