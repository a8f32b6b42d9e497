// Transformer on a Diet as a language model: embeddings, the encoder, and the embeddings again as output.   arXiv 2002.06170
#pragma once
#include <foveate/transformer_on_a_diet.h>

namespace foveate {

struct FOVEATE_API DietLanguageModel {
  static constexpr Form form{
      .card = &transformer_on_a_diet,
      .summary = "language model with tied embeddings",
      .returns = "[B,N,V] scores of each next token",
      .example = R"(model = foveate.nn.DietLanguageModel(vocab_size=50, embed_dim=32, num_heads=4, ff_dim=64, pattern="cascade")
tokens = torch.randint(50, (2, 30))
assert model(tokens).shape == (2, 30, 50)
scores, state = model.step(tokens[:, :10])
assert torch.allclose(scores, model(tokens)[:, :10], atol=1e-4))"};
  struct Options {
    int64_t vocab_size = 0;
    int64_t embed_dim = 320;
    int64_t num_heads = 16;
    int64_t num_layers = 3;
    int64_t ff_dim = 2000;
    DietPattern pattern = DietPattern::cascade;
    int64_t kernel_size = 3;
    int64_t d_base = 2;
    double first_window_size = 4;
    double window_size_multiplier = 2;
    bool scaled = true;
    bool use_residual = true;
    bool use_layer_norm = false;
    DietPositions positions = DietPositions::paired;
    double dropout = 0;
    double weight_dropout = 0;
    double output_dropout = 0;
    void fields(auto&& f) {
      f("vocab_size", vocab_size, "tokens V that ids name", required);
      diet_encoder_fields(*this, f);
      f("output_dropout", output_dropout, "in training, of the encoder's result (paper: 0.4)");
    }
    DietEncoder::Options encoder() const {
      return {.embed_dim = embed_dim,
              .num_heads = num_heads,
              .num_layers = num_layers,
              .ff_dim = ff_dim,
              .pattern = pattern,
              .kernel_size = kernel_size,
              .d_base = d_base,
              .first_window_size = first_window_size,
              .window_size_multiplier = window_size_multiplier,
              .scaled = scaled,
              .use_residual = use_residual,
              .use_layer_norm = use_layer_norm,
              .positions = positions,
              .dropout = dropout,
              .weight_dropout = weight_dropout};
    }
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> valid_length, key_mask, weight_keep;
    void fields(auto&& f) {
      f("ids", ids, "int [B,N] token ids");
      f("valid_length", valid_length, "int [B] how many tokens of the call are real: those after them attend to nothing");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part as a key; of all tokens so far in a step");
      f("weight_keep", weight_keep, "bool [*,B,*,N] the draw of weight dropout for each layer and head; drawn in training where absent");
    }
  };
  struct Parameters {
    Tensor embedding;
    DietEncoder::Parameters encoder;
    Tensor output_bias;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,*] embeddings of tokens, and their rows of the output");
      f("encoder", encoder, "the encoder");
      f("output_bias", output_bias, "[*] of each token's score");
    }
  };
  using State = DietEncoder::State;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
