// Informer: queries that attend to all alike get what all keys hold on average; the u = f ln N that do not attend in full.
// arXiv 2012.07436
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card informer{
    .slug = "informer",
    .title = "Informer (ProbSparse attention)",
    .paper = "2012.07436",
    .year = 2021,
    .family = Family::select,
    .cost = "O(N log N D)",
    .causality = Causality::logits_only,
    .equation = "out_n = softmax(q_n K^T / sqrt(D)) V for the u queries of largest max - mean over sampled keys, else mean(V)"};

enum class InformerActivation { gelu, relu };
template <> inline constexpr auto names<InformerActivation> = std::array<std::string_view, 2>{"gelu", "relu"};

namespace detail {
void informer_layer_fields(auto& o, auto&& f) {
  f("d_model", o.d_model, "width E of the model (authors' code: 512)");
  f("num_heads", o.num_heads, "heads H, must divide d_model (authors' code: 8)");
  f("d_ff", o.d_ff, "inner width of the feed-forward network (authors' code: 2048)");
  f("factor", o.factor, "f: how many queries are active, and how many keys each is measured by (authors' code: 5)");
  f("activation", o.activation, "of the feed-forward network (authors' code: gelu)");
  f("dropout", o.dropout, "probability of dropping what sublayers add, in training (authors' code: 0.05)");
  f("layer_norm_eps", o.layer_norm_eps, "added to the variance (1e-5)");
}

/// A convolution over the rows of x [B,N,C] as a ring: [B,E,N]
Tensor circular(const layers::Convolution& conv, const Tensor& x);
}  // namespace detail

/// The bare function.
struct FOVEATE_API ProbSparseAttention {
  static constexpr Form form{.card = &informer,
                             .summary = "full attention for the queries that need it, a mean or running sum of values for the others",
                             .returns = "",
                             .example = R"(q = k = v = torch.randn(2, 4, 64, 8)
out = foveate.prob_sparse_attention(q, k, v, factor=2)
lazy = out.active_place[0, 0] < 0  # 54 of the 64
assert torch.allclose(out.out[0, 0, lazy], v[0, 0].mean(0).expand(54, 8), atol=1e-5))"};
  struct Options {
    int64_t factor = 5;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      f("factor", factor, "f: min(f ceil(ln N), N) queries are active, each measured by min(f ceil(ln M), M) keys (authors' code: 5)");
      f("causal", causal,
        "active queries see no key after them, the others get the sum of the values so far; which are active depends on the whole sequence");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, index_sample;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part; the others are in no mean and no sum, but may be sampled");
      f("index_sample", index_sample, "int [N,*] the keys that each query is measured by; drawn if absent");
    }
  };
  using Parameters = None;
  struct Outputs {
    Tensor out, active_order, active_place;
    void fields(auto&& f) {
      f("out", out, "[B,H,N,Dv] attended values");
      f("active_order", active_order, "int [B,H,N] the active queries in ascending order, then -1");
      f("active_place", active_place, "int [B,H,N] where a query stands among the active ones, -1 where it is none");
    }
  };
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// Attention, then a network of two 1x1 convolutions, each added and normalised.
struct FOVEATE_API InformerEncoderLayer {
  layers::Heads attention;
  layers::Convolution up, down;  // [d_ff,E,1], [E,d_ff,1]
  layers::LayerNorm norm1, norm2;
  void fields(auto&& f) {
    f("attention", attention, "projections");
    f("up", up, "1x1, to the inner width");
    f("down", down, "1x1, back");
    f("norm1", norm1, "after attention");
    f("norm2", norm2, "after the network");
  }
};

/// What halves the sequence between layers.
struct FOVEATE_API InformerDistilling {
  layers::Convolution conv;  // [E,E,3]
  layers::BatchNorm norm;
  void fields(auto&& f) {
    f("conv", conv, "convolution over three neighbours, circular");
    f("norm", norm, "batch normalisation");
  }
};

