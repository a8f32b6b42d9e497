// Axial attention: out = Wo softmax(q k^T / sqrt(D)) v among positions that share all coordinates but one, axis after axis or summed.
// arXiv 1912.12180
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card axial{.slug = "axial",
                            .title = "Axial attention",
                            .paper = "1912.12180",
                            .year = 2019,
                            .family = Family::vision,
                            .cost = "O(N (H + W) D)",
                            .causality = Causality::strict,
                            .equation = "out_a = softmax(q k^T / sqrt(D)) v along axis a; sum_a or a after a"};

/// Attention along one axis of a map; all other axes are a batch.
struct FOVEATE_API AxisAttention {
  static constexpr Form form{.card = &axial,
                             .summary = "attention along one axis of a map, on given q, k, v",
                             .returns = "[...] map [B,*S,H,Dv] of attended values",
                             .example = R"(q = k = v = torch.randn(2, 5, 4, 3, 8)  # 5 by 4 positions, 3 heads
out = foveate.axis_attention(q, k, v, axis=2, causal=True)
assert torch.allclose(out[:, :, 0], v[:, :, 0]))"};
  struct Options {
    int64_t axis = 1;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      f("axis", axis, "the axis of the tensor along which positions attend to each other: 1 is the first after the batch");
      f("causal", causal, "each position sees itself and what is before it on the axis; the last query stands at the last key");
      f("scale", scale, "multiplies q.k (paper: 1/sqrt(D))");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[...] queries, a map [B,*S,H,D] of one to three axes S");
      f("k", k, "[...] keys [B,*S,H,D]; S may differ along `axis`");
      f("v", v, "[...] values [B,*S,H,Dv]");
      f("key_mask", key_mask, "bool [...] map [B,*S] of the keys, True where one takes part");
    }
  };
  using Parameters = None;
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// A multi-head attention for each axis.
struct FOVEATE_API AxialAttention {
  static constexpr Form form{.card = &axial,
                             .summary = "multi-head attention along every axis of a map, summed or one after another",
                             .returns = "[...] map of the shape of x",
                             .example = R"(layer = foveate.nn.AxialAttention(dim=8, num_heads=2, dim_index=1)
assert layer(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t dim = 0;
    int64_t num_dimensions = 2;
    int64_t num_heads = 8;
    optional<int64_t> head_dim;
    int64_t dim_index = -1;
    bool sum_axial_out = true;
    void fields(auto&& f) {
      f("dim", dim, "channels C of the map", required);
      f("num_dimensions", num_dimensions, "axes of the map besides channels: 1, 2 or 3");
      f("num_heads", num_heads, "heads H; must divide dim (8)");
      f("head_dim", head_dim, "width D of a head; default dim / num_heads");
      f("dim_index", dim_index, "which axis of x holds the channels: -1 the last, 1 the one after the batch");
      f("sum_axial_out", sum_axial_out, "the axes' answers to x are added; False: each axis attends to what the one before put out");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[...] map, channels at dim_index");
      f("key_mask", key_mask, "bool [...] map [B,*S], True where a position takes part as key");
    }
  };
  struct Parameters {
    std::vector<layers::Heads> axes;
    void fields(auto&& f) { f("axes", axes, "projections for each axis"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Attention along one axis behind a normalisation over channels.
struct FOVEATE_API AxialStep {
  layers::LayerNorm norm;
  layers::Heads heads;
  void fields(auto&& f) {
    f("norm", norm, "layer normalisation over channels");
    f("heads", heads, "projections");
  }
};

/// Two convolutions behind a normalisation over channels.
struct FOVEATE_API AxialConvolutions {
  Tensor gain, shift;  // [1,C,1,1]
  layers::Convolution up, down;
  void fields(auto&& f) {
    f("gain", gain, "[1,*,1,1] of the normalisation over channels, initially 1");
    f("shift", shift, "[1,*,1,1] of the normalisation over channels, initially 0");
    f("up", up, "3x3, C to 4C");
    f("down", down, "3x3, back");
  }
};

/// A pair of functions f, g of the stack: of attention, down and across the map, or of convolutions.
struct FOVEATE_API AxialPair {
  optional<AxialStep> down, across;
  optional<AxialConvolutions> first, second;
  void fields(auto&& f) {
    f("down", down, "attention along the first axis, in even pairs");
    f("across", across, "attention along the second axis, in even pairs");
    f("first", first, "convolutions, in odd pairs");
    f("second", second, "convolutions, in odd pairs");
  }
};

struct FOVEATE_API AxialImageTransformer {
  static constexpr Form form{.card = &axial,
                             .summary = "stack of axial attention and convolutions for maps, reversible or residual",
                             .returns = "[B,*,*,*] map of the shape of x",
                             .example = R"(stack = foveate.nn.AxialImageTransformer(dim=8, depth=2, num_heads=2, axial_pos_emb_shape=[6, 7])
assert stack(torch.randn(2, 8, 6, 7)).shape == (2, 8, 6, 7))"};
  struct Options {
    int64_t dim = 0;
    int64_t depth = 1;
    int64_t num_heads = 8;
    optional<int64_t> head_dim;
    int64_t dim_index = 1;
    bool reversible = true;
    std::vector<int64_t> axial_pos_emb_shape = {};
    void fields(auto&& f) {
      f("dim", dim, "channels C of the map", required);
      f("depth", depth, "layers: a pair of attentions and a pair of convolutions each", required);
      f("num_heads", num_heads, "heads H; must divide dim (8)");
      f("head_dim", head_dim, "width D of a head; default dim / num_heads");
      f("dim_index", dim_index, "which axis of x holds the channels: 1 the one after the batch, -1 the last");
      f("reversible", reversible, "two streams, a += f(b), b += g(a), and their mean; False: x += f(x), x += g(x)");
      f("axial_pos_emb_shape", axial_pos_emb_shape, "height and width of a map of learned positions, added first; empty for none");
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[B,*,*,*] map, channels at dim_index"); }
  };
  struct Parameters {
    optional<Tensor> rows, columns;
    std::vector<AxialPair> pairs;
    void fields(auto&& f) {
      f("rows", rows, "[1,*,*,1] positions along the first axis");
      f("columns", columns, "[1,*,1,*] positions along the second axis");
      f("pairs", pairs, "pairs of functions, attention and convolutions in turn");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

namespace detail {
/// q [B,*S,H,D], k and v alike, their length along `axis` may differ -> [B,*S,H,Dv] as q. No copy is made of any: what is before the axis is
/// a batch, what is behind it are heads.
FOVEATE_API Tensor attend_along(int64_t axis, const Tensor& q, const Tensor& k, const Tensor& v, bool causal, const optional<double>& scale = {},
                                const optional<Tensor>& key_mask = {});
}  // namespace detail

}  // namespace foveate
