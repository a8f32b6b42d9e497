// The autoregressive axial image model: what is above comes through outer layers, what is left in the row through inner ones;
// logits[y,x] depend on the rows before y and on the pixels left of x.   arXiv 1912.12180
#pragma once
#include <foveate/axial.h>
#include <foveate/feed_forward.h>

namespace foveate {

/// x + attention(norm(x)) along one axis, then + mlp(norm(x)).
struct FOVEATE_API AxialBlock {
  layers::LayerNorm norm_attention;
  layers::Heads heads;
  layers::LayerNorm norm_mlp;
  layers::FeedForward mlp;
  void fields(auto&& f) {
    f("norm_attention", norm_attention, "before attention");
    f("heads", heads, "projections");
    f("norm_mlp", norm_mlp, "before the feed-forward network");
    f("mlp", mlp, "feed-forward network");
  }
};

namespace detail {
/// The options that every form of the image model has.
void axial_model_fields(auto& o, auto&& f) {
  f("height", o.height, "rows of the image; positions are learned for each", required);
  f("width", o.width, "columns of the image", required);
  f("num_embs", o.num_embs, "values K of a pixel (authors' code: 256)");
  f("embed_dim", o.embed_dim, "width E of the model (authors' code on ImageNet 32: 1536)");
  f("num_heads", o.num_heads, "heads, must divide embed_dim (authors' code on ImageNet 32: 16)");
  f("hdim_factor", o.hdim_factor, "inner width of the feed-forward networks over embed_dim (authors' code: 1)");
  f("num_outer_layers", o.num_outer_layers, "row and column blocks above, even (authors' code: 8)");
  f("num_inner_layers", o.num_inner_layers, "row blocks within the row (authors' code: 8)");
  f("ln_eps", o.ln_eps, "added to the variance (authors' code: 1e-5)");
  f("dropout", o.dropout, "of what each branch adds, in training (authors' code: 0.04)");
  f("emb_init_scale", o.emb_init_scale, "initial embeddings are normal with this over sqrt(E) (authors' code: 5)");
}
/// What forms of several channels have besides.
void axial_channel_fields(auto& o, auto&& f) {
  f("channels", o.channels, "channels S of the image (3)");
  f("num_exterior_layers", o.num_exterior_layers, "row and column blocks over the channels before, even (authors' code: 8)");
}
/// What forms that draw have besides.
void axial_draw_fields(auto& o, auto&& f) {
  f("known", o.known, "how many pixels, row after row, are taken from ids; the others are drawn");
  f("temperature", o.temperature, "multiplies the noise: 0 takes the likeliest value");
}
}  // namespace detail

struct FOVEATE_API AxialTransformer {
  static constexpr Form form{
      .card = &axial,
      .summary = "autoregressive image model of one channel: logits of every pixel",
      .returns = "",
      .example =
          R"(model = foveate.nn.AxialTransformer(height=4, width=5, num_embs=9, embed_dim=8, num_heads=2, num_outer_layers=2, num_inner_layers=1)
ids = torch.randint(8, (2, 4, 5))
out = model(ids)
assert out.logits.shape == (2, 4, 5, 9) and out.upper_context.shape == (2, 4, 5, 8))"};
  struct Options {
    int64_t height = 0, width = 0;
    int64_t num_embs = 256;
    int64_t embed_dim = 1536;
    int64_t num_heads = 16;
    int64_t hdim_factor = 1;
    int64_t num_outer_layers = 8;
    int64_t num_inner_layers = 8;
    double ln_eps = 1e-5;
    double dropout = 0;
    double emb_init_scale = 5;
    void fields(auto&& f) { detail::axial_model_fields(*this, f); }
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> condition;
    void fields(auto&& f) {
      f("ids", ids, "int [B,H,W] values of the pixels, 0 to K - 1");
      f("condition", condition, "[B,H,W,E] what else the image depends on, added to the positions");
    }
  };
  struct Parameters {
    Tensor embedding, rows, columns;
    std::vector<AxialBlock> outer_rows, outer_columns, inner_rows;
    layers::LayerNorm final_norm;
    layers::Linear head;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,*] a vector for each value of a pixel");
      f("rows", rows, "[*,*] positions of rows");
      f("columns", columns, "[*,*] positions of columns");
      f("outer_rows", outer_rows, "blocks along rows, of the rows above");
      f("outer_columns", outer_columns, "blocks down columns, of the rows above");
      f("inner_rows", inner_rows, "blocks along the row, causal");
      f("final_norm", final_norm, "before the head");
      f("head", head, "to logits");
    }
  };
  struct Outputs {
    Tensor logits, upper_context;
    void fields(auto&& f) {
      f("logits", logits, "[B,H,W,K] logits");
      f("upper_context", upper_context, "[B,H,W,E] what each pixel knows of the rows above");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// Pixel after pixel: the outer layers see each row once, the inner ones each pixel; both keep their keys and values.
struct FOVEATE_API AxialSampler {
  static constexpr Form form{
      .card = &axial,
      .summary = "draws images, or the rest of images, from an AxialTransformer of the same weights",
      .returns = "",
      .example = R"(size = dict(height=3, width=4, num_embs=9, embed_dim=8, num_heads=2, num_outer_layers=2, num_inner_layers=1)
model, sampler = foveate.nn.AxialTransformer(**size), foveate.nn.AxialSampler(**size)
sampler.load_state_dict(model.state_dict())
drawn = sampler(torch.zeros(2, 3, 4, dtype=torch.int64))  # two images; nothing of these ids is kept
assert torch.allclose(drawn.logits, model(drawn.ids).logits, atol=1e-4))"};
  struct Options {
    int64_t height = 0, width = 0;
    int64_t num_embs = 256;
    int64_t embed_dim = 1536;
    int64_t num_heads = 16;
    int64_t hdim_factor = 1;
    int64_t num_outer_layers = 8;
    int64_t num_inner_layers = 8;
    double ln_eps = 1e-5;
    double dropout = 0;
    double emb_init_scale = 5;
    int64_t known = 0;
    double temperature = 1;
    void fields(auto&& f) {
      detail::axial_model_fields(*this, f);
      detail::axial_draw_fields(*this, f);
    }
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> condition, noise;
    void fields(auto&& f) {
      f("ids", ids, "int [B,H,W] images of which the first `known` pixels are kept");
      f("condition", condition, "[B,H,W,E] what else the image depends on, added to the positions");
      f("noise", noise, "[B,H,W,K] Gumbel noise of the draws, -log(-log(u)) of u uniform in (0,1); drawn if absent");
    }
  };
  using Parameters = AxialTransformer::Parameters;
  struct Outputs {
    Tensor logits, ids;
    void fields(auto&& f) {
      f("logits", logits, "[B,H,W,K] logits of every pixel, without noise");
      f("ids", ids, "int [B,H,W] values of the pixels");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// An image of S channels, one after another: what channels before the present one show is its condition.
struct FOVEATE_API AxialTransformer3d {
  static constexpr Form form{.card = &axial,
                             .summary = "autoregressive image model of several channels",
                             .returns = "[B,H,W,S,K] logits",
                             .example = R"(model = foveate.nn.AxialTransformer3d(
    height=3, width=4, embed_dim=8, num_heads=2, num_exterior_layers=2, num_outer_layers=2, num_inner_layers=1)
assert model(torch.randint(256, (2, 3, 4, 3))).shape == (2, 3, 4, 3, 256))"};
  struct Options {
    int64_t height = 0, width = 0;
    int64_t num_embs = 256;
    int64_t embed_dim = 1536;
    int64_t num_heads = 16;
    int64_t hdim_factor = 1;
    int64_t num_outer_layers = 8;
    int64_t num_inner_layers = 8;
    double ln_eps = 1e-5;
    double dropout = 0;
    double emb_init_scale = 5;
    int64_t channels = 3;
    int64_t num_exterior_layers = 8;
    optional<int64_t> channel;
    void fields(auto&& f) {
      detail::axial_model_fields(*this, f);
      detail::axial_channel_fields(*this, f);
      f("channel", channel, "the only channel whose logits are computed, as the authors train; default all");
    }
    AxialTransformer::Options image() const;
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> condition;
    void fields(auto&& f) {
      f("ids", ids, "int [B,H,W,S] values of the pixels, 0 to 255 where K is 256");
      f("condition", condition, "[B,H,W,E] what else the image depends on");
    }
  };
  struct Parameters {
    layers::Convolution exterior_input;
    Tensor rows, columns;
    std::vector<AxialBlock> exterior_rows, exterior_columns;
    AxialTransformer::Parameters image;
    void fields(auto&& f) {
      f("exterior_input", exterior_input, "3x3, from the channels before and the number of the present one");
      f("rows", rows, "[*,*] positions of rows, of the exterior layers");
      f("columns", columns, "[*,*] positions of columns");
      f("exterior_rows", exterior_rows, "blocks along rows");
      f("exterior_columns", exterior_columns, "blocks down columns");
      f("image", image, "the model of one channel");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// The channels of an image drawn one after another, each pixel after pixel.
struct FOVEATE_API AxialSampler3d {
  static constexpr Form form{
      .card = &axial,
      .summary = "draws images of several channels from an AxialTransformer3d of the same weights",
      .returns = "",
      .example = R"(size = dict(height=2, width=3, embed_dim=8, num_heads=2, num_exterior_layers=2, num_outer_layers=2, num_inner_layers=1)
sampler = foveate.nn.AxialSampler3d(**size)
assert sampler(torch.zeros(1, 2, 3, 3, dtype=torch.int64)).ids.shape == (1, 2, 3, 3))"};
  struct Options {
    int64_t height = 0, width = 0;
    int64_t num_embs = 256;
    int64_t embed_dim = 1536;
    int64_t num_heads = 16;
    int64_t hdim_factor = 1;
    int64_t num_outer_layers = 8;
    int64_t num_inner_layers = 8;
    double ln_eps = 1e-5;
    double dropout = 0;
    double emb_init_scale = 5;
    int64_t channels = 3;
    int64_t num_exterior_layers = 8;
    int64_t known = 0;
    double temperature = 1;
    void fields(auto&& f) {
      detail::axial_model_fields(*this, f);
      detail::axial_channel_fields(*this, f);
      detail::axial_draw_fields(*this, f);
    }
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> condition, noise;
    void fields(auto&& f) {
      f("ids", ids, "int [B,H,W,S] images of which the first `known` pixels of each channel are kept");
      f("condition", condition, "[B,H,W,E] what else the image depends on");
      f("noise", noise, "[B,H,W,S,K] Gumbel noise of the draws; drawn if absent");
    }
  };
  using Parameters = AxialTransformer3d::Parameters;
  struct Outputs {
    Tensor logits, ids;
    void fields(auto&& f) {
      f("logits", logits, "[B,H,W,S,K] logits of every pixel, without noise");
      f("ids", ids, "int [B,H,W,S] values of the pixels");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
