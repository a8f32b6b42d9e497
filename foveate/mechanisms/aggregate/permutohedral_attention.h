// Permutohedral attention: out_i ~ sum_j exp(-|f_i - f_j|^2 / 2) v_j, f and v learned maps, by splat, blur and slice on a lattice.   arXiv 1907.00641
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>

namespace foveate {

inline constexpr Card permutohedral_attention{.slug = "permutohedral-attention",
                                              .title = "Permutohedral attention module",
                                              .paper = "1907.00641",
                                              .year = 2019,
                                              .family = Family::aggregate,
                                              .cost = "O(N D^2)",
                                              .causality = Causality::none,
                                              .equation = "out_i ~ sum_j exp(-|f_i - f_j|^2 / 2) v_j"};

/// By what the filter is divided.
enum class LatticeNormalize { none, row, symmetric };
template <> inline constexpr auto names<LatticeNormalize> = std::array<std::string_view, 3>{"none", "row", "symmetric"};

namespace detail {
/// The options that function and block share.
void lattice_fields(auto&& f, auto& o) {
  f("normalize", o.normalize,
    "none: the sum itself (paper); row: divided by the filter n of ones, as a softmax would be; symmetric: n^(-1/2) filter(n^(-1/2) v)");
  f("share_lattice", o.share_lattice,
    "all samples of a batch touch one set of vertices, so that a sample's result depends a little on the others (authors' code: yes)");
}
}  // namespace detail

/// The bare function: features and values are given.
struct FOVEATE_API LatticeFilter {
  static constexpr Form form{.card = &permutohedral_attention,
                             .summary = "Gaussian sum over points by their features, on the permutohedral lattice",
                             .returns = "[B,H,N,Dv] filtered values",
                             .example = R"(features, values = torch.randn(1, 2, 500, 3), torch.randn(1, 2, 500, 8)
out = foveate.lattice_filter(features, values, normalize="row")
weights = torch.softmax(-0.5 * torch.cdist(features, features).square(), -1)  # what it approximates
assert (out - weights @ values).norm() < 0.2 * (weights @ values).norm())"};
  struct Options {
    LatticeNormalize normalize = LatticeNormalize::none;
    bool share_lattice = false;
    void fields(auto&& f) { detail::lattice_fields(f, *this); }
  };
  struct Inputs {
    Tensor features, values;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("features", features, "[B,H,N,D] where the points lie, in units of the Gaussian's deviation; D at most 16");
      f("values", values, "[B,H,N,Dv] what is summed");
      f("key_mask", key_mask, "bool [B,N] True where a point takes part; the others are not seen, and get zeros");
    }
  };
  using Parameters = None;
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The lattice itself, for a look at it.
struct FOVEATE_API PermutohedralSimplex {
  static constexpr Form form{.card = &permutohedral_attention,
                             .summary = "the simplex of the permutohedral lattice that each point lies in",
                             .example = R"(barycentric, vertices, rank = foveate.permutohedral_simplex(torch.randn(1, 2, 7, 3))
assert torch.allclose(barycentric.sum(-1), torch.ones(1, 2, 7)) and vertices.shape == (1, 2, 7, 4, 3))"};
  using Options = None;
  struct Inputs {
    Tensor features;
    void fields(auto&& f) { f("features", features, "[B,H,N,D] where the points lie; D at most 16"); }
  };
  struct Outputs {
    Tensor barycentric, vertices, rank;
    void fields(auto&& f) {
      f("barycentric", barycentric, "[B,H,N,*] weight of each of the D + 1 vertices");
      f("vertices", vertices, "int [B,H,N,*,D] their coordinates; the last one, D + 1 in all, follows, since the sum is 0");
      f("rank", rank, "int [B,H,N,*] place of each of the D + 1 coordinates among those of the point, 0 the largest");
    }
  };
  using Parameters = None;
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// The module as it is put into a network for maps: features of content and place, values, one lattice for each split.
struct FOVEATE_API PermutohedralAttention {
  static constexpr Form form{.card = &permutohedral_attention,
                             .summary = "permutohedral attention module for maps of one to three dimensions",
                             .returns = "[...] map with n_split out_features channels",
                             .example = R"(block = foveate.nn.PermutohedralAttention(in_features=8, filter_features=3, out_features=4, dimension=2)
out = block(torch.randn(2, 8, 12, 13))
assert out.shape == (2, 8, 12, 13))"};
  struct Options {
    int64_t in_features = 0;
    optional<int64_t> filter_features, out_features;
    int64_t n_split = 2;
    int64_t dimension = 3;
    LatticeNormalize normalize = LatticeNormalize::none;
    bool share_lattice = false;
    void fields(auto&& f) {
      f("in_features", in_features, "channels C of the map", required);
      f("filter_features", filter_features, "features D of a point, 16 at most (paper's networks: C/2), default C/2 up to 16");
      f("out_features", out_features, "channels of the values of each split (paper's networks: C/2)");
      f("n_split", n_split, "splits, each with features, values and a lattice of its own (paper's networks: 2)");
      f("dimension", dimension, "spatial dimensions of the map: 1, 2 or 3");
      detail::lattice_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    void fields(auto&& f) { f("x", x, "[...] map [B,C,*S]"); }
  };
  struct Parameters {
    layers::Convolution features, values;
    Tensor spatial_scale;
    void fields(auto&& f) {
      f("features", features, "1x1 map of the channels and the coordinates to the features of all splits, leaky ReLU behind it");
      f("values", values, "1x1 map to the values of all splits");
      f("spatial_scale", spatial_scale, "[*] multiplies the coordinate along each dimension");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
