// Transformer on a Diet: causal attention to a few distances, fixed for each layer: o_i = softmax over i - j in S_layer of
// (scale q_i.k_j), times v_j.  arXiv 2002.06170
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card transformer_on_a_diet{.slug = "transformer-on-a-diet",
                                            .title = "Transformer on a Diet",
                                            .paper = "2002.06170",
                                            .year = 2020,
                                            .family = Family::sparse,
                                            .cost = "O(N k D)",
                                            .causality = Causality::strict,
                                            .equation = "o_i = sum over i - j in S_layer of softmax_j(scale q_i.k_j) v_j"};

/// The distances that a layer sees.
enum class DietPattern { full, cascade, dilated, dilated_mem };
template <> inline constexpr auto names<DietPattern> = std::array<std::string_view, 4>{"full", "cascade", "dilated", "dilated_mem"};

/// The frequencies of sine and cosine.
enum class DietPositions { paired, unpaired };
template <> inline constexpr auto names<DietPositions> = std::array<std::string_view, 2>{"paired", "unpaired"};

/// The options of the distances, shared by the forms.
void diet_fields(auto& o, auto&& f) {
  f("pattern", o.pattern,
    "distances of layer l: full, all; cascade, less than first_window_size * window_size_multiplier^l; dilated, kernel_size steps of "
    "d_base^l; dilated_mem, those of the layers up to l together");
  f("kernel_size", o.kernel_size, "dilated, dilated_mem: steps, that of length 0 among them (paper: 3)");
  f("d_base", o.d_base, "dilated, dilated_mem: how much longer each layer's steps are (paper: 2)");
  f("first_window_size", o.first_window_size, "cascade: distances of layer 0 (paper: 4; authors' code: 2, and -1 for all)");
  f("window_size_multiplier", o.window_size_multiplier, "cascade: how much wider each layer's window is (paper: 2)");
}

/// The options of the encoder, shared with the language model.
void diet_encoder_fields(auto& o, auto&& f) {
  f("embed_dim", o.embed_dim, "width E, `units` (paper: 320; authors' code: 512)");
  f("num_heads", o.num_heads, "heads H, a divisor of E (paper: 16; authors' code: 8)");
  f("num_layers", o.num_layers, "layers (paper: 3)");
  f("ff_dim", o.ff_dim, "inner width of the feed-forward network, `hidden_size` (paper: 2000; authors' code: 1150)");
  diet_fields(o, f);
  f("scaled", o.scaled, "scores are divided by sqrt(E/H) (paper: True; authors' code: a flag)");
  f("use_residual", o.use_residual, "sums around attention and feed-forward network (paper: True; authors' code: a flag)");
  f("use_layer_norm", o.use_layer_norm, "normalises the embeddings and after each sum (paper: False)");
  f("positions", o.positions,
    "paired: sine and cosine of a pair of channels share a frequency; unpaired: each channel has its own, as in the authors' code");
  f("dropout", o.dropout, "in training, of the embeddings and each sublayer's output, the last layer's excepted (paper: 0.25)");
  f("weight_dropout", o.weight_dropout, "in training, probability of dropping a key for all queries of a head (authors' code: 0.5)");
}

/// The bare function.
struct FOVEATE_API DietAttention {
  static constexpr Form form{.card = &transformer_on_a_diet,
                             .summary = "causal attention to the distances of one layer",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q = k = v = torch.randn(1, 4, 100, 8)
out = foveate.diet_attention(q, k, v, pattern="dilated", layer=2)  # distances 0, 4 and 8
assert out.shape == (1, 4, 100, 8))"};
  struct Options {
    DietPattern pattern = DietPattern::cascade;
    int64_t kernel_size = 3;
    int64_t d_base = 2;
    double first_window_size = 4;
    double window_size_multiplier = 2;
    int64_t layer = 0;
    optional<double> scale;
    double weight_dropout = 0;
    void fields(auto&& f) {
      diet_fields(*this, f);
      f("layer", layer, "the layer's number l, from 0");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D); 1 is the authors' code without its flag `scaled`");
      f("weight_dropout", weight_dropout, "probability of dropping a key where weight_keep is given (authors' code: 0.5)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> valid_length, key_mask, weight_keep;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,Dv] values");
      f("valid_length", valid_length, "int [B] how many queries of the call are real: those after them attend to nothing");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
      f("weight_keep", weight_keep, "bool [B,H,N] the draw of weight dropout: True where a key is kept, for all queries of a head");
    }
  };
  using Parameters = None;
  struct State {
    Tensor k, v;
    void fields(auto&& f) {
      f("k", k, "[B,H,M,D] keys that later queries see");
      f("v", v, "[B,H,M,Dv] their values");
    }
  };
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// a = norm(x + attention(x)), y = norm(a + W2 relu(W1 a)), each in the layers' own patterns, on x sqrt(E) + positions.
struct FOVEATE_API DietEncoder {
  static constexpr Form form{.card = &transformer_on_a_diet,
                             .summary = "stack of causal layers on a sequence of embeddings",
                             .returns = "[B,N,E] sequence",
                             .example = R"(encoder = foveate.nn.DietEncoder(embed_dim=32, num_heads=4, num_layers=3, ff_dim=64, pattern="dilated_mem")
x = torch.randn(2, 50, 32)
(first, state), full = encoder.step(x[:, :20]), encoder(x)
rest, state = encoder.step(x[:, 20:], state=state)
assert torch.allclose(torch.cat([first, rest], 1), full, atol=1e-4))"};
  struct Options {
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
    void fields(auto&& f) { diet_encoder_fields(*this, f); }
    DietAttention::Options attention(int64_t layer) const {
      return {.pattern = pattern,
              .kernel_size = kernel_size,
              .d_base = d_base,
              .first_window_size = first_window_size,
              .window_size_multiplier = window_size_multiplier,
              .layer = layer,
              .scale = scaled ? std::nullopt : optional<double>(1),
              .weight_dropout = weight_dropout};
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> valid_length, key_mask, weight_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] embeddings");
      f("valid_length", valid_length, "int [B] how many positions of the call are real: those after them attend to nothing");
      f("key_mask", key_mask, "bool [B,*] True where a position takes part as a key; of all positions so far in a step");
      f("weight_keep", weight_keep, "bool [*,B,*,N] the draw of weight dropout for each layer and head; drawn in training where absent");
    }
  };
  struct Layer {
    layers::Heads attention;
    optional<layers::LayerNorm> attention_norm;
    layers::FeedForward feed_forward;
    optional<layers::LayerNorm> feed_forward_norm;
    void fields(auto&& f) {
      f("attention", attention, "projections, without biases");
      f("attention_norm", attention_norm, "after attention, where use_layer_norm");
      f("feed_forward", feed_forward, "W2 relu(W1 a)");
      f("feed_forward_norm", feed_forward_norm, "after the feed-forward network, where use_layer_norm");
    }
  };
  struct Parameters {
    optional<layers::LayerNorm> norm;
    std::vector<Layer> layers;
    void fields(auto&& f) {
      f("norm", norm, "of the embeddings, where use_layer_norm");
      f("layers", layers, "the layers");
    }
  };
  struct State {
    Tensor position;
    std::vector<Tensor> keys_and_values;
    void fields(auto&& f) {
      f("position", position, "int [1] how many positions came before");
      f("keys_and_values", keys_and_values, "[B,H,M,D] keys, then values, of each layer, as far back as it sees");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
