// Routing Transformer: each of C centroids gathers the w queries and keys that point most its way; attention stays within clusters,
//   out_t = sum over clusters with t of attention_c(t) / (their number + eps).   arXiv 2003.05997
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>

namespace foveate {

inline constexpr Card routing_transformer{
    .slug = "routing-transformer",
    .title = "Routing Transformer",
    .paper = "2003.05997",
    .year = 2020,
    .family = Family::select,
    .cost = "O(N^1.5 D)",
    .causality = Causality::logits_only,
    .equation = "out_t = sum_c softmax(q_t K_c^T / sqrt(D)) V_c / (#c + eps), c the clusters whose w nearest hold t"};

namespace detail {
void routing_fields(auto& o, auto&& f) {
  f("window_size", o.window_size, "w: tokens that a centroid gathers (PyPI package: 64); N / C keeps every token about once");
  f("context_window_size", o.context_window_size, "keys that a centroid gathers, where they are gathered by themselves; default window_size");
  f("causal", o.causal, "a query sees no key after it; which tokens a centroid gathers depends on the whole sequence");
  f("commitment", o.commitment, "multiplies the loss that draws queries and keys to their centroids (paper and package: 1e-4)");
  f("ema_decay", o.ema_decay, "how much of a centroid stays when it moves (package: 0.999)");
  f("eps", o.eps, "added to the number of a token's clusters (package: 1e-5)");
}
void routing_layer_fields(auto& o, auto&& f) {
  f("shared_qk", o.shared_qk, "queries of routed heads are their keys, too (package: as causal)");
  f("num_mem_kv", o.num_mem_kv, "learned keys and values of each cluster (package: 0, but 1 or more where causal and not shared)");
  f("local_radius", o.local_radius, "blocks that a block of the local heads sees before it, and behind it where not causal (package: 1)");
  f("rotary_local", o.rotary_local, "queries and keys of local heads are turned by their positions, halves of channels together (package: True)");
  f("rotary_global", o.rotary_global, "queries, keys and values of routed heads are turned, neighbouring channels together (package: True)");
}
}  // namespace detail

/// The bare function.
struct FOVEATE_API RoutingAttention {
  static constexpr Form form{.card = &routing_transformer,
                             .summary = "attention within clusters around given centroids",
                             .returns = "",
                             .example = R"(q, v, means = torch.randn(2, 4, 64, 8), torch.randn(2, 4, 64, 8), torch.randn(4, 8, 8)
shared = foveate.routing_attention(q, v, means, window_size=8, causal=True)  # queries are keys, too
apart = foveate.routing_attention(q, v, means, torch.randn(2, 4, 64, 8), window_size=8)
assert shared.out.shape == apart.out.shape == v.shape)"};
  struct Options {
    int64_t window_size = 64;
    optional<int64_t> context_window_size;
    bool causal = false;
    double commitment = 1e-4;
    double ema_decay = 0.999;
    double eps = 1e-5;
    void fields(auto&& f) { detail::routing_fields(*this, f); }
  };
  struct Inputs {
    Tensor q, v, means;
    optional<Tensor> k, query_mask, key_mask, memory_key, memory_value;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("v", v, "[B,H,M,Dv] values");
      f("means", means, "[H,C,D] centroids");
      f("k", k, "[B,H,M,D] keys; without them the queries, made unit vectors, are the keys, and a token sees itself only if nothing else");
      f("query_mask", query_mask, "bool [B,N] False where a query gets zeros");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part");
      f("memory_key", memory_key, "[H,C,m,D] keys that a cluster always has");
      f("memory_value", memory_value, "[H,C,m,Dv] their values");
    }
  };
  using Parameters = None;
  struct Outputs {
    Tensor out, loss, new_means;
    void fields(auto&& f) {
      f("out", out, "[B,H,N,Dv] attended values; a token that no centroid gathers gets zeros");
      f("loss", loss, "[] commitment times the mean square distance of queries and keys, as unit vectors, from their centroids");
      f("new_means", new_means, "[H,C,D] the centroids moved towards this batch; those that nobody is nearest to stay");
    }
  };
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// Where centroids start.
struct FOVEATE_API RoutingCentroids {
  static constexpr Form form{.card = &routing_transformer,
                             .summary = "centroids for a first batch: random tokens, then rounds of k-means",
                             .returns = "[H,*,D] centroids",
                             .example = R"(q = torch.randn(2, 4, 32, 8)
x = q.transpose(0, 1).flatten(1, 2)  # [4,64,8]
means = foveate.routing_centroids(x, num_clusters=4)
assert means.shape == (4, 4, 8))"};
  struct Options {
    int64_t num_clusters = 8;
    int64_t iterations = 10;
    void fields(auto&& f) {
      f("num_clusters", num_clusters, "centroids C of each head");
      f("iterations", iterations, "rounds (package: 10)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> perm;
    void fields(auto&& f) {
      f("x", x, "[H,N,D] queries of a whole batch in line, or queries and keys");
      f("perm", perm, "int [N] an order of the tokens, of which the first C start; drawn if absent");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
};

/// Local heads and routed heads side by side.
struct FOVEATE_API RoutingSelfAttention {
  static constexpr Form form{.card = &routing_transformer,
                             .summary = "multi-head attention, some heads local and the others routed",
                             .returns = "",
                             .example = R"(layer = foveate.nn.RoutingSelfAttention(
    embed_dim=32, num_heads=4, local_heads=2, num_clusters=4, window_size=8, local_window_size=8, causal=True)
x = torch.randn(2, 32, 32)
out, loss = layer(x)  # add loss to that of the task; in training each call moves the centroids
assert out.shape == x.shape)"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t local_heads = 0;
    int64_t num_clusters = 8;
    int64_t window_size = 64;
    optional<int64_t> context_window_size;
    bool causal = false;
    optional<bool> shared_qk;
    int64_t num_mem_kv = 0;
    int64_t local_window_size = 256;
    int64_t local_radius = 1;
    bool rotary_local = true;
    bool rotary_global = true;
    double commitment = 1e-4;
    double ema_decay = 0.999;
    double eps = 1e-5;
    double dropout = 0;
    bool bias = false;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads, must divide embed_dim (package: 8)");
      f("local_heads", local_heads, "how many of them are local, the first (package: 0)");
      f("num_clusters", num_clusters, "centroids C of each routed head (package: the longest sequence over window_size)");
      detail::routing_fields(*this, f);
      detail::routing_layer_fields(*this, f);
      f("local_window_size", local_window_size, "tokens of a block of the local heads (package: 256)");
      f("dropout", dropout, "probability of dropping entries of the result, in training (package: 0)");
      f("bias", bias, "the output projection has a bias (package: False)");
    }
    bool shares() const { return shared_qk.value_or(causal); }
    int64_t memory() const { return causal && !shares() ? std::max<int64_t>(num_mem_kv, 1) : num_mem_kv; }
    RoutingAttention::Options routing() const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> context, mask, context_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("context", context, "[B,M,E] what routed heads attend to instead, without local heads and not causal");
      f("mask", mask, "bool [B,N] False for padding, which neither reads nor is read");
      f("context_mask", context_mask, "bool [B,M] True where a token of the context takes part");
    }
  };
  struct Parameters {
    optional<layers::Linear> local_qkv, query, key, value;
    layers::Linear out;
    optional<Tensor> memory_key, memory_value, means;
    void fields(auto&& f) {
      f("local_qkv", local_qkv, "projections of local heads");
      f("query", query, "queries of routed heads");
      f("key", key, "their keys, where not shared");
      f("value", value, "their values");
      f("out", out, "output projection");
      f("memory_key", memory_key, "[*,C,m,D] learned keys of each cluster");
      f("memory_value", memory_value, "[*,C,m,D] learned values of each cluster");
      f("means", means, "[*,C,D] centroids; start them by routing_centroids", buffer);
    }
  };
  struct Outputs {
    Tensor out, loss;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] attended sequence");
      f("loss", loss, "[] commitment of the routed heads");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
