// Compressive Transformer: attention over [compressed memory; memory; segment]; what leaves the memory is compressed, c vectors to one.
// arXiv 1911.05507
#pragma once
#include <foveate/dropout.h>
#include <foveate/heads.h>
#include <foveate/slots.h>
#include <foveate/transformer_xl.h>

namespace foveate {

inline constexpr Card compressive_transformer{.slug = "compressive-transformer",
                                              .title = "Compressive Transformer",
                                              .paper = "1911.05507",
                                              .year = 2019,
                                              .family = Family::memory,
                                              .cost = "O(N (N + mem_len + cmem_len) D)",
                                              .causality = Causality::strict,
                                              .equation = "out = attend(x, [cm; m; x]); cm' = latest of [cm; f_c(oldest of [m; x])], m' = the rest"};

enum class CompressionKind { mean, max, conv, dilated, most_used };
template <> inline constexpr auto names<CompressionKind> = std::array<std::string_view, 5>{"mean", "max", "conv", "dilated", "most_used"};

/// What trains the compression.
enum class CompressionLoss {
  none,
  attention,     ///< what attention reads of the old memories and of the compressed ones should be alike (the paper's best)
  autoencoding,  ///< the old memories should be decodable from the compressed ones
};
template <> inline constexpr auto names<CompressionLoss> = std::array<std::string_view, 3>{"none", "attention", "autoencoding"};

/// The tensors of a compression.
struct FOVEATE_API Compressor {
  optional<layers::Convolution> conv;
  std::vector<layers::Convolution> dilated;
  void fields(auto&& f) {
    f("conv", conv, "[E,E,c] convolution whose stride is its width");
    f("dilated", dilated, "[E,E,3] dilated convolutions before it");
  }
};

namespace detail {
/// The options of a compression, wherever it stands.
void compression_fields(auto& o, auto&& f) {
  f("ratio", o.ratio, "vectors c that become one (PyPI package: 4; paper on enwik8: 3)");
  f("compression", o.compression,
    "mean or max of each slot of c; a convolution of width and stride c; dilated ones before it; or the most used vectors, as they are");
  f("dilations", o.dilations, "of the convolutions of dilated");
}
/// The options of a memory.
void compressive_memory_fields(auto& o, auto&& f) {
  f("mem_len", o.mem_len, "vectors of memory (paper on enwik8: 768)");
  f("cmem_len", o.cmem_len, "vectors of compressed memory (paper on enwik8: 1152); default mem_len / ratio");
  compression_fields(o, f);
  f("loss", o.loss, "what trains the compression, and it alone: none, attention (paper's best) or autoencoding");
}
}  // namespace detail

struct FOVEATE_API MemoryCompression {
  static constexpr Form form{.card = &compressive_transformer,
                             .summary = "c neighbouring vectors of a memory become one",
                             .returns = "[B,*,E] compressed vectors, ceil(N / c)",
                             .example = R"(compress = foveate.nn.MemoryCompression(embed_dim=8, ratio=4)
assert compress(torch.randn(2, 12, 8)).shape == (2, 3, 8))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t ratio = 4;
    CompressionKind compression = CompressionKind::conv;
    std::vector<int64_t> dilations = {1, 2, 4};
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E", required);
      detail::compression_fields(*this, f);
    }
  };
  struct Inputs {
    Tensor memory;
    optional<Tensor> usage;
    void fields(auto&& f) {
      f("memory", memory, "[B,N,E] vectors, the oldest first; zeros stand before them up to a multiple of c");
      f("usage", usage, "[B,N] the attention each received, for most_used");
    }
  };
  using Parameters = Compressor;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The paper's layer, from Transformer-XL's.
