// Sparse Sinkhorn attention: buckets of keys sorted by S, out_u = softmax(scale Q_u [S K; K_u]^T) [S V; V_u] for each bucket u of queries.
// arXiv 2002.11296
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>

namespace foveate {

inline constexpr Card sparse_sinkhorn{
    .slug = "sparse-sinkhorn",
    .title = "Sparse Sinkhorn attention",
    .paper = "2002.11296",
    .year = 2020,
    .family = Family::select,
    .cost = "O(N^2 / U + U^2)",
    .causality = Causality::strict,
    .equation = "out_u = softmax(scale Q_u [(S K)_u; K_u]^T) [(S V)_u; V_u], u a bucket of queries, S sorts buckets"};

/// What scores pairs of buckets.
enum class SortNet {
  attention,  ///< means of queries and keys
  simple,     ///< a learned map of a bucket's sums to buckets
};
template <> inline constexpr auto names<SortNet> = std::array<std::string_view, 2>{"attention", "simple"};

namespace detail {

/// The options of sorting that attention and layer share.
void sorting_fields(auto&& f, auto& o) {
  f("kv_bucket_size", o.kv_bucket_size, "keys of a bucket, default bucket_size; if causal, it is that");
  f("sort_net", o.sort_net,
    "what scores pairs of buckets: attention, means of queries and keys; simple, a learned map of sums of a bucket's queries and keys (paper)");
  f("max_buckets", o.max_buckets, "buckets that sort_net simple knows");
  f("non_permutative", o.non_permutative,
    "True: n_top_buckets buckets for each bucket of queries, times their probabilities; False: a doubly stochastic mixture of all (paper)");
  f("sinkhorn_iter", o.sinkhorn_iter, "normalisations of rows and columns of that mixture (lucidrains: 7)");
  f("temperature", o.temperature, "divides scores; with sort_net attention only those of a mixture or if causal (lucidrains: 0.75, if causal 1)");
  f("n_sortcut", o.n_sortcut, "SortCut: all queries see the same so many buckets; 0: each bucket of queries has its own");
  f("n_top_buckets", o.n_top_buckets, "buckets for each bucket of queries (lucidrains: 1, if causal 2)");
}
/// Those of both attentions, that have parameters.
void head_fields(auto&& f, auto& o) {
  f("num_heads", o.num_heads, "heads H", required);
  f("head_dim", o.head_dim, "width D of a head", required);
  f("bucket_size", o.bucket_size, "queries of a bucket; the last one may hold fewer (lucidrains: 64)");
}

}  // namespace detail

/// What sorts buckets, and what causal attention may take instead of a bucket.
struct SinkhornParameters {
  optional<Tensor> sort_weight, null_keys, null_values;
  void fields(auto&& f) {
    f("sort_weight", sort_weight, "[*,*,*,*] 1 by H by 2D by buckets: what sort_net simple maps with");
    f("null_keys", null_keys, "[*,*,*] H by 1 by D: keys of the bucket that stands before the first, if causal");
    f("null_values", null_values, "[*,*,*] H by 1 by D: its values");
  }
};

struct FOVEATE_API SinkhornOutputs {
  Tensor out, sort_matrix;
  void fields(auto&& f) {
    f("out", out, "[B,H,N,D] attended values");
    f("sort_matrix", sort_matrix, "[B,H,*,*] S: rows that make the buckets of keys that queries see, by buckets of keys");
  }
};

/// Each bucket of queries attends to sorted buckets and, where there are as many of both, to its own one.
struct FOVEATE_API SinkhornAttention {
  static constexpr Form form{.card = &sparse_sinkhorn,
                             .summary = "attention of buckets of queries to sorted buckets of keys and their own",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 48, 8)
out, sort_matrix = foveate.nn.SinkhornAttention(num_heads=4, head_dim=8, bucket_size=8)(q, k, v)
assert out.shape == (2, 4, 48, 8) and sort_matrix.shape == (2, 4, 6, 6))"};
  struct Options {
    int64_t num_heads = 0;
    int64_t head_dim = 0;
    int64_t bucket_size = 64;
    optional<int64_t> kv_bucket_size;
    SortNet sort_net = SortNet::attention;
    optional<int64_t> max_buckets;
    bool non_permutative = true;
    int64_t sinkhorn_iter = 7;
    double temperature = 0.75;
    int64_t n_sortcut = 0;
    int64_t n_top_buckets = 1;
    bool values_from_keys = false;
    double dropout = 0;
    void fields(auto&& f) {
      detail::head_fields(f, *this);
      detail::sorting_fields(f, *this);
      f("values_from_keys", values_from_keys, "sorted values are sorted keys, an error of sinkhorn-transformer 0.11.4, for models trained with it");
      f("dropout", dropout, "probability of dropping an attention weight in training, or where dropout_seed is given");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, query_mask, gumbel, dropout_seed;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,M,D] keys");
      f("v", v, "[B,H,M,D] values");
      f("key_mask", key_mask, "bool [B,M] True where a key takes part; a sorted key is one where that of the bucket of the largest weight is");
      f("query_mask", query_mask, "bool [B,N] False where a query gets zeros");
      f("gumbel", gumbel, "[B,H,*,*] the draw of noise on scores of buckets of queries by those of keys, where S is a mixture; default Gumbel noise");
      f("dropout_seed", dropout_seed, "int [] seed of the draw of dropout");
    }
  };
  using Parameters = SinkhornParameters;
  using Outputs = SinkhornOutputs;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

