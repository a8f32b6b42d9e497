// Set Transformer: sets attend to sets, through a few inducing points where they are large; no positions.   arXiv 1810.00825
//   MAB(X, Y): O = Q + softmax(scale Q K^T) V,  out = O + relu(O Wo + bo),  each normalised if layer_norm;  SAB(X) = MAB(X, X)
//   ISAB(X) = MAB1(X, MAB0(I, X)),  PMA(X) = MAB(S, X),  I and S learned.  Equivariant (SAB, ISAB) or invariant (PMA) to permutation.
#pragma once
#include <foveate/attention.h>
#include <foveate/contract.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card set_transformer{.slug = "set-transformer",
                                      .title = "Set Transformer",
                                      .paper = "1810.00825",
                                      .year = 2019,
                                      .family = Family::lowrank,
                                      .cost = "O(N K D)",
                                      .causality = Causality::none,
                                      .equation = "ISAB(X) = MAB1(X, MAB0(I, X)), PMA(X) = MAB(S, X), with learned I and S"};

/// The parameters of a MAB: projections to the width dv, a row-wise network of one layer, two normalisations.
struct FOVEATE_API SetAttention {
  layers::Linear query, key, value, out;
  optional<layers::LayerNorm> norm0, norm1;

  void fields(auto&& f) {
    f("query", query, "queries of the asking set; also the residual");
    f("key", key, "keys of the other set");
    f("value", value, "values of the other set");
    f("out", out, "row-wise network, relu(out(O))");
    f("norm0", norm0, "after the attention, with layer_norm");
    f("norm1", norm1, "after the row-wise network, with layer_norm");
  }
  static SetAttention init(int64_t query_dim, int64_t key_dim, int64_t dim, bool layer_norm);

  /// What the blocks of a model have in common.
  struct How {
    int64_t heads;
    double scale;
    double eps;
    static How of(const auto& o) {  // the authors scale by the full width, whatever the number of heads
      return {.heads = o.num_heads, .scale = 1 / std::sqrt(static_cast<double>(o.scale_per_head ? o.dim / o.num_heads : o.dim)), .eps = o.eps};
    }
  };
  /// x [B,N,dq], or points [N,dq] that ask every set alike; y [B,M,dk] -> [B,N,dv]
  Tensor operator()(const Tensor& x, const Tensor& y, const optional<Tensor>& key_mask, const How& how) const;
  /// Its three parts: the queries [B,N,dv], what they find in y, and what follows.
  Tensor ask(const Tensor& x, const Tensor& y) const;
  ops::Attended find(const Tensor& q, const Tensor& y, const optional<Tensor>& key_mask, const How& how) const;
  Tensor finish(const Tensor& q, const Tensor& attended, double eps) const;
};

namespace detail {
void check_set_transformer(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.num_heads > 0 && o.dim > 0 && o.dim % o.num_heads == 0, form, ": num_heads must divide dim, got ", o.num_heads, " and ", o.dim);
}

/// The options that every block of the authors has.
void set_transformer_fields(auto&& f, auto& o) {
  f("num_heads", o.num_heads, "heads H, a divisor of dim (authors' code: 4)");
  f("layer_norm", o.layer_norm, "normalises after the attention and after the row-wise network (authors' code: off)");
  f("scale_per_head", o.scale_per_head, "scale 1/sqrt(dim/H) instead of the authors' 1/sqrt(dim)");
  f("eps", o.eps, "added to the variance by the normalisations");
}
}  // namespace detail

/// Multi-head attention block: one set asks another.
struct FOVEATE_API MAB {
  static constexpr Form form{.card = &set_transformer,
                             .summary = "one set attends to another",
                             .returns = "[B,N,dim] of each element that asks",
                             .example = R"(mab = foveate.nn.MAB(query_dim=3, key_dim=5, dim=32)
out = mab(torch.randn(2, 7, 3), torch.randn(2, 11, 5))
assert out.shape == (2, 7, 32))"};
  struct Options {
    int64_t query_dim = 128;
    int64_t key_dim = 128;
    int64_t dim = 128;
    int64_t num_heads = 4;
    bool layer_norm = false;
    bool scale_per_head = false;
    double eps = 1e-5;
    void fields(auto&& f) {
      f("query_dim", query_dim, "width of the elements that ask (the paper's d_q)");
      f("key_dim", key_dim, "width of the elements that are asked");
      f("dim", dim, "width of the result (authors' code: 128)");
      detail::set_transformer_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x, y;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,*] set that asks");
      f("y", y, "[B,M,*] set that is asked");
      f("key_mask", key_mask, "bool [B,M] True where an element of y is there; of an empty set nothing is attended to");
    }
  };
  using Parameters = SetAttention;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Self-attention of a set, all elements with all.
struct FOVEATE_API SAB {
  static constexpr Form form{.card = &set_transformer,
                             .summary = "a set attends to itself",
                             .returns = "[B,N,dim] of each element",
                             .example = R"(sab = foveate.nn.SAB(in_dim=3, dim=32)
x, order = torch.randn(2, 7, 3), torch.randperm(7)
assert torch.allclose(sab(x[:, order]), sab(x)[:, order], atol=1e-5))"};
  struct Options {
    int64_t in_dim = 128;
    int64_t dim = 128;
    int64_t num_heads = 4;
    bool layer_norm = false;
    bool scale_per_head = false;
    double eps = 1e-5;
    void fields(auto&& f) {
      f("in_dim", in_dim, "width of the elements");
      f("dim", dim, "width of the result (authors' code: 128)");
      detail::set_transformer_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,*] set");
      f("key_mask", key_mask, "bool [B,N] True where an element is there; rows of the result elsewhere mean nothing");
    }
  };
  using Parameters = SetAttention;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Self-attention through m inducing points: O(N m).
