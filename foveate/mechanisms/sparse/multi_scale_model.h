// The multi-scale Transformers: coarse to fine (top-down), fine to coarse (bottom-up), and a stack of retina layers.   arXiv 2005.00581
//
// A slot of scale k is the mean of s_k positions, or a convolution of them. What comes back from a coarser scale is the last slot that
// is complete, a zero vector before there is one, so that nothing looks ahead. A last slot that is not full is computed and never used.
#pragma once
#include <foveate/convolution.h>
#include <foveate/multi_scale.h>

namespace foveate {

/// How positions become a slot.
enum class MultiScaleAggregation { mean, conv };
template <> inline constexpr auto names<MultiScaleAggregation> = std::array<std::string_view, 2>{"mean", "conv"};

/// The options that the models share.
void multi_scale_fields(auto& o, auto&& f) {
  f("embed_dim", o.embed_dim, "width E");
  f("num_heads", o.num_heads, "heads H, a divisor of E");
  f("ff_dim", o.ff_dim, "inner width of the feed-forward networks, default 4 E");
}

/// One scale of a model: its layers, and the ways to it from the finer scale and from the coarser one.
struct FOVEATE_API MultiScaleStage {
  std::vector<MultiScaleLayer> layers;
  optional<layers::Convolution> pool;
  optional<layers::Linear> up;
  void fields(auto&& f) {
    f("layers", layers, "the layers of this scale");
    f("pool", pool, "the convolution that makes its slots, where aggregation is conv");
    f("up", up, "what is taken from a coarser scale");
  }
};

struct MultiScaleInputs {
  Tensor x;
  void fields(auto&& f) { f("x", x, "[B,N,E] sequence, positions added"); }
};

/// What a stream of a model keeps.
struct MultiScaleState {
  std::vector<Tensor> kept;
  void fields(auto&& f) { f("kept", kept, "in the order of the forward pass: rows not yet pooled, last slots, keys and values"); }
};

/// h_k = layers_k(pool_k(x) + up_k(upsample(h_{k+1}))), from the coarsest scale to the finest.
struct FOVEATE_API MultiScaleTopDown {
  static constexpr Form form{.card = &multi_scale,
                             .summary = "model from coarse to fine: each scale adds the last complete slot of the next coarser one",
                             .returns = "[B,N,E] sequence",
                             .example = R"(model = foveate.nn.MultiScaleTopDown(embed_dim=32, num_heads=4, scales=[1, 4, 16], layers=[1, 2, 2])
x = torch.randn(2, 50, 32)
(first, state), full = model.step(x[:, :30]), model(x)
rest, state = model.step(x[:, 30:], state=state)
assert torch.allclose(torch.cat([first, rest], 1), full, atol=1e-4))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    optional<int64_t> ff_dim;
    std::vector<int64_t> scales = {1, 4, 16};
    std::vector<int64_t> layers;
    MultiScaleAggregation aggregation = MultiScaleAggregation::mean;
    void fields(auto&& f) {
      multi_scale_fields(*this, f);
      f("scales", scales, "s_0 = 1 < s_1 < ..., each divides the next: positions of a slot (ours: 1, 4, 16)");
      f("layers", layers, "layers of each scale, the finest first", required);
      f("aggregation", aggregation, "how s_k positions of x become a slot: their mean, or a convolution");
    }
  };
  using Inputs = MultiScaleInputs;
  struct Parameters {
    std::vector<MultiScaleStage> scales;
    layers::LayerNorm norm;
    void fields(auto&& f) {
      f("scales", scales, "the scales, the finest first; each but the coarsest has `up`, each but the finest may have `pool`");
      f("norm", norm, "of the result");
    }
  };
  using State = MultiScaleState;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// h_0 = local layers(x), h_k = layers_k(pool_k(h_{k-1})); y = local layers(h_0 + sum of up_k(upsample(h_k))).
struct FOVEATE_API MultiScaleBottomUp {
  static constexpr Form form{.card = &multi_scale,
                             .summary = "model from fine to coarse: local layers, slots of slots, and all of them added up",
                             .returns = "[B,N,E] sequence",
                             .example = R"(options = {"scales": [1, 4, 16], "layers": [2, 1, 1], "local_window": 16}
model = foveate.nn.MultiScaleBottomUp(embed_dim=32, num_heads=4, **options)
assert model(torch.randn(2, 50, 32)).shape == (2, 50, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    optional<int64_t> ff_dim;
    std::vector<int64_t> scales = {1, 4, 16};
    std::vector<int64_t> layers;
    MultiScaleAggregation aggregation = MultiScaleAggregation::mean;
    int64_t local_window = 64;
    int64_t top_layers = 1;
    void fields(auto&& f) {
      multi_scale_fields(*this, f);
      f("scales", scales, "s_0 = 1 < s_1 < ..., each divides the next: positions of a slot (ours: 1, 4, 16)");
      f("layers", layers, "layers of each scale, the finest first", required);
      f("aggregation", aggregation, "how s_k / s_{k-1} slots become one: their mean, or a convolution");
      f("local_window", local_window, "positions of a block, inside which the layers at the finest scale attend");
      f("top_layers", top_layers, "local layers on the sum of all scales");
    }
  };
  using Inputs = MultiScaleInputs;
  struct Parameters {
    std::vector<MultiScaleStage> scales;
    std::vector<MultiScaleLayer> top;
    layers::LayerNorm norm;
    void fields(auto&& f) {
      f("scales", scales, "the scales, the finest first; each but the finest has `up` and may have `pool`");
      f("top", top, "the layers on the sum");
      f("norm", norm, "of the result");
    }
  };
  using State = MultiScaleState;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// Layers with retina attention.
struct FOVEATE_API MultiScaleRetina {
  static constexpr Form form{
      .card = &multi_scale,
      .summary = "stack of layers with retina attention",
      .returns = "[B,N,E] sequence",
      .example = R"(model = foveate.nn.MultiScaleRetina(embed_dim=32, num_heads=4, num_layers=2, scales=[1, 4, 16], windows=[2, 2])
assert model(torch.randn(2, 50, 32)).shape == (2, 50, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    optional<int64_t> ff_dim;
    int64_t num_layers = 6;
    std::vector<int64_t> scales = {1, 4, 16};
    std::vector<int64_t> windows = {4, 4};
    bool log_count = false;
    void fields(auto&& f) {
      multi_scale_fields(*this, f);
      f("num_layers", num_layers, "layers");
      retina_fields(*this, f);
    }
  };
  using Inputs = MultiScaleInputs;
  struct Parameters {
    std::vector<MultiScaleLayer> layers;
    layers::LayerNorm norm;
    void fields(auto&& f) {
      f("layers", layers, "the layers");
      f("norm", norm, "of the result");
    }
  };
  using State = MultiScaleState;
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
