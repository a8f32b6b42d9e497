// The Set Transformer as a model: ISABs encode a set, seeds pool it, SABs let the pooled elements attend to each other.   arXiv 1810.00825
#pragma once
#include <foveate/set_transformer.h>

namespace foveate {

struct FOVEATE_API SetTransformer {
  static constexpr Form form{.card = &set_transformer,
                             .summary = "model from sets to a few outputs",
                             .returns = "[B,K,out_dim] of each seed",
                             .example = R"(model = foveate.nn.SetTransformer(in_dim=2, out_dim=5, dim=32, num_inducing=8)
x = torch.randn(3, 50, 2)
assert model(x).shape == (3, 1, 5) and torch.allclose(model(x), model(x.flip(1)), atol=1e-5))"};
  struct Options {
    int64_t in_dim = 2;
    int64_t out_dim = 1;
    int64_t dim = 128;
    int64_t num_seeds = 1;
    int64_t num_inducing = 32;
    int64_t encoder_depth = 2;
    int64_t decoder_depth = 2;
    int64_t num_heads = 4;
    bool layer_norm = false;
    bool scale_per_head = false;
    double eps = 1e-5;
    void fields(auto&& f) {
      f("in_dim", in_dim, "width of the elements");
      f("out_dim", out_dim, "width of an output");
      f("dim", dim, "width inside (authors' code: 128)");
      f("num_seeds", num_seeds, "number of outputs K");
      f("num_inducing", num_inducing, "inducing points m (authors' code: 32)");
      f("encoder_depth", encoder_depth, "ISABs before the pooling (authors' code: 2)");
      f("decoder_depth", decoder_depth, "SABs after it (authors' code: 2)");
      detail::set_transformer_fields(f, *this);
    }
  };
  using Inputs = SAB::Inputs;
  struct Parameters {
    std::vector<ISAB::Parameters> encoder;
    PMA::Parameters pooling;
    std::vector<SetAttention> decoder;
    layers::Linear out;
    void fields(auto&& f) {
      f("encoder", encoder, "the set attends to itself");
      f("pooling", pooling, "seeds ask the set");
      f("decoder", decoder, "the pooled elements attend to each other");
      f("out", out, "to the width of the outputs");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