struct FOVEATE_API InformerEncoder {
  static constexpr Form form{.card = &informer,
                             .summary = "encoder of ProbSparse layers, the sequence halved between them",
                             .returns = "[B,*,E] encoded sequence, of length N halved after each layer but the last",
                             .example = R"(encoder = foveate.nn.InformerEncoder(d_model=16, num_heads=2, d_ff=32, num_layers=2)
assert encoder(torch.randn(2, 24, 16)).shape == (2, 12, 16))"};
  struct Options {
    int64_t d_model = 512;
    int64_t num_heads = 8;
    int64_t d_ff = 2048;
    int64_t num_layers = 2;
    int64_t factor = 5;
    bool distil = true;
    InformerActivation activation = InformerActivation::gelu;
    double dropout = 0;
    double layer_norm_eps = 1e-5;
    double batch_norm_eps = 1e-5;
    double batch_norm_momentum = 0.1;
    void fields(auto&& f) {
      detail::informer_layer_fields(*this, f);
      f("num_layers", num_layers, "layers (authors' code: 2)");
      f("distil", distil, "the sequence is convolved and halved between layers (authors' code: True)");
      f("batch_norm_eps", batch_norm_eps, "of the distilling layers (1e-5)");
      f("batch_norm_momentum", batch_norm_momentum, "weight of new statistics (0.1)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> index_sample;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] embedded sequence");
      f("index_sample", index_sample,
        "int [*,*,*] for each layer the keys that each query is measured by, [layers,N,U]; -1 for none, rows beyond the layer's length are left out; "
        "drawn if absent");
    }
  };
  struct Parameters {
    std::vector<InformerEncoderLayer> layers;
    std::vector<InformerDistilling> distilling;
    layers::LayerNorm norm;
    void fields(auto&& f) {
      f("layers", layers, "the layers");
      f("distilling", distilling, "what stands between them");
      f("norm", norm, "at the end");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// Several encoders, the i-th on the latest N / 2^i rows; what they put out stands in line.
struct FOVEATE_API InformerStack {
  static constexpr Form form{.card = &informer,
                             .summary = "encoders of fewer and fewer layers on the latest half, quarter, ... of a sequence, their outputs in line",
                             .returns = "[B,*,E] encoded sequences, one after another",
                             .example = R"(stack = foveate.nn.InformerStack(d_model=16, num_heads=2, d_ff=32, num_layers=[3, 2, 1])
assert stack(torch.randn(2, 32, 16)).shape == (2, 24, 16))"};
  struct Options {
    int64_t d_model = 512;
    int64_t num_heads = 8;
    int64_t d_ff = 2048;
    std::vector<int64_t> num_layers = {3, 2, 1};
    int64_t factor = 5;
    bool distil = true;
    InformerActivation activation = InformerActivation::gelu;
    double dropout = 0;
    double layer_norm_eps = 1e-5;
    double batch_norm_eps = 1e-5;
    double batch_norm_momentum = 0.1;
    void fields(auto&& f) {
      detail::informer_layer_fields(*this, f);
      f("num_layers", num_layers, "layers of each encoder (authors' code: 3, 2, 1)");
      f("distil", distil, "the sequence is convolved and halved between layers (authors' code: True)");
      f("batch_norm_eps", batch_norm_eps, "of the distilling layers (1e-5)");
      f("batch_norm_momentum", batch_norm_momentum, "weight of new statistics (0.1)");
    }
    InformerEncoder::Options encoder(std::size_t which) const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> index_sample;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] embedded sequence");
      f("index_sample", index_sample, "int [*,*,*] as InformerEncoder takes it, of the layers of all encoders; drawn if absent");
    }
  };
  struct Parameters {
    std::vector<InformerEncoder::Parameters> encoders;
    void fields(auto&& f) { f("encoders", encoders, "the encoders"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

struct FOVEATE_API InformerDecoderLayer {
  static constexpr Form form{.card = &informer,
                             .summary = "decoder layer: ProbSparse self-attention, full attention to the encoded sequence, network",
                             .returns = "[B,N,E] the sequence, transformed",
                             .example = R"(layer = foveate.nn.InformerDecoderLayer(d_model=16, num_heads=2, d_ff=32)
assert layer(torch.randn(2, 24, 16), torch.randn(2, 12, 16)).shape == (2, 24, 16))"};
  struct Options {
    int64_t d_model = 512;
    int64_t num_heads = 8;
    int64_t d_ff = 2048;
    int64_t factor = 5;
    bool mix = true;
    InformerActivation activation = InformerActivation::gelu;
    double dropout = 0;
    double layer_norm_eps = 1e-5;
    void fields(auto&& f) {
      detail::informer_layer_fields(*this, f);
      f("mix", mix, "the heads' rows are joined as they lie in memory, which scrambles heads and time, as the released models do (True)");
    }
  };
  struct Inputs {
    Tensor x, cross;
    optional<Tensor> index_sample;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence to be predicted, embedded");
      f("cross", cross, "[B,M,E] encoded sequence");
      f("index_sample", index_sample, "int [N,*] the keys that each query is measured by; drawn if absent");
    }
  };
  struct Parameters {
    layers::Heads self_attention, cross_attention;
    layers::Convolution up, down;
    layers::LayerNorm norm1, norm2, norm3;
    void fields(auto&& f) {
      f("self_attention", self_attention, "projections");
      f("cross_attention", cross_attention, "projections");
      f("up", up, "1x1, to the inner width");
      f("down", down, "1x1, back");
      f("norm1", norm1, "after self-attention");
      f("norm2", norm2, "after attention to the encoded sequence");
      f("norm3", norm3, "after the network");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
