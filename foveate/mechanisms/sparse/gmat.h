// GMAT: m memory tokens in front; they see all, a main token i sees them and its own sparse set S(i), in one softmax.  arXiv 2006.03274
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card gmat{.slug = "gmat",
                           .title = "GMAT (global memory augmentation)",
                           .paper = "2006.03274",
                           .year = 2020,
                           .family = Family::sparse,
                           .cost = "O(N (chunk + m) D + m (N + m) D)",
                           .causality = Causality::none,
                           .equation = "o_i = sum over j in memory and S(i) of softmax_j(scale q_i.k_j) v_j"};

/// The sparse attention that the memory is added to.
enum class GMATSparse {
  chunked,  ///< the chunk that holds i (the paper)
  window,   ///< i - window ... i + window
  pattern,  ///< any pattern
};
template <> inline constexpr auto names<GMATSparse> = std::array<std::string_view, 3>{"chunked", "window", "pattern"};

/// The options that all forms share.
void gmat_fields(auto& o, auto&& f) {
  f("memory", o.memory, "m, memory tokens, few against N (paper: up to hundreds); 0 for none");
  f("sparse", o.sparse, "what a main token sees besides the memory: its chunk (paper), a window, or a pattern");
  f("chunk", o.chunk, "C, main tokens of a chunk (512 with weights of BERT); the last may be short");
  f("window", o.window, "tokens seen on each side, of sparse window");
  f("pattern", o.pattern,
    "of sparse pattern, positions counted from the first main token: an expression such as \"strided(8)\", the `expression` of a "
    "foveate.patterns.Pattern "
    "without tables");
}

/// The bare function.
struct FOVEATE_API GMATAttention {
  static constexpr Form form{.card = &gmat,
                             .summary = "attention of memory tokens to all, of main tokens to the memory and a sparse set",
                             .returns = "[B,H,N,Dv] attended values, the memory's first",
                             .example = R"(q = k = v = torch.randn(2, 4, 8 + 100, 16)
out = foveate.gmat_attention(q, k, v, memory=8, chunk=32)
assert out.shape == (2, 4, 108, 16))"};
  struct Options {
    int64_t memory = 0;
    GMATSparse sparse = GMATSparse::chunked;
    int64_t chunk = 512;
    int64_t window = 256;
    std::string pattern;
    optional<double> scale;
    void fields(auto&& f) {
      gmat_fields(*this, f);
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries, the memory's first");
      f("k", k, "[B,Hk,N,D] keys; Hk divides H");
      f("v", v, "[B,Hk,N,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a main token takes part as key; the memory always does");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// One layer, normalised behind its residual sums, as in BERT.
struct FOVEATE_API GMATLayer {
  layers::Heads attention;
  layers::LayerNorm attention_norm;
  layers::FeedForward feed_forward;
  layers::LayerNorm feed_forward_norm;
  void fields(auto&& f) {
    f("attention", attention, "projections, of memory and main tokens alike");
    f("attention_norm", attention_norm, "behind attention");
    f("feed_forward", feed_forward, "W2 gelu(W1 x)");
    f("feed_forward_norm", feed_forward_norm, "behind the feed-forward network");
  }
};

/// The encoder: the memory runs along through all layers.
struct FOVEATE_API GMATEncoder {
  static constexpr Form form{.card = &gmat,
                             .summary = "encoder with a global memory",
                             .example = R"(encoder = foveate.nn.GMATEncoder(embed_dim=32, num_heads=4, num_layers=2, memory=8, chunk=16, inner_dim=64)
out, memory = encoder(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32) and memory.shape == (2, 8, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    int64_t num_heads = 12;
    int64_t num_layers = 12;
    int64_t inner_dim = 3072;
    int64_t memory = 64;
    GMATSparse sparse = GMATSparse::chunked;
    int64_t chunk = 512;
    int64_t window = 256;
    std::string pattern;
    double layer_norm_eps = 1e-12;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (BERT: 768)");
      f("num_heads", num_heads, "heads H, a divisor of E (BERT: 12)");
      f("num_layers", num_layers, "layers (BERT: 12)");
      f("inner_dim", inner_dim, "inner width of the feed-forward networks (BERT: 3072)");
      gmat_fields(*this, f);
      f("layer_norm_eps", layer_norm_eps, "added to the variance (BERT: 1e-12)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] main tokens");
      f("key_mask", key_mask, "bool [B,N] True where a main token takes part as key");
    }
  };
  struct Parameters {
    optional<Tensor> memory;
    std::vector<GMATLayer> layers;
    void fields(auto&& f) {
      f("memory", memory, "[*,E] embeddings of the memory tokens");
      f("layers", layers, "layers");
    }
  };
  struct Outputs {
    Tensor out, memory;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] main tokens");
      f("memory", memory, "[B,*,E] memory tokens");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// Sequence compression: a sequence is stored as its memory, from which all its positions are computed again.
struct FOVEATE_API GMATCompression {
  static constexpr Form form{.card = &gmat,
                             .summary = "compression of a sequence into its memory, and back",
                             .example = R"(model = foveate.nn.GMATCompression(embed_dim=32, num_heads=4, memory=8, chunk=16, inner_dim=64, length=200)
out, stored_memory = model(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32) and stored_memory.shape == (2, 8, 32))"};
  struct Options {
    int64_t embed_dim = 768;
    int64_t num_heads = 12;
    int64_t num_compress = 1;
    int64_t num_memory_layers = 1;
    int64_t num_decompress = 1;
    int64_t inner_dim = 3072;
    int64_t length = 512;
    int64_t memory = 64;
    GMATSparse sparse = GMATSparse::chunked;
    int64_t chunk = 512;
    int64_t window = 256;
    std::string pattern;
    double layer_norm_eps = 1e-12;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (BERT: 768)");
      f("num_heads", num_heads, "heads H, a divisor of E (BERT: 12)");
      f("num_compress", num_compress, "Nc, layers on memory and sequence");
      f("num_memory_layers", num_memory_layers, "Nm, layers on the memory alone, whose result is stored");
      f("num_decompress", num_decompress, "Nd, layers on memory and position embeddings");
      f("inner_dim", inner_dim, "inner width of the feed-forward networks (BERT: 3072)");
      f("length", length, "positions that have an embedding, the longest sequence");
      gmat_fields(*this, f);
      f("layer_norm_eps", layer_norm_eps, "added to the variance (BERT: 1e-12)");
    }
  };
  using Inputs = GMATEncoder::Inputs;
  struct Parameters {
    Tensor memory, position;
    std::vector<GMATLayer> layers;
    void fields(auto&& f) {
      f("memory", memory, "[*,E] embeddings of the memory tokens");
      f("position", position, "[*,E] embeddings of positions, the main tokens of the way back");
      f("layers", layers, "layers: to compress, on the memory, to decompress");
    }
  };
  struct Outputs {
    Tensor out, stored_memory;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] positions, from the stored memory");
      f("stored_memory", stored_memory, "[B,*,E] the compressed sequence");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
