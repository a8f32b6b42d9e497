// Linformer: keys and values gathered along the sequence into K slots, out = softmax(scale Q (E K)^T) (F V).   arXiv 2006.04768
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>

namespace foveate {

inline constexpr Card linformer{.slug = "linformer",
                                .title = "Linformer",
                                .paper = "2006.04768",
                                .year = 2020,
                                .family = Family::lowrank,
                                .cost = "O(N K D)",
                                .causality = Causality::none,
                                .equation = "out = softmax(scale Q (E K)^T) (F V), E and F [K,M] learned"};

/// How tokens become slots.
enum class LinformerKind { linear, fixed, conv, mean, max };
template <> inline constexpr auto names<LinformerKind> = std::array<std::string_view, 5>{"linear", "fixed", "conv", "mean", "max"};

/// Who has a projection of its own.
enum class LinformerSharing { none, headwise, kv, layerwise };
template <> inline constexpr auto names<LinformerSharing> = std::array<std::string_view, 4>{"none", "headwise", "kv", "layerwise"};

/// Whether the layer gathers its input, or the heads' keys and values. The two differ where the feature projections have biases.
enum class LinformerOrder { input, heads };
template <> inline constexpr auto names<LinformerOrder> = std::array<std::string_view, 2>{"input", "heads"};

/// The draw of E and F.
enum class LinformerInit { xavier_uniform, xavier_normal, uniform, normal };
template <> inline constexpr auto names<LinformerInit> = std::array<std::string_view, 4>{"xavier_uniform", "xavier_normal", "uniform", "normal"};

/// E or F: a sequence of M tokens -> K slots.
struct FOVEATE_API SlotProjection {
  optional<Tensor> weight;  // [K,length] or [H,K,length]; conv: [D,D,taps] or [H,D,D,taps], output by input
  optional<Tensor> bias;    // [K] or [H,K]; conv: [D] or [H,D]
  optional<Tensor> fixed;   // as weight

  void fields(auto&& f) {
    f("weight", weight, "[...] slots by length, for each head where sharing is none; conv: output by input features by taps");
    f("bias", bias, "[...] added to every feature of a slot, [K] or [H,K]; conv: to every slot, [D] or [H,D]");
    f("fixed", fixed, "[...] the weight of the kind fixed, not trained", buffer);
  }

