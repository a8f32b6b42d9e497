// The Memformer: an encoder that reads the memory, a write, and a decoder of what was encoded; segments of any length follow each other.
// arXiv 2010.06891
#pragma once
#include <foveate/memformer.h>

namespace foveate {

/// A layer of encoder or decoder, each sublayer normalised before and added to the stream.
struct FOVEATE_API MemformerLayer {
  layers::LayerNorm attention_norm;
  layers::Heads attention;
  layers::LayerNorm cross_norm;
  layers::Heads cross;
  layers::LayerNorm network_norm;
  layers::FeedForward network;
  void fields(auto&& f) {
    f("attention_norm", attention_norm, "before self-attention");
    f("attention", attention, "projections of self-attention");
    f("cross_norm", cross_norm, "before the read");
    f("cross", cross, "projections of the read: of the memory in the encoder, of what was encoded in the decoder");
    f("network_norm", network_norm, "before the network");
    f("network", network, "position-wise network");
  }
};

struct FOVEATE_API MemformerStack {
  std::vector<MemformerLayer> layers;
  Tensor bias_table;  // [buckets,H]
  void fields(auto&& f) {
    f("layers", layers, "the layers");
    f("bias_table", bias_table, "[*,*] added to the scores of each bucket of distances, in every layer");
  }
  static MemformerStack shape(int64_t depth);
  static MemformerStack init(int64_t width, int64_t heads, int64_t depth, int64_t buckets);
};

namespace detail {
/// The options of a stack, wherever it stands.
void memformer_stack_fields(auto& o, auto&& f) {
  f("embed_dim", o.embed_dim, "width E of the model (paper's language model: 512)");
  f("num_heads", o.num_heads, "heads H, must divide embed_dim (PyPI package: 8)");
  f("depth", o.depth, "layers (paper's language model: 4 of the encoder, 16 of the decoder)");
  f("buckets", o.buckets, "buckets of distances (T5 and PyPI package: 32)");
  f("max_distance", o.max_distance, "distances from here on share a bucket (T5 and PyPI package: 128)");
}
}  // namespace detail

struct FOVEATE_API MemformerEncoder {
  static constexpr Form form{.card = &memformer,
                             .summary = "layers of self-attention, a read of the memory, and a network",
                             .returns = "[B,N,E] encoded segment",
                             .example = R"(encoder = foveate.nn.MemformerEncoder(embed_dim=32, num_heads=4, depth=2)
encoded = encoder(torch.randn(2, 20, 32), memory=torch.randn(2, 8, 32))
assert encoded.shape == (2, 20, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t depth = 4;
    int64_t buckets = 32;
    int64_t max_distance = 128;
    bool bidirectional = true;
    void fields(auto&& f) {
      detail::memformer_stack_fields(*this, f);
      f("bidirectional", bidirectional,
        "half of the buckets for keys after the query; False: those share bucket 0 (PyPI package: False, by mistake)");
    }
  };
  struct Inputs {
    Tensor x, memory;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] segment");
      f("memory", memory, "[B,S,E] slots, which every token sees");
      f("key_mask", key_mask, "bool [B,N] False for padding, which neither sees nor is seen in self-attention");
    }
  };
  using Parameters = MemformerStack;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

struct FOVEATE_API MemformerDecoder {
  static constexpr Form form{.card = &memformer,
                             .summary = "layers of causal self-attention, a read of what was encoded, and a network",
                             .returns = "[B,N,E] decoded sequence",
                             .example = R"(decoder = foveate.nn.MemformerDecoder(embed_dim=32, num_heads=4, depth=2)
x, encoded = torch.randn(2, 10, 32), torch.randn(2, 20, 32)
first, state = decoder.step(x[:, :6], encoded)
rest, state = decoder.step(x[:, 6:], encoded, state=state)
assert torch.allclose(torch.cat([first, rest], 1), decoder(x, encoded), atol=1e-5))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t depth = 16;
    int64_t buckets = 32;
    int64_t max_distance = 128;
    bool bidirectional = false;
    void fields(auto&& f) {
      detail::memformer_stack_fields(*this, f);
      f("bidirectional", bidirectional, "half of the buckets for keys after the query, which it never sees (PyPI package: True, by mistake)");
    }
  };
  struct Inputs {
    Tensor x, encoded;
    optional<Tensor> key_mask, encoded_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("encoded", encoded, "[B,S,E] what it reads");
      f("key_mask", key_mask, "bool [B,*] False for padding, which neither sees nor is seen; in step, of all tokens so far");
      f("encoded_mask", encoded_mask, "bool [B,S] True where a vector of `encoded` takes part; padding of x then reads nothing");
    }
  };
  using Parameters = MemformerStack;
  struct State {
    std::vector<Tensor> cache;
    void fields(auto&& f) { f("cache", cache, "[B,H,M,D] keys and values of each layer's self-attention so far"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// How the memory is written.
enum class SlotWrite {
  gru,     ///< by a gated recurrent unit (PyPI package)
  forget,  ///< by attention with a temperature, then forgetting (paper)
};
template <> inline constexpr auto names<SlotWrite> = std::array<std::string_view, 2>{"gru", "forget"};

struct FOVEATE_API Memformer {
  static constexpr Form form{.card = &memformer,
                             .summary = "encoder and decoder over segments, with a memory of slots",
                             .returns = "",
                             .example = R"(model = foveate.nn.Memformer(
    vocab_size=50, embed_dim=32, num_heads=4, encoder_depth=1, decoder_depth=2, slots=8)
source, target, state = torch.randint(50, (2, 30)), torch.randint(50, (2, 7)), None
alone = model(source[:, :10], target)  # one segment, without a past
for segment in source.split(10, 1):
    out, encoded, state = model.step(segment, target, state=state)
assert out.shape == (2, 7, 50) and state[0].shape == (2, 8, 32))"};
  struct Options {
    int64_t vocab_size = 0;
    optional<int64_t> target_vocab_size;
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    optional<int64_t> decoder_heads;
    int64_t encoder_depth = 4;
    int64_t decoder_depth = 16;
    bool encoder_only = false;
    int64_t slots = 512;
    SlotWrite write = SlotWrite::gru;
    int64_t write_heads = 8;
    int64_t num_updates = 1;
    double temperature = 0.5;
    int64_t buckets = 32;
    int64_t max_distance = 128;
    bool swapped_buckets = false;
    void fields(auto&& f) {
      f("vocab_size", vocab_size, "tokens that src names", required);
      f("target_vocab_size", target_vocab_size, "tokens that tgt names; default as vocab_size");
      f("embed_dim", embed_dim, "width E of the model (paper's language model: 512)");
      f("num_heads", num_heads, "heads of the encoder, must divide embed_dim (PyPI package: 8)");
      f("decoder_heads", decoder_heads, "heads of the decoder; default as num_heads");
      f("encoder_depth", encoder_depth, "layers of the encoder (paper's language model: 4)");
      f("decoder_depth", decoder_depth, "layers of the decoder (paper's language model: 16)");
      f("encoder_only", encoder_only, "there is no decoder (PyPI package: False)");
      f("slots", slots, "slots S of the memory (paper: 512 for language, 64 for images)");
      f("write", write, "how the memory is written: by a gated recurrent unit (PyPI package), or by the paper's attention and forgetting");
      f("write_heads", write_heads, "heads of the write, must divide embed_dim (PyPI package: 8)");
      f("num_updates", num_updates, "of gru: times that the slots read a segment (PyPI package: 1)");
      f("temperature", temperature, "of forget: divides the scores of the write (paper: below 1)");
      f("buckets", buckets, "buckets of distances (T5 and PyPI package: 32)");
      f("max_distance", max_distance, "distances from here on share a bucket (T5 and PyPI package: 128)");
      f("swapped_buckets", swapped_buckets, "the encoder has one-sided buckets and the decoder two-sided ones (PyPI package: True, by mistake)");
    }
    MemformerEncoder::Options encoder() const;
    MemformerDecoder::Options decoder() const;
  };
  struct Inputs {
    Tensor src;
    optional<Tensor> tgt, src_mask, tgt_mask, reset;
    void fields(auto&& f) {
      f("src", src, "int [B,N] token ids of a segment");
      f("tgt", tgt, "int [B,M] token ids to decode, each from those before it; without them the decoder rests");
      f("src_mask", src_mask, "bool [B,N] False for padding, which neither sees nor is seen, but reads the memory");
      f("tgt_mask", tgt_mask, "bool [B,M] False for padding, likewise");
      f("reset", reset, "bool [B] True where a sequence begins: its memory is the first state");
    }
  };
  struct Coder {
    Tensor embedding;
    MemformerStack stack;
    layers::LayerNorm norm;
    optional<layers::Linear> head;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,E] token embeddings");
      f("stack", stack, "the layers and their biases");
      f("norm", norm, "after the last layer");
      f("head", head, "to logits");
    }
  };
  struct Parameters {
    Coder encoder;
    optional<Coder> decoder;
    optional<Tensor> memory_slots;
    optional<SlotUpdate> update;
    optional<SlotForgetting> forgetting;
    void fields(auto&& f) {
      f("encoder", encoder, "the encoder");
      f("decoder", decoder, "the decoder");
      f("memory_slots", memory_slots, "[S,E] the first state of the memory; forget derives it from its bias");
      f("update", update, "the write by a gated recurrent unit");
      f("forgetting", forgetting, "the paper's write");
    }
  };
  struct Outputs {
    Tensor out, encoded;
    void fields(auto&& f) {
      f("out", out, "[B,M,*] logits of what follows each token of tgt; without tgt as `encoded`");
      f("encoded", encoded, "[B,N,E] what the encoder made of the segment");
    }
  };
  /// Not cut off from the gradient: it goes on through every segment. Rows of B may be reordered or dropped.
  struct State {
    Tensor memory;
    void fields(auto&& f) { f("memory", memory, "[B,S,E] the memory after the segments so far"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