/// No token sees a later one: a bucket is chosen by its first token among those before it and a learned null, half the heads have
/// buckets that stand across the boundaries of the others.
struct FOVEATE_API SinkhornCausalAttention {
  static constexpr Form form{.card = &sparse_sinkhorn,
                             .summary = "causal attention of buckets of queries to sorted earlier buckets and the past of their own",
                             .example = R"(q, k, v = torch.randn(3, 2, 4, 48, 8)
out, sort_matrix = foveate.nn.SinkhornCausalAttention(num_heads=4, head_dim=8, bucket_size=8)(q, k, v)
assert out.shape == (2, 4, 48, 8))"};
  struct Options {
    int64_t num_heads = 0;
    int64_t head_dim = 0;
    int64_t bucket_size = 64;
    SortNet sort_net = SortNet::attention;
    optional<int64_t> max_buckets;
    double temperature = 1;
    int64_t n_top_buckets = 2;
    double dropout = 0;
    void fields(auto&& f) {
      detail::head_fields(f, *this);
      f("sort_net", sort_net,
        "what scores pairs of buckets: attention, running means of queries and keys; simple, a learned map of a bucket's first key and the mean of "
        "keys up to it");
      f("max_buckets", max_buckets, "buckets that sort_net simple knows, without the null ones");
      f("temperature", temperature, "divides scores (lucidrains: 1)");
      f("n_top_buckets", n_top_buckets, "buckets for each bucket of queries (lucidrains: 2)");
      f("dropout", dropout, "probability of dropping an attention weight in training, or where dropout_seed is given");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask, query_mask, dropout_seed;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,D] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
      f("query_mask", query_mask, "bool [B,N] False where a query gets zeros");
      f("dropout_seed", dropout_seed, "int [] seed of the draw of dropout");
    }
  };
  using Parameters = SinkhornParameters;
  using Outputs = SinkhornOutputs;
  struct State {
    Tensor k, v, q_sum, bucket_q;
    void fields(auto&& f) {
      f("k", k, "[B,H,M,D] keys so far");
      f("v", v, "[B,H,M,D] values so far");
      f("q_sum", q_sum, "[B,H,D] sum of the queries from a head's first bucket on");
      f("bucket_q", bucket_q, "[B,H,D] their mean at the first token of the last bucket that began");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

/// The layer. Some heads may instead attend to their own bucket and its neighbours.
struct FOVEATE_API SinkhornSelfAttention {
  static constexpr Form form{.card = &sparse_sinkhorn,
                             .summary = "multi-head attention by sorted buckets",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.SinkhornSelfAttention(embed_dim=32, num_heads=4, bucket_size=8, n_local_attn_heads=1)
out = layer(torch.randn(2, 48, 32))
assert out.shape == (2, 48, 32))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 8;
    optional<int64_t> head_dim;
    int64_t bucket_size = 0;
    bool causal = false;
    bool context_only = false;
    int64_t n_local_attn_heads = 0;
    optional<int64_t> kv_bucket_size;
    SortNet sort_net = SortNet::attention;
    optional<int64_t> max_buckets;
    bool non_permutative = true;
    int64_t sinkhorn_iter = 5;
    double temperature = 0.75;
    int64_t n_sortcut = 0;
    int64_t n_top_buckets = 1;
    bool values_from_keys = false;
    double attention_dropout = 0;
    double dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E", required);
      f("num_heads", num_heads, "heads H (lucidrains: 8)");
      f("head_dim", head_dim, "width D of a head, default E/H");
      f("bucket_size", bucket_size, "queries of a bucket; the last one may hold fewer", required);
      f("causal", causal, "no token sees a later one; then n_sortcut is 0 and S not a mixture");
      f("context_only", context_only, "keys and values are a context as it is, E = H D wide");
      f("n_local_attn_heads", n_local_attn_heads, "so many heads, the first ones, attend to their own bucket and those beside it, without sorting");
      detail::sorting_fields(f, *this);
      f("values_from_keys", values_from_keys, "sorted values are sorted keys, an error of sinkhorn-transformer 0.11.4, for models trained with it");
      f("attention_dropout", attention_dropout, "probability of dropping an attention weight in training, or where dropout_seed is given");
      f("dropout", dropout, "probability of dropping an element of the result in training, or where dropout_keep is given");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, context, context_mask, gumbel, dropout_seed, dropout_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part; of all so far in a step");
      f("context", context, "[B,M,E] keys and values of context_only");
      f("context_mask", context_mask, "bool [B,M] True where one of them takes part");
      f("gumbel", gumbel,
        "[B,*,*,*] the draw of noise, for each head that sorts on scores of buckets of queries by those of keys; default Gumbel noise");
      f("dropout_seed", dropout_seed, "int [] seed of the draw of dropout of attention weights");
      f("dropout_keep", dropout_keep, "bool [B,N,E] the draw of dropout of the result, True where an element is kept");
    }
  };
  struct Parameters {
    layers::Linear query;
    optional<layers::Linear> key, value;
    layers::Linear out;
    SinkhornParameters sorting;
    void fields(auto&& f) {
      f("query", query, "query projection");
      f("key", key, "key projection");
      f("value", value, "value projection");
      f("out", out, "output projection");
      f("sorting", sorting, "of heads that sort");
    }
  };
  struct State {
    SinkhornCausalAttention::State sorted;
    Tensor local_k, local_v;
    void fields(auto&& f) {
      f("sorted", sorted, "of heads that sort");
      f("local_k", local_k, "[B,*,M,D] keys so far of the others");
      f("local_v", local_v, "[B,*,M,D] their values");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);

 private:
  static std::pair<Tensor, State> advance(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
