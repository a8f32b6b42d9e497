// MemBART: the memory of Memformer inside the layers of an encoder. Tokens and slots share one attention with projections of their own, and a
// gate says how much of each slot is replaced.   arXiv 2209.07634
#pragma once
#include <foveate/memformer.h>

namespace foveate {

/// What tokens go through in a layer, or slots.
struct FOVEATE_API MemBartStream {
  layers::Heads attention;
  layers::LayerNorm attention_norm;
  layers::FeedForward network;
  layers::LayerNorm network_norm;
  void fields(auto&& f) {
    f("attention", attention, "projections");
    f("attention_norm", attention_norm, "after attention and its residual sum");
    f("network", network, "position-wise network");
    f("network_norm", network_norm, "after the network and its residual sum");
  }
};

struct FOVEATE_API MemBartStreams {
  MemBartStream tokens, slots;
  void fields(auto&& f) {
    f("tokens", tokens, "of tokens");
    f("slots", slots, "of slots");
  }
};

/// A layer that reads and writes at once.
struct FOVEATE_API MemBartLayer {
  static constexpr Form form{.card = &memformer,
                             .summary = "tokens attend to slots and tokens, slots to themselves and tokens, in one layer",
                             .returns = "",
                             .example = R"(layer = foveate.nn.MemBartLayer(embed_dim=32, num_heads=4, inner_dim=64)
out, memory = layer(torch.randn(2, 20, 32), torch.randn(2, 8, 32))
assert out.shape == (2, 20, 32) and memory.shape == (2, 8, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    int64_t num_heads = 12;
    int64_t inner_dim = 3072;
    double init_std = 0.02;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (BART base: 768)");
      f("num_heads", num_heads, "heads H, must divide embed_dim (BART base: 12)");
      f("inner_dim", inner_dim, "inner width of the networks (BART base: 3072)");
      f("init_std", init_std, "deviation of initial weights (BART: 0.02)");
    }
  };
  struct Inputs {
    Tensor x, memory;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] tokens");
      f("memory", memory, "[B,S,E] slots");
      f("key_mask", key_mask, "bool [B,N] True where a token is seen");
    }
  };
  using Parameters = MemBartStreams;
  struct Outputs {
    Tensor out, new_memory;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] tokens, transformed");
      f("new_memory", new_memory, "[B,S,E] slots, transformed");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// The encoder over segments.
struct FOVEATE_API MemBartEncoder {
  static constexpr Form form{.card = &memformer,
                             .summary = "encoder over segments of embeddings, with a memory of slots beside them in every layer",
                             .returns = "[B,N,E] encoded segment",
                             .example = R"(encoder = foveate.nn.MemBartEncoder(embed_dim=32, num_heads=4, inner_dim=64, depth=2, slots=8)
alone, state = encoder(torch.randn(2, 20, 32)), None  # one segment, without a past
for segment in torch.randn(2, 40, 32).split(20, 1):
    encoded, state = encoder.step(segment, state=state)
assert encoded.shape == (2, 20, 32) and state[0].shape == (2, 8, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    int64_t num_heads = 12;
    int64_t inner_dim = 3072;
    int64_t depth = 6;
    int64_t slots = 64;
    int64_t max_len = 1024;
    double init_std = 0.02;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (BART base: 768)");
      f("num_heads", num_heads, "heads H, must divide embed_dim (BART base: 12)");
      f("inner_dim", inner_dim, "inner width of the networks (BART base: 3072)");
      f("depth", depth, "layers (BART base: 6)");
      f("slots", slots, "slots S of the memory");
      f("max_len", max_len, "tokens of the longest segment (BART: 1024)");
      f("init_std", init_std, "deviation of initial weights (BART: 0.02)");
    }
    MemBartLayer::Options layer() const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, reset;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] embeddings of a segment");
      f("key_mask", key_mask, "bool [B,N] True where a token is seen");
      f("reset", reset, "bool [B] True where a sequence begins: its memory is forgotten");
    }
  };
  struct Parameters {
    Tensor positions;
    layers::LayerNorm embedding_norm;
    Tensor memory_bias;
    layers::LayerNorm memory_norm;
    std::vector<MemBartStreams> layers;
    layers::FeedForward gate;
    void fields(auto&& f) {
      f("positions", positions, "[*,E] added to the embeddings, from the third row on: BART leaves the first two idle");
      f("embedding_norm", embedding_norm, "after embeddings and positions");
      f("memory_bias", memory_bias, "[S,E] added to the memory before each segment, the first state");
      f("memory_norm", memory_norm, "of memory and bias, which makes it forget");
      f("layers", layers, "the layers");
      f("gate", gate, "from a slot to how much of it is replaced");
    }
  };
  /// Not cut off from the gradient. Rows of B may be reordered or dropped.
  struct State {
    Tensor memory;
    void fields(auto&& f) { f("memory", memory, "[B,S,E] the memory after the segments so far"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
