// Star-Transformer: h_i = f(W softmax(q_i K_i^T / sqrt(d)) V_i) over the five h_i-1, h_i, h_i+1, e_i and s; then the relay s asks all.
// arXiv 1902.09113
#pragma once
#include <foveate/contract.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card star_transformer{.slug = "star-transformer",
                                       .title = "Star-Transformer",
                                       .paper = "1902.09113",
                                       .year = 2019,
                                       .family = Family::sparse,
                                       .cost = "O(N D)",
                                       .causality = Causality::none,
                                       .equation = "h_i = f(attention(h_i; h_i-1, h_i, h_i+1, e_i, s)),  s = f(attention(s; s, h_1, ..., h_N))"};

/// The parameters of one cycle.
struct StarCycle {
  layers::LayerNorm norm;
  layers::Heads ring, star;
  void fields(auto&& f) {
    f("norm", norm, "of satellites, before the ring");
    f("ring", ring, "each satellite asks its neighbours, its embedding and the relay");
    f("star", star, "the relay asks all");
  }
};

/// The encoder: satellites on a ring, one for each token, and a relay in the middle that knows them all.
struct FOVEATE_API StarTransformer {
  static constexpr Form form{.card = &star_transformer,
                             .summary = "encoder of tokens that see their neighbours, and all others through one relay",
                             .example = R"(encoder = foveate.nn.StarTransformer(embed_dim=32, num_layers=2, num_heads=4, head_dim=8)
satellites, relay = encoder(torch.randn(2, 50, 32))
assert satellites.shape == (2, 50, 32) and relay.shape == (2, 32))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_layers = 0;
    int64_t num_heads = 0;
    int64_t head_dim = 0;
    double dropout = 0.1;
    optional<int64_t> max_len;
    bool mask_ring = true;
    bool mask_mean = true;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (authors' code: hidden_size)", required);
      f("num_layers", num_layers, "cycles of ring and star, each with weights of its own", required);
      f("num_heads", num_heads, "heads H", required);
      f("head_dim", head_dim, "width d of a head; H d need not be E", required);
      f("dropout", dropout, "probability of dropping an element of the embeddings in training (authors' code: 0.1)");
      f("max_len", max_len, "most tokens of a sequence, each place with a learned embedding that is added; default no such embeddings");
      f("mask_ring", mask_ring, "padding beside a token is as nothing, so that results do not depend on it (authors' code: False)");
      f("mask_mean", mask_mean, "the relay starts as the mean of tokens without padding (authors' code: False)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, dropout_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] embeddings of tokens");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part, False for padding");
      f("dropout_keep", dropout_keep, "bool [B,N,E] the draw of dropout: True where an element is kept; default drawn");
    }
  };
  struct Parameters {
    optional<Tensor> positions;
    std::vector<StarCycle> cycles;
    void fields(auto&& f) {
      f("positions", positions, "[*,E] an embedding of every place, where max_len is given");
      f("cycles", cycles, "ring and star, one after the other");
    }
  };
  struct Outputs {
    Tensor satellites, relay;
    void fields(auto&& f) {
      f("satellites", satellites, "[B,N,E] encoded tokens; zeros for padding");
      f("relay", relay, "[B,E] the relay, which stands for the whole");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
