// The Transformer-XL language model: layers over a segment, each with a memory of what it was given for earlier ones.   arXiv 1901.02860
#pragma once
#include <foveate/transformer_xl.h>

namespace foveate {

struct FOVEATE_API TransformerXL {
  static constexpr Form form{
      .card = &transformer_xl,
      .summary = "language model over segments with memory, without the vocabulary's projection",
      .returns = "[B,N,E] hidden states of the last layer",
      .example = R"(model = foveate.nn.TransformerXL(vocab_size=50, num_layers=2, embed_dim=32, num_heads=4, head_dim=8, inner_dim=64, mem_len=16)
tokens = torch.randint(50, (2, 12))
first, state = model.step(tokens[:, :6])
second, state = model.step(tokens[:, 6:], state=state)
assert torch.allclose(torch.cat([first, second], 1), model(tokens), atol=1e-4))"};
  struct Options {
    int64_t vocab_size = 0;
    int64_t num_layers = 12;
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t head_dim = 64;
    int64_t inner_dim = 2048;
    int64_t mem_len = 512;
    bool same_length = false;
    optional<int64_t> clamp_len;
    bool pre_norm = false;
    XLPosition position = XLPosition::sinusoid;
    int64_t table_length = 1024;
    bool untie_bias = false;
    int64_t ext_len = 0;
    bool swapped_lengths = true;
    double dropout = 0;
    double attention_dropout = 0;
    void fields(auto&& f) {
      f("vocab_size", vocab_size, "tokens that ids name", required);
      f("num_layers", num_layers, "layers (authors' enwik8 base: 12)");
      f("embed_dim", embed_dim, "width E of the model, even (authors' enwik8 base: 512)");
      f("num_heads", num_heads, "heads H (authors' enwik8 base: 8)");
      f("head_dim", head_dim, "width D of a head; H D need not be E (authors' enwik8 base: 64)");
      f("inner_dim", inner_dim, "inner width of the position-wise network (authors' enwik8 base: 2048)");
      f("mem_len", mem_len, "tokens of memory, and the window of same_length (authors' enwik8 base: 512)");
      f("same_length", same_length, "every query sees the mem_len latest keys, itself included, and no more (the paper's evaluation)");
      f("clamp_len", clamp_len, "farther keys count as this far (authors' evaluation: 400 to 1000); default no clamping");
      f("pre_norm", pre_norm, "normalises before the sublayers instead of after the residual sums (authors' code: False)");
      f("position", position,
        "what a distance is: a projected sinusoid (paper); a learned key and bias; a sinusoid added to the embeddings; a row added to the input "
        "of every layer (authors' attn_type 0 to 3; the last two count from the end of a segment)");
      f("table_length", table_length, "distances with learned keys (authors' code: segment + ext_len + mem_len)");
      f("untie_bias", untie_bias, "every layer has biases u and v of its own (authors' TensorFlow untie_r; their PyTorch code: tied)");
      f("ext_len", ext_len, "latest tokens that memory leaves out (authors' code: 0)");
      f("swapped_lengths", swapped_lengths,
        "with ext_len, cut what the authors' code cuts, where segment and memory change places; False: what it documents");
      f("dropout", dropout, "probability of dropping entries of embeddings, sinusoids and results, in training (authors' enwik8 base: 0.1)");
      f("attention_dropout", attention_dropout, "the same of attention weights (authors' dropatt, enwik8 base: 0)");
    }
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("ids", ids, "int [B,N] token ids of a segment");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part, False for padding");
    }
  };
  struct Parameters {
    Tensor embedding;
    std::vector<XLBlock> layers;
    std::vector<XLBias> biases;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,E] word embeddings");
      f("layers", layers, "the layers");
      f("biases", biases, "biases of queries: one pair for all layers, one for each, or none");
    }
  };
  /// Memory, cut off from the gradient as published. The last layer's is kept too, as the authors do, and read by nobody.
  struct State {
    Tensor seen;
    std::vector<Tensor> memories;
    void fields(auto&& f) {
      f("seen", seen, "bool [B,M] True where a token of memory takes part");
      f("memories", memories, "[B,M,E] embeddings without positions, then each layer's outputs, of the tokens in memory");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training = false);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training = false);
};

}  // namespace foveate
