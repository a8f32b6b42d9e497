// Memory-compressed attention: queries attend to slots, each made of c tokens by a strided convolution or a mean.   arXiv 1801.10198
// Between such layers stand block-local ones: attention inside blocks, or to the block before as well.
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/heads.h>
#include <foveate/kv_cache.h>

namespace foveate {

inline constexpr Card memory_compressed{.slug = "memory-compressed",
                                        .title = "Memory-compressed attention",
                                        .paper = "1801.10198",
                                        .year = 2018,
                                        .family = Family::lowrank,
                                        .cost = "O(N^2 D / c); block-local: O(N block D)",
                                        .causality = Causality::strict,
                                        .equation = "out = softmax(scale q [null, conv(k)]^T) [null, conv(v)], conv of width and stride c"};

/// What is compressed, and how.
enum class MemoryReduction { compress_kv, compress_x, mean_pool, attend_x };
template <> inline constexpr auto names<MemoryReduction> = std::array<std::string_view, 4>{"compress_kv", "compress_x", "mean_pool", "attend_x"};

/// What passes the convolution of compress_x.
enum class MemoryNonlinearity { none, silu };
template <> inline constexpr auto names<MemoryNonlinearity> = std::array<std::string_view, 2>{"none", "silu"};

/// The layer that attends to slots.
struct FOVEATE_API MemoryCompressedAttention {
  static constexpr Form form{.card = &memory_compressed,
                             .summary = "multi-head self-attention to compressed keys and values",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.MemoryCompressedAttention(embed_dim=32, num_heads=4, causal=True)
out = layer(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t compression_factor = 3;
    MemoryReduction reduction = MemoryReduction::compress_kv;
    bool left_padded = false;
    MemoryNonlinearity nonlinearity = MemoryNonlinearity::none;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H, a divisor of E (authors' code: 8)");
      f("compression_factor", compression_factor, "tokens c of a slot (paper: 3)");
      f("reduction", reduction,
        "compress_kv: keys and values, by one grouped convolution, behind a learned null slot (paper's text, lucidrains); compress_x: the sequence, "
        "by a full convolution, behind its first token (authors' code); mean_pool: the sequence, by means, behind a slot of score 0 and value 0 "
        "(mesh); attend_x: as compress_x, a slot being the sum of what its tokens attend to among themselves (authors' code)");
      f("left_padded", left_padded,
        "compress_kv only: the first slot is filled up with zeros so that the last is whole (lucidrains); its slots move with the length, so it does "
        "not stream. Else slots are counted from the start, and tokens that fill none are left out");
      f("nonlinearity", nonlinearity, "silu: slots c become c sigmoid(c), compress_x only (an option of the authors' code)");
      f("causal", causal,
        "a query sees the slots whose tokens are all before it or itself (compress_x, attend_x: all before it), and the extra slot; never the tokens "
        "of its own incomplete slot, so block-local layers stand between");
      f("scale", scale, "multiplies q.k (default: compress_kv 1/sqrt(E); compress_x, attend_x 1/sqrt(E/H); mean_pool 1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part; a slot is hidden where none of its tokens does");
    }
  };
  struct Parameters {
    layers::Heads heads;
    optional<layers::Convolution> conv;
    optional<Tensor> null_key, null_value;
    optional<layers::Heads> reducer;
    void fields(auto&& f) {
      f("heads", heads, "query, key, value and output projections");
      f("conv", conv, "from c tokens to a slot; compress_kv: one for keys and values, grouped by heads");
      f("null_key", null_key, "[*] key of the extra slot of compress_kv, [E], initially 0");
      f("null_value", null_value, "[*] its value, [E], initially 0");
      f("reducer", reducer, "the attention inside slots of attend_x");
    }
  };
  struct State {
    Tensor k, v, rest;
    void fields(auto&& f) {
      f("k", k, "[B,H,K,D] keys of the slots so far");
      f("v", v, "[B,H,K,D] their values");
      f("rest", rest, "[B,*,E] tokens that fill no slot yet");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The bare function of the layers between: attention inside blocks.
struct FOVEATE_API BlockLocalAttention {
  static constexpr Form form{.card = &memory_compressed,
                             .summary = "attention of q to k and v inside blocks, and to the block before",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 100, 16)
assert foveate.block_local_attention(q, k, v, block=32, causal=True).shape == (2, 4, 100, 16))"};
  struct Options {
    int64_t block = 256;
    bool look_back = false;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      f("block", block, "tokens of a block; the last may be shorter (authors' code: 256)");
      f("look_back", look_back,
        "the block before is seen as well; sequences of fewer than two blocks are one block (authors' code), which a stream must know beforehand");
      f("causal", causal, "a query sees no key after it");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,M,D] keys; Hk divides H");
      f("v", v, "[B,Hk,M,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part");
    }
  };
  using Parameters = None;
  using State = layers::KVCache;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