struct FOVEATE_API CompressiveTransformerLayer {
  static constexpr Form form{.card = &compressive_transformer,
                             .summary = "the paper's layer: Transformer-XL's, with a compressed memory behind its memory",
                             .returns = "",
                             .example = R"(layer = foveate.nn.CompressiveTransformerLayer(
    embed_dim=32, num_heads=4, head_dim=8, inner_dim=64, mem_len=8, ratio=2)
x = torch.randn(2, 8, 32)
one = layer(x)
two = layer(x, one.new_memory, one.new_compressed)
three = layer(x, two.new_memory, two.new_compressed)
assert two.out.shape == x.shape and three.new_compressed.shape == (2, 4, 32) and three.loss.requires_grad)"};
  struct Options {
    int64_t embed_dim = 1024;
    int64_t num_heads = 8;
    int64_t head_dim = 128;
    int64_t inner_dim = 3072;
    int64_t mem_len = 768;
    optional<int64_t> cmem_len;
    int64_t ratio = 4;
    CompressionKind compression = CompressionKind::conv;
    std::vector<int64_t> dilations = {1, 2, 4};
    CompressionLoss loss = CompressionLoss::attention;
    double dropout = 0;
    double attention_dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model, even (paper: 1024)");
      f("num_heads", num_heads, "heads H (8)");
      f("head_dim", head_dim, "width D of a head (128)");
      f("inner_dim", inner_dim, "inner width of the position-wise network (paper: 3072)");
      detail::compressive_memory_fields(*this, f);
      f("dropout", dropout, "probability of dropping entries of sinusoids and results, in training");
      f("attention_dropout", attention_dropout, "the same of attention weights");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> memory, compressed, key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] segment");
      f("memory", memory, "[B,*,E] what this layer was given for the tokens before the segment");
      f("compressed", compressed, "[B,*,E] the compressed memory before that");
      f("key_mask", key_mask, "bool [B,*] True where a vector of [compressed; memory; segment] takes part");
    }
  };
  struct Parameters {
    XLBlock block;
    XLBias bias;
    Compressor compressor;
    optional<Tensor> decoder_weight, decoder_bias;
    void fields(auto&& f) {
      f("block", block, "projections, norms and network");
      f("bias", bias, "biases of queries");
      f("compressor", compressor, "of what leaves the memory");
      f("decoder_weight", decoder_weight, "[*,E,E] of autoencoding: from a compressed vector to each of the c it stands for");
      f("decoder_bias", decoder_bias, "[*,E] likewise");
    }
  };
  struct Outputs {
    Tensor out, new_memory, new_compressed, loss;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] the segment, transformed");
      f("new_memory", new_memory, "[B,*,E] the latest mem_len of memory and segment, cut off from the gradient");
      f("new_compressed", new_compressed, "[B,*,E] the latest cmem_len of compressed memory, cut off from the gradient");
      f("loss", loss, "[] of the compression, a mean of squares; its gradient reaches the compression alone");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// The attention of the PyPI package: learned positions by distance, no biases of queries.
struct FOVEATE_API CompressiveAttention {
  static constexpr Form form{.card = &compressive_transformer,
                             .summary = "causal attention over compressed memory, memory and segment, with learned positions",
                             .returns = "",
                             .example = R"(layer = foveate.nn.CompressiveAttention(embed_dim=16, num_heads=2, seq_len=6, ratio=2)
x = torch.randn(2, 6, 16)
one = layer(x)
two = layer(x, one.new_memory, one.new_compressed)
assert two.out.shape == x.shape and two.new_compressed.shape == (2, 3, 16))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t seq_len = 512;
    optional<int64_t> mem_len;
    optional<int64_t> cmem_len;
    int64_t ratio = 4;
    CompressionKind compression = CompressionKind::conv;
    std::vector<int64_t> dilations = {1, 2, 4};
    CompressionLoss loss = CompressionLoss::attention;
    bool as_package = false;
    double attention_dropout = 0;
    double dropout = 0;
    double reconstruction_dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H, must divide embed_dim (PyPI package: 8)");
      f("seq_len", seq_len, "tokens of a segment; shorter ones leave the memories as they are");
      detail::compressive_memory_fields(*this, f);
      f("as_package", as_package,
        "what the PyPI package does where it departs from the paper: zeros before what is compressed that lose vectors, the whole memory as what "
        "the attention loss compares with");
      f("attention_dropout", attention_dropout, "probability of dropping attention weights, in training");
      f("dropout", dropout, "probability of dropping entries of the result, in training");
      f("reconstruction_dropout", reconstruction_dropout, "the same of the attention weights in the attention loss");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> memory, compressed, mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] segment, normalised");
      f("memory", memory, "[B,*,E] what this layer was given for the tokens before the segment");
      f("compressed", compressed, "[B,*,E] the compressed memory before that");
      f("mask", mask, "bool [B,N] False for padding, which neither reads nor is read; it enters the memory all the same");
    }
  };
  struct Parameters {
    layers::Linear query, key, value, out;
    Tensor positions;
    Compressor compressor;
    optional<Tensor> decoder_weight, decoder_bias;
    void fields(auto&& f) {
      f("query", query, "query projection");
      f("key", key, "key projection");
      f("value", value, "value projection");
      f("out", out, "output projection");
      f("positions", positions, "[H,*,D] keys of distances, the last of distance 0; farther keys than there are rows use the first");
      f("compressor", compressor, "of what leaves the memory");
      f("decoder_weight", decoder_weight, "[*,E,E] of autoencoding");
      f("decoder_bias", decoder_bias, "[*,E] of autoencoding");
    }
  };
  using Outputs = CompressiveTransformerLayer::Outputs;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

namespace detail {
/// The attention with a table of positions of its own, and keys of the memories that do not take part: seen bool [B,m + M].
FOVEATE_API CompressiveAttention::Outputs compressive_attention(const CompressiveAttention::Options&, const CompressiveAttention::Parameters&,
                                                                const CompressiveAttention::Inputs&, const Tensor& positions, bool remembers,
                                                                const optional<Tensor>& seen, bool training);
/// zeros before x [B,n,...] up to a multiple of c
FOVEATE_API Tensor padded_to_slots(const Tensor& x, int64_t c);
}  // namespace detail

}  // namespace foveate