  struct Plan {
    LinformerKind kind;
    LinformerSharing sharing;
    int64_t length, rank, heads;
  };
  static SlotProjection init(const Plan& plan, int64_t width, bool bias, LinformerInit how);
  Tensor operator()(const Tensor& x, const Plan& plan) const;  // [B,H or 1,M,D] -> [B,H or 1,K,D]
};

namespace detail {
/// The options that every form has.
void linformer_fields(auto&& f, auto& o) {
  f("length", o.length, "longest sequence of keys; a shorter one uses the first columns of the projections (pooling takes any length)");
  f("rank", o.rank, "slots K (lucidrains: 256; the authors take a fraction of the length)");
  f("kind", o.kind, "how tokens become slots: a learned matrix; the same, not trained; convolution or pooling of blocks of length/rank tokens");
  f("sharing", o.sharing, "none: E and F for each head; headwise: E and F; kv: E = F; layerwise: as kv, and one for all layers of a stack");
  f("slot_bias", o.slot_bias, "whether slots have biases (tatp22; neither the paper nor the authors' code has them)");
  f("initialisation", o.initialisation,
    "of E and F: xavier_uniform with gain 1/sqrt(2) (authors' code), xavier_normal (tatp22), uniform within 1/sqrt(K) (lucidrains), normal of "
    "deviation 1/K (tatp22, kind fixed); conv: as torch");
  f("slot_causal", o.slot_causal,
    "hides slot s from query i < s: for compatibility with tatp22's causal=True, which is NOT causal, since slots mix all tokens");
  f("scale", o.scale, "multiplies q.k, default 1/sqrt(D)");
}

/// Those of layers and stacks.
void linformer_layer_fields(auto&& f, auto& o) {
  f("project", o.project,
    "what is gathered: the input, before the feature projections (authors' code), or the heads' keys and values (tatp22, lucidrains)");
  f("head_dim", o.head_dim, "width D of a head, default E/H");
  f("bias", o.bias,
    "whether query, key and value projections have biases (authors' code: yes; tatp22, lucidrains: no); the output projection has one");
  f("one_kv_head", o.one_kv_head, "one head of keys and values for all queries (lucidrains)");
  f("share_kv_projection", o.share_kv_projection, "the key projection makes the values too (lucidrains)");
  f("full_attention", o.full_attention, "plain attention to all tokens, without slots (tatp22)");
  f("out_inner_dim", o.out_inner_dim, "makes the output projection a product of two matrices of this inner width (tatp22: w_o_intermediate_dim)");
}
}  // namespace detail

/// The bare function: given queries attend to slots of given keys and values.
struct FOVEATE_API LinformerAttention {
  static constexpr Form form{.card = &linformer,
                             .summary = "attention of q to keys and values gathered into slots",
                             .returns = "[B,H,N,Dv] attended values",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 100, 16)
attention = foveate.nn.LinformerAttention(length=128, rank=32)   # 100 of the 128 columns are used
assert attention(q, k, v).shape == (2, 4, 100, 16))"};
  struct Options {
    int64_t length = 512;
    int64_t rank = 256;
    LinformerKind kind = LinformerKind::linear;
    LinformerSharing sharing = LinformerSharing::headwise;
    bool slot_bias = false;
    LinformerInit initialisation = LinformerInit::xavier_uniform;
    bool slot_causal = false;
    optional<double> scale;
    int64_t num_heads = 8;
    int64_t head_dim = 64;
    optional<int64_t> value_dim;
    void fields(auto&& f) {
      detail::linformer_fields(f, *this);
      f("num_heads", num_heads, "heads H; only for the initial values of sharing none");
      f("head_dim", head_dim, "width D of a head; only for the initial values of the kind conv");
      f("value_dim", value_dim, "width Dv of values, default D; only for the initial values of the kind conv");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, query_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,Dv] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part; the others are zeros before the projection");
      f("query_mask", query_mask, "bool [B,N] True where a query counts; the others get zeros");
    }
  };
  struct Parameters {
    SlotProjection key_projection, value_projection;
    void fields(auto&& f) {
      f("key_projection", key_projection, "E");
      f("value_projection", value_projection, "F; absent where E serves both");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer: feature projections, heads, slots, output projection.
struct FOVEATE_API LinformerMultiheadAttention {
  static constexpr Form form{.card = &linformer,
                             .summary = "multi-head attention to slots",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.LinformerMultiheadAttention(embed_dim=32, num_heads=4, length=128, rank=16)
out = layer(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t length = 512;
    int64_t rank = 256;
    LinformerKind kind = LinformerKind::linear;
    LinformerSharing sharing = LinformerSharing::headwise;
    LinformerOrder project = LinformerOrder::input;
    bool slot_bias = false;
    LinformerInit initialisation = LinformerInit::xavier_uniform;
    bool slot_causal = false;
    optional<double> scale;
    optional<int64_t> head_dim;
    bool bias = true;
    bool one_kv_head = false;
    bool share_kv_projection = false;
    bool full_attention = false;
    optional<int64_t> out_inner_dim;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H");
      detail::linformer_fields(f, *this);
      detail::linformer_layer_fields(f, *this);
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, key_mask, query_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence that asks");
      f("context", context, "[B,M,E] sequence that is attended to, default x");
      f("key_mask", key_mask, "bool [B,*] True where a token of the context takes part; the others are zeros before the projection");
      f("query_mask", query_mask, "bool [B,N] True where a query counts; the others get zeros, before the output projection");
    }
  };
  struct Parameters {
    layers::Linear query, key;
    optional<layers::Linear> value, out_inner;
    layers::Linear out;
    SlotProjection key_projection, value_projection;
    void fields(auto&& f) {
      f("query", query, "query projection");
      f("key", key, "key projection");
      f("value", value, "value projection; absent where the key projection serves both");
      f("out_inner", out_inner, "first matrix of an output projection of two");
      f("out", out, "output projection");
      f("key_projection", key_projection, "E, along the sequence");
      f("value_projection", value_projection, "F, along the sequence; absent where E serves both");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);

  /// forward with an E and F that belong to the whole stack.
  static Tensor attend(const Options&, const Parameters&, const SlotProjection& e, const SlotProjection& f, const Inputs&);
};

}  // namespace foveate
