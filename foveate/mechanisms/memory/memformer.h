// Memformer: a memory of S slots beside a sequence of segments. Tokens read it, softmax(Q K_m^T) V_m; each slot then writes itself anew from
// the tokens and itself, m' = a_self m + sum_j a_j v_j, and no slot sees another.   arXiv 2010.06891
#pragma once
#include <foveate/feed_forward.h>
#include <foveate/gru.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card memformer{
    .slug = "memformer",
    .title = "Memformer",
    .paper = "2010.06891",
    .year = 2020,
    .family = Family::memory,
    .cost = "O(N (segment + slots) D)",
    .causality = Causality::none,
    .equation = "out = softmax(Q K_m^T / sqrt(D)) V_m; m' = normalised(softmax(q_m [k_m, K]^T / (sqrt(D) tau)) [m, V] + b)"};

/// What the slots ask tokens and themselves with; their own value is what they hold.
struct FOVEATE_API SlotProjections {
  layers::Linear query, key, value;
  void fields(auto&& f) {
    f("query", query, "query projection, of slots");
    f("key", key, "key projection, of tokens and slots");
    f("value", value, "value projection, of tokens");
  }
};

/// The tensors of the paper's write.
struct FOVEATE_API SlotForgetting {
  SlotProjections write;
  Tensor forget_bias;  // [S,E]
  void fields(auto&& f) {
    f("write", write, "projections of the write");
    f("forget_bias", forget_bias, "[S,E] what pulls each slot back to its first state, forget_bias / |forget_bias|");
  }
};

/// The paper's read and write, without the encoder around them.
struct FOVEATE_API MemformerMemory {
  static constexpr Form form{.card = &memformer,
                             .summary = "tokens read a memory, which then forgets a little and is written from them",
                             .returns = "",
                             .example = R"(memory = foveate.nn.MemformerMemory(embed_dim=32, num_heads=4, slots=8)
first = memory(torch.randn(2, 20, 32))
second = memory(torch.randn(2, 12, 32), first.new_memory)
assert second.out.shape == (2, 12, 32) and second.new_memory.shape == (2, 8, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t slots = 512;
    double temperature = 0.5;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (paper's language model: 512)");
      f("num_heads", num_heads, "heads H, must divide embed_dim (paper's language model: 8)");
      f("slots", slots, "slots S of the memory (paper: 512 for language, 64 for images)");
      f("temperature", temperature, "divides the scores of the write; below 1 a slot changes more or less as a whole (paper: below 1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> memory, key_mask, reset;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] tokens of a segment");
      f("memory", memory, "[B,S,E] what the segment before left; default the first state");
      f("key_mask", key_mask, "bool [B,N] True where a token is written into the memory");
      f("reset", reset, "bool [B] True where a sequence begins: its memory is the first state");
    }
  };
  struct Parameters {
    layers::Heads read;
    SlotForgetting forgetting;
    void fields(auto&& f) {
      f("read", read, "projections of the read");
      f("forgetting", forgetting, "the write");
    }
  };
  struct Outputs {
    Tensor out, new_memory;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] what each token reads");
      f("new_memory", new_memory, "[B,S,E] the memory after the segment, vectors of length 1");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// The tensors of the PyPI package's write.
struct FOVEATE_API SlotUpdate {
  layers::Heads heads;
  layers::GRU gate;
  layers::LayerNorm norm;
  layers::FeedForward network;
  void fields(auto&& f) {
    f("heads", heads, "projections; a slot's own value is projected too");
    f("gate", gate, "what a slot has read updates it");
    f("norm", norm, "before the network");
    f("network", network, "what is added at last");
  }
  static SlotUpdate init(int64_t width);
};

/// The PyPI package's write: a gated recurrent unit and a network in place of forgetting.
struct FOVEATE_API MemformerWrite {
  static constexpr Form form{.card = &memformer,
                             .summary = "slots read tokens and themselves, and take it up by a gated recurrent unit",
                             .returns = "[B,S,E] the memory after the segment",
                             .example = R"(write = foveate.nn.MemformerWrite(embed_dim=32, num_heads=4)
memory = write(torch.randn(2, 8, 32), torch.randn(2, 20, 32))
assert memory.shape == (2, 8, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t num_updates = 1;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H, must divide embed_dim (PyPI package: 8)");
      f("num_updates", num_updates, "times that the slots read, with the same weights (PyPI package: 1)");
    }
  };
  struct Inputs {
    Tensor memory, encoded;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("memory", memory, "[B,S,E] slots");
      f("encoded", encoded, "[B,N,E] what the encoder made of the segment");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part; a slot always sees itself");
    }
  };
  using Parameters = SlotUpdate;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

namespace detail {
/// Slots q [B,H,S,D] that see their own key and value [B,H,S,D] and those of the tokens [B,H,N,D], but no other slot.
FOVEATE_API Tensor attend_from_slots(const Tensor& q, const Tensor& own_key, const Tensor& own_value, const Tensor& k, const Tensor& v,
                                     const optional<Tensor>& key_mask, double scale);
/// b / |b| for each sequence, where there is no memory yet or `reset` says that a sequence begins; else the memory. [B,S,E]
FOVEATE_API Tensor memory_or_first(const optional<Tensor>& memory, const optional<Tensor>& reset, const Tensor& first, const Size& batch);
/// x / |x| of vectors [...,E]
FOVEATE_API Tensor unit(const Tensor& x);
FOVEATE_API SlotForgetting init_forgetting(int64_t width, int64_t slots);
/// m' = unit(a_self m + sum_j a_j v_j + b)
FOVEATE_API Tensor forgetful_write(const SlotForgetting& p, int64_t heads, double temperature, const Tensor& memory, const Tensor& x,
                                   const optional<Tensor>& key_mask);
}  // namespace detail

}  // namespace foveate