struct FOVEATE_API ISAB {
  static constexpr Form form{.card = &set_transformer,
                             .summary = "a set attends to itself through inducing points",
                             .returns = "[B,N,dim] of each element",
                             .example = R"(isab = foveate.nn.ISAB(in_dim=3, dim=32, num_inducing=8)
out = isab(torch.randn(2, 100, 3))
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t in_dim = 128;
    int64_t dim = 128;
    int64_t num_inducing = 32;
    int64_t num_heads = 4;
    bool layer_norm = false;
    bool scale_per_head = false;
    double eps = 1e-5;
    void fields(auto&& f) {
      f("in_dim", in_dim, "width of the elements");
      f("dim", dim, "width of the result (authors' code: 128)");
      f("num_inducing", num_inducing, "inducing points m (authors' code: 32)");
      detail::set_transformer_fields(f, *this);
    }
  };
  using Inputs = SAB::Inputs;
  struct Parameters {
    static Parameters init(int64_t in_dim, int64_t dim, int64_t num_inducing, bool layer_norm);
    Tensor inducing;  // [m,dim]
    SetAttention mab0, mab1;
    void fields(auto&& f) {
      f("inducing", inducing, "[*,*] inducing points I by their width");
      f("mab0", mab0, "the inducing points ask the set");
      f("mab1", mab1, "the set asks what they found");
    }
    Tensor operator()(const Tensor& x, const optional<Tensor>& key_mask, const SetAttention::How& how) const {
      return mab1(x, mab0(inducing, x, key_mask, how), std::nullopt, how);
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Pooling: k learned seeds ask the set. step() pools a set that grows.
struct FOVEATE_API PMA {
  static constexpr Form form{.card = &set_transformer,
                             .summary = "learned seeds pool a set, also one that grows",
                             .returns = "[B,K,dim] of each seed",
                             .example = R"(pma = foveate.nn.PMA(dim=32, num_seeds=2)
x = torch.randn(1, 100, 32)
_, state = pma.step(x[:, :60])
pooled, state = pma.step(x[:, 60:], state=state)
assert torch.allclose(pooled, pma(x), atol=1e-5))"};
  struct Options {
    int64_t dim = 128;
    int64_t num_seeds = 1;
    int64_t num_heads = 4;
    bool layer_norm = false;
    bool scale_per_head = false;
    double eps = 1e-5;
    void fields(auto&& f) {
      f("dim", dim, "width of the elements and of the result (authors' code: 128)");
      f("num_seeds", num_seeds, "seeds k: elements of the result");
      detail::set_transformer_fields(f, *this);
    }
  };
  using Inputs = SAB::Inputs;
  struct Parameters {
    static Parameters init(int64_t dim, int64_t num_seeds, bool layer_norm);
    Tensor seeds;  // [k,dim]
    SetAttention mab;
    void fields(auto&& f) {
      f("seeds", seeds, "[*,*] seeds S by their width");
      f("mab", mab, "the seeds ask the set");
    }
  };
  /// The attention of the seeds to the elements so far: its size does not grow.
  struct State {
    Tensor out, lse;
    void fields(auto&& f) {
      f("out", out, "[B,H,K,D] attended values so far");
      f("lse", lse, "[B,H,K] log-sum-exp of their scores");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The variant of isab-pytorch: plain attention twice, no residual, no normalisation, no row-wise network.
struct FOVEATE_API LatentISAB {
  static constexpr Form form{.card = &set_transformer,
                             .summary = "latents read a set, and the set reads the latents",
                             .example = R"(isab = foveate.nn.LatentISAB(dim=32, num_heads=4, head_dim=8, num_latents=6)
out, latents = isab(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32) and latents.shape == (2, 6, 32))"};
  struct Options {
    int64_t dim = 128;
    int64_t num_heads = 8;
    int64_t head_dim = 64;
    int64_t num_latents = 32;
    bool latent_self_attend = false;
    bool inverted_attention = false;
    void fields(auto&& f) {
      f("dim", dim, "width of the elements and of the latents");
      f("num_heads", num_heads, "heads H (isab-pytorch: 8)");
      f("head_dim", head_dim, "width of a head (isab-pytorch: 64)");
      f("num_latents", num_latents, "latents m");
      f("latent_self_attend", latent_self_attend, "the latents read the latents too, before the set");
      f("inverted_attention", inverted_attention, "each element shares itself out among the latents, softmax over queries; a latent takes the mean");
    }
  };
  using Inputs = SAB::Inputs;
  struct Outputs {
    Tensor out, latents;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] of each element");
      f("latents", latents, "[B,m,E] what the latents read");
    }
  };
  struct Parameters {
    Tensor latents;  // [m,E]
    layers::Heads attn1, attn2;
    void fields(auto&& f) {
      f("latents", latents, "[*,*] latents by their width");
      f("attn1", attn1, "the latents read the set");
      f("attn2", attn2, "the set reads the latents");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
