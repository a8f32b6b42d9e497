// The Compressive Transformer as the PyPI package builds it: pre-norm layers with gated residuals, learned positions, and memories that
// may go down the stack by one layer from segment to segment.   arXiv 1911.05507
#pragma once
#include <foveate/compressive_transformer.h>
#include <foveate/gru.h>

namespace foveate {

/// Before the gate, what a sublayer puts out and the stream scale each other in turn, by 2 sigmoid(Q h) and 2 sigmoid(R y).   arXiv 1909.01792
struct FOVEATE_API Mogrifier {
  layers::FeedForward output_scale, stream_scale;
  void fields(auto&& f) {
    f("output_scale", output_scale, "Q, of low rank: from the stream to what scales the output");
    f("stream_scale", stream_scale, "R, of low rank: from the output to what scales the stream");
  }
  static Mogrifier init(int64_t width);
  void operator()(Tensor& y, Tensor& h) const;
};

struct FOVEATE_API CompressiveLayer {
  layers::LayerNorm attention_norm;
  layers::Linear query, key, value, out;
  Compressor compressor;
  optional<Tensor> decoder_weight, decoder_bias;
  optional<layers::GRU> attention_gate;
  optional<Mogrifier> attention_mogrifier;
  layers::LayerNorm network_norm;
  layers::FeedForward network;
  optional<layers::GRU> network_gate;
  optional<Mogrifier> network_mogrifier;
  void fields(auto&& f) {
    f("attention_norm", attention_norm, "before attention");
    f("query", query, "query projection");
    f("key", key, "key projection");
    f("value", value, "value projection");
    f("out", out, "output projection");
    f("compressor", compressor, "of what leaves the memory");
    f("decoder_weight", decoder_weight, "[*,E,E] of autoencoding");
    f("decoder_bias", decoder_bias, "[*,E] of autoencoding");
    f("attention_gate", attention_gate, "gate of what attention adds");
    f("attention_mogrifier", attention_mogrifier, "before that gate");
    f("network_norm", network_norm, "before the network");
    f("network", network, "position-wise network");
    f("network_gate", network_gate, "gate of what the network adds");
    f("network_mogrifier", network_mogrifier, "before that gate");
  }
};

struct FOVEATE_API CompressiveTransformer {
  static constexpr Form form{
      .card = &compressive_transformer,
      .summary = "language model over segments with memory and compressed memory",
      .returns = "",
      .example = R"(model = foveate.nn.CompressiveTransformer(vocab_size=50, embed_dim=16, depth=2, num_heads=2, seq_len=4, ratio=2)
tokens = torch.randint(50, (2, 12))
whole = model(tokens).logits
state, outs = None, []
for segment in tokens.split(4, 1):  # the same, segment by segment
    logits, loss, state = model.step(segment, state=state)
    outs.append(logits)
assert torch.allclose(torch.cat(outs, 1), whole, atol=1e-5))"};
  struct Options {
    int64_t vocab_size = 0;
    int64_t embed_dim = 512;
    int64_t depth = 6;
    int64_t num_heads = 8;
    int64_t seq_len = 512;
    optional<int64_t> mem_len;
    optional<int64_t> cmem_len;
    int64_t ratio = 4;
    CompressionKind compression = CompressionKind::conv;
    std::vector<int64_t> dilations = {1, 2, 4};
    CompressionLoss loss = CompressionLoss::attention;
    bool as_package = false;
    optional<int64_t> emb_dim;
    std::vector<int64_t> memory_layers = {};
    bool enhanced_recurrence = true;
    bool gru_gated = true;
    bool mogrify = false;
    bool ff_glu = false;
    bool zero_memory = false;
    double reconstruction_loss_weight = 1;
    bool sum_losses = false;
    double attention_dropout = 0;
    double dropout = 0;
    double reconstruction_dropout = 0;
    double ff_dropout = 0;
    void fields(auto&& f) {
      f("vocab_size", vocab_size, "tokens that ids name", required);
      f("embed_dim", embed_dim, "width E of the model");
      f("depth", depth, "layers");
      f("num_heads", num_heads, "heads H, must divide embed_dim (8)");
      f("seq_len", seq_len, "tokens of a segment; a shorter last one leaves the memories as they are");
      detail::compressive_memory_fields(*this, f);
      f("as_package", as_package,
        "what the PyPI package does where it departs from the paper, see CompressiveAttention; and a distance moves down the table of positions as "
        "the "
        "memories fill");
      f("emb_dim", emb_dim, "width of the embeddings, projected to E; default E");
      f("memory_layers", memory_layers, "layers with memory, the first is 1; empty for all");
      f("enhanced_recurrence", enhanced_recurrence,
        "each layer reads the memories that the one above left, the last those of the first (PyPI package: True)");
      f("gru_gated", gru_gated, "what a sublayer puts out updates the stream by a GRU; False: it is added (PyPI package: True)");
      f("mogrify", mogrify, "a Mogrifier stands before each gate (PyPI package: False)");
      f("ff_glu", ff_glu, "the network gates half of its inner features with the other (PyPI package: False)");
      f("zero_memory", zero_memory, "the memories start as zeros of full length, seen by all, as in the paper; False: they grow from nothing");
      f("reconstruction_loss_weight", reconstruction_loss_weight, "multiplies the loss (PyPI package: 1)");
      f("sum_losses", sum_losses, "the losses of layers are summed, as in the paper; False: averaged (PyPI package)");
      f("attention_dropout", attention_dropout, "probability of dropping attention weights, in training");
      f("dropout", dropout, "the same of entries of what attention puts out");
      f("reconstruction_dropout", reconstruction_dropout, "the same of the attention weights in the attention loss");
      f("ff_dropout", ff_dropout, "the same inside the network");
    }
    std::vector<std::size_t> remembering() const;
    CompressiveAttention::Options attention() const;
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> mask, reset;
    void fields(auto&& f) {
      f("ids", ids, "int [B,N] token ids");
      f("mask", mask, "bool [B,N] False for padding, which neither reads nor is read; it enters the memory all the same");
      f("reset", reset, "bool [B] True where a sequence begins: it does not see what the memories hold of another");
    }
  };
  struct Parameters {
    Tensor embedding, positions;
    optional<layers::Linear> widen, narrow;
    std::vector<CompressiveLayer> layers;
    layers::Linear head;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,*] word embeddings");
      f("positions", positions, "[H,*,D] keys of distances, which all layers share");
      f("widen", widen, "from embeddings to E, where they are narrower");
      f("narrow", narrow, "from E to the width of embeddings");
      f("layers", layers, "the layers");
      f("head", head, "to logits");
    }
  };
  struct Outputs {
    Tensor logits, loss;
    void fields(auto&& f) {
      f("logits", logits, "[B,N,*] logits of the next tokens");
      f("loss", loss, "[] of the compressions, a mean or sum over layers with memory; 0 outside training");
    }
  };
  /// Memories, cut off from the gradient between segments as published; rows of B may be reordered or dropped.
  struct State {
    Tensor seen, seen_compressed;
    std::vector<Tensor> memories;
    void fields(auto&& f) {
      f("seen", seen, "bool [B,*] True where a vector of the memory belongs to the sequence");
      f("seen_compressed", seen_compressed, "bool [B,*] likewise");
      f("memories", memories, "[B,*,E] of each layer with memory: the memory, then the compressed memory");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
