// Nystromformer: attention through m landmarks, out = softmax(q k~^T) Z softmax(q~ k^T) v, Z ~ pinv(softmax(q~ k~^T)).   arXiv 2102.03902
#pragma once
#include <foveate/contract.h>
#include <foveate/convolution.h>
#include <foveate/linear.h>
#include <foveate/segment_mean.h>

namespace foveate {

inline constexpr Card nystromformer{.slug = "nystromformer",
                                    .title = "Nystromformer",
                                    .paper = "2102.03902",
                                    .year = 2021,
                                    .family = Family::lowrank,
                                    .cost = "O(N m D + m^3)",
                                    .causality = Causality::none,
                                    .equation = "out = softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T) v, q~ and k~ means of m segments"};

/// By what the first guess of the inverse, A^T / c, is divided.
enum class InverseInit { exact, original, global_both };
template <> inline constexpr auto names<InverseInit> = std::array<std::string_view, 3>{"exact", "original", "global_both"};

/// What a mask reaches.
enum class NystromMask { zeroed, keys, counted };
template <> inline constexpr auto names<NystromMask> = std::array<std::string_view, 3>{"zeroed", "keys", "counted"};

namespace detail {
/// The options that both forms have.
void nystrom_fields(auto&& f, auto& o) {
  f("num_landmarks", o.num_landmarks, "landmarks m (LRA, HF: 64; lucidrains: 256)");
  f("pinv_iterations", o.pinv_iterations, "steps of the iterative inverse; a trained model depends on their number (paper: 6)");
  f("inverse_init", o.inverse_init,
    "the first guess of the inverse is A^T / c, c the largest column sum of: exact, each matrix by itself (T2T); original, all matrices of the "
    "batch, whose items then depend on each other (LRA, HF); global_both, that times the largest row sum (lucidrains)");
  f("segments", o.segments,
    "uneven: the last N mod m segments hold one token more; left_padded: zeros before the first token make all even, and count (lucidrains)");
  f("exact_when_short", o.exact_when_short,
    "plain attention where there are no more tokens than landmarks (paper's code, HF: yes; lucidrains, T2T: no)");
  f("masking", o.masking,
    "zeroed: hidden tokens are zeros in landmarks, and no keys (paper's code); keys: no keys, but they count in landmarks (HF); counted: "
    "landmarks are means over the others only, and landmarks without any take no part as keys (lucidrains)");
  f("conv_kernel_size", o.conv_kernel_size, "odd width of a depthwise convolution of values that is added, 0 none (HF: 65; lucidrains: 33; LRA: 35)");
  f("scale", o.scale, "multiplies q.k, default 1/sqrt(D)");
}
}  // namespace detail

/// The bare function: given queries, keys and values.
struct FOVEATE_API NystromAttention {
  static constexpr Form form{.card = &nystromformer,
                             .summary = "attention of q to k and v through landmarks",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 100, 16)
out = foveate.nn.NystromAttention(num_landmarks=10)(q, k, v)
assert out.shape == (2, 4, 100, 16))"};
  struct Options {
    int64_t num_landmarks = 64;
    int64_t pinv_iterations = 6;
    InverseInit inverse_init = InverseInit::exact;
    ops::Segments segments = ops::Segments::uneven;
    bool exact_when_short = true;
    NystromMask masking = NystromMask::zeroed;
    int64_t conv_kernel_size = 0;
    optional<double> scale;
    int64_t num_heads = 8;
    void fields(auto&& f) {
      detail::nystrom_fields(f, *this);
      f("num_heads", num_heads, "heads H, each with a filter of its own; only for the convolution's initial values");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, query_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
      f("query_mask", query_mask, "bool [B,N] True where a query counts; the others attend to nothing, and add nothing to landmarks");
    }
  };
  struct Parameters {
    optional<layers::Convolution> conv;
    void fields(auto&& f) { f("conv", conv, "one filter [H,1,K,1] for each head, shared by its features"); }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer: projections, heads, landmarks, output projection.
struct FOVEATE_API Nystromformer {
  static constexpr Form form{.card = &nystromformer,
                             .summary = "multi-head self-attention through landmarks",
                             .returns = "[B,N,Eo] attended sequence",
                             .example = R"(layer = foveate.nn.Nystromformer(embed_dim=32, num_heads=4, num_landmarks=10, conv_kernel_size=9)
out = layer(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    optional<int64_t> head_dim;
    int64_t num_landmarks = 64;
    int64_t pinv_iterations = 6;
    InverseInit inverse_init = InverseInit::exact;
    ops::Segments segments = ops::Segments::uneven;
    bool exact_when_short = true;
    NystromMask masking = NystromMask::zeroed;
    int64_t conv_kernel_size = 0;
    optional<double> scale;
    bool bias = true;
    bool out_projection = true;
    bool value_residual = false;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H");
      f("head_dim", head_dim, "width D of a head, default E/H");
      detail::nystrom_fields(f, *this);
      f("bias", bias, "whether query, key and value projections have biases (LRA, HF: yes; lucidrains, T2T: no); the output projection has one");
      f("out_projection", out_projection, "whether heads are projected back to E (HF leaves that to the block around the layer)");
      f("value_residual", value_residual, "the result keeps the heads' width H D and is values + projected heads (T2T)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part");
    }
  };
  struct Parameters {
    layers::Linear query, key, value;
    optional<layers::Linear> out;
    optional<layers::Convolution> conv;
    void fields(auto&& f) {
      f("query", query, "query projection");
      f("key", key, "key projection");
      f("value", value, "value projection");
      f("out", out, "output projection");
      f("conv", conv, "one filter [H,1,K,1] for each head, shared by its features");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
