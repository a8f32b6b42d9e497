// Product-key memory: out = sum over heads and the k best of n^2 slots of softmax(score) V, score (i, j) = q1.K1_i + q2.K2_j.   arXiv 1907.05242
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card product_key_memory{.slug = "product-key-memory",
                                         .title = "Product-key memory",
                                         .paper = "1907.05242",
                                         .year = 2019,
                                         .family = Family::memory,
                                         .cost = "O(N H (n D + k^2 + k Dv))",
                                         .causality = Causality::strict,
                                         .equation = "out = sum_h sum_(k best of n^2) softmax(score) V, score (i, j) = q1.K1_i + q2.K2_j"};

/// From scores to weights.
enum class ScoreGate { softmax, relu, identity };
template <> inline constexpr auto names<ScoreGate> = std::array<std::string_view, 3>{"softmax", "relu", "identity"};

/// What of the k weights of a query is subtracted from each.
enum class ScoreSubtract { none, min, mean, median };
template <> inline constexpr auto names<ScoreSubtract> = std::array<std::string_view, 4>{"none", "min", "mean", "median"};

/// How the keys of a fresh memory are drawn.
enum class KeyInit { uniform, gaussian, binary };
template <> inline constexpr auto names<KeyInit> = std::array<std::string_view, 3>{"uniform", "gaussian", "binary"};

namespace detail {
/// The options of what becomes of scores, which function and layer share.
void lookup_fields(auto&& f, auto& o) {
  f("topk", o.topk, "slots k that a head reads (paper: 32)");
  f("flat", o.flat, "keys that are no product: each slot has its own");
  f("normalize_query", o.normalize_query, "each half of a query is made one long; with flat the whole");
  f("temperature", o.temperature, "divides the scores (1)");
  f("gate", o.gate, "softmax over the k scores; relu: slots do not compete; identity: the scores as they are");
  f("score_subtract", o.score_subtract, "subtracts from a query's k weights their min, mean or median, of an even number the lower one");
  f("score_normalize", o.score_normalize,
    "divides a query's k weights by the sum of their absolute values; after a softmax only with score_subtract");
  f("modulo_size", o.modulo_size, "slots are taken modulo this, and there are so many values; default all slots");
  f("sparse", o.sparse, "the gradient of values is sparse, for torch.optim.SparseAdam");
}
}  // namespace detail

/// The bare function: queries, keys and values are given.
struct FOVEATE_API ProductKeyLookup {
  static constexpr Form form{.card = &product_key_memory,
                             .summary = "values of the slots whose product keys fit given queries best",
                             .example = R"(q, keys, values = torch.randn(2, 4, 9, 16), torch.randn(4, 2, 32, 8), torch.randn(32 * 32, 10)
out, indices, scores = foveate.product_key_lookup(q, keys, values, topk=5)
assert out.shape == (2, 9, 10) and indices.shape == scores.shape == (2, 9, 4, 5))"};
  struct Options {
    int64_t topk = 32;
    bool flat = false;
    bool normalize_query = false;
    double temperature = 1;
    ScoreGate gate = ScoreGate::softmax;
    ScoreSubtract score_subtract = ScoreSubtract::none;
    bool score_normalize = false;
    optional<int64_t> modulo_size;
    bool sparse = false;
    void fields(auto&& f) { detail::lookup_fields(f, *this); }
  };
  struct Inputs {
    Tensor q, keys, values;
    optional<Tensor> query_mask, permutations;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("keys", keys, "[*,*,*,*] half keys [H or 1,2 or 1,n,D/2], one table serving all heads, or both halves; with flat [H or 1,1,n,D]");
      f("values", values, "[*,Dv] value of each slot, slot (i, j) being number i n + j");
      f("query_mask", query_mask, "bool [B,N] True where a query counts; the others get zeros");
      f("permutations", permutations, "int [H,*] for each head the slot that is read in place of each");
    }
  };
  struct Outputs {
    Tensor out, indices, scores;
    void fields(auto&& f) {
      f("out", out, "[B,N,Dv] sum over heads and slots");
      f("indices", indices, "int [B,N,H,k] the slots that were read, best first");
      f("scores", scores, "[B,N,H,k] their weights");
    }
  };
  using Parameters = None;
  static void check(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

/// The layer that stands in a Transformer instead of a feed-forward network, or behind one: a query network and the memory.
struct FOVEATE_API ProductKeyMemory {
  static constexpr Form form{.card = &product_key_memory,
                             .summary = "memory layer of the paper, with its query networks",
                             .example = R"(memory = foveate.nn.ProductKeyMemory(input_dim=32, heads=2, n_keys=16, key_dim=8, topk=4)
out, indices, scores = memory(torch.randn(2, 10, 32))
usage = foveate.product_key_usage(indices, scores, slots=16 * 16)
assert out.shape == (2, 10, 32) and 0 < usage.used <= 1)"};
  struct Options {
    int64_t input_dim = 0;
    optional<int64_t> output_dim;
    int64_t heads = 4;
    int64_t n_keys = 512;
    int64_t key_dim = 256;
    int64_t topk = 32;
    bool flat = false;
    bool normalize_query = false;
    double temperature = 1;
    ScoreGate gate = ScoreGate::softmax;
    ScoreSubtract score_subtract = ScoreSubtract::none;
    bool score_normalize = false;
    optional<int64_t> modulo_size;
    bool sparse = false;
    std::vector<int64_t> query_hidden;
    bool query_identity = false;
    bool query_batchnorm = true;
    bool multi_query_net = false;
    bool query_net_learn = true;
    bool different_keys = true;
    bool keys_learn = true;
    KeyInit keys_init = KeyInit::uniform;
    bool keys_normalized = false;
    bool value_zero_init = false;
    bool shuffle_indices = false;
    double input_dropout = 0;
    double query_dropout = 0;
    double value_dropout = 0;
    void fields(auto&& f) {
      f("input_dim", input_dim, "width E of the sequence", required);
      f("output_dim", output_dim, "width Dv of values and result, default E");
      f("heads", heads, "heads H, whose results are summed (paper: 4)");
      f("n_keys", n_keys, "keys n of a half: there are n^2 slots (paper: 512); with flat, slots");
      f("key_dim", key_dim, "width D of a query, two halves (paper: 256; authors' notebook: 128)");
      detail::lookup_fields(f, *this);
      f("query_hidden", query_hidden, "inner widths of the query network, ReLU behind each (paper: none, one linear map)");
      f("query_identity", query_identity, "no query network: the input is every head's query, and E = D");
      f("query_batchnorm", query_batchnorm, "batch normalisation behind every linear map of the query network (paper: yes; authors' default: no)");
      f("multi_query_net", multi_query_net, "a query network for each half of each head");
      f("query_net_learn", query_net_learn, "False: the query network's parameters get no gradient");
      f("different_keys", different_keys, "keys of its own for each head and half; False: one table for all");
      f("keys_learn", keys_learn, "False: keys get no gradient");
      f("keys_init", keys_init, "uniform: in [-h^(-1/2), h^(-1/2)], h the width of a key; gaussian: standard normal; binary: +-D^(-1/2)");
      f("keys_normalized", keys_normalized, "fresh keys are made one long");
      f("value_zero_init", value_zero_init, "fresh values are zeros; else normal with deviation Dv^(-1/2)");
      f("shuffle_indices", shuffle_indices, "each head reads the slots in an order of its own, drawn once");
      f("input_dropout", input_dropout, "probability of dropping an entry of the input, in training or where input_keep is given");
      f("query_dropout", query_dropout, "the same of the queries, by query_keep");
      f("value_dropout", value_dropout, "the same of the result, by value_keep");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> query_mask, input_keep, query_keep, value_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("query_mask", query_mask, "bool [B,N] True where a token counts; the others get zeros, and take no part in batch statistics");
      f("input_keep", input_keep, "bool [B,N,E] the draw of input_dropout: True where an entry is kept");
      f("query_keep", query_keep, "bool [B,N,*] the draw of query_dropout, H D wide");
      f("value_keep", value_keep, "bool [B,N,*] the draw of value_dropout, Dv wide");
    }
  };
  struct QueryLayer {
    layers::Linear linear;
    optional<layers::BatchNorm> norm;
    void fields(auto&& f) {
      f("linear", linear, "linear map");
      f("norm", norm, "batch normalisation; present with query_batchnorm");
    }
  };
  struct QueryNet {
    std::vector<QueryLayer> layers;
    void fields(auto&& f) { f("layers", layers, "linear maps, ReLU between"); }
  };
  struct Drawn {
    optional<Tensor> permutations;
    void fields(auto&& f) { f("permutations", permutations, "int [*,*] order of each head's slots; present with shuffle_indices", buffer); }
  };
  struct Parameters {
    Tensor keys, values;
    std::vector<QueryNet> queries;
    Drawn drawn;
    void fields(auto&& f) {
      f("keys", keys, "[...] [H,2,n,D/2]; with flat [H,n,D]; for all heads and halves alike without the leading sizes");
      f("values", values, "[*,*] value of each slot");
      f("queries", queries, "the query network, or one for each half of each head");
      f("drawn", drawn, "the draw");
    }
  };
  using Outputs = ProductKeyLookup::Outputs;
  using State = None;  ///< each token by itself
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

/// The layer of the package product-key-memory: queries normalised one by one, so that no token looks at another in training either.
struct FOVEATE_API PKM {
  static constexpr Form form{.card = &product_key_memory,
                             .summary = "memory layer whose queries are normalised token by token, that of the package product-key-memory",
                             .example = R"(memory = foveate.nn.PKM(dim=32, heads=2, num_keys=16, dim_head=8, topk=4)
out, indices, scores = memory(torch.randn(2, 10, 32))
assert out.shape == (2, 10, 32) and indices.max() < 16 * 16)"};
  struct Options {
    int64_t dim = 0;
    int64_t heads = 4;
    int64_t num_keys = 128;
    int64_t topk = 32;
    int64_t dim_head = 128;
    bool use_layernorm = true;
    bool pre_layernorm = false;
    bool differentiable_topk = false;
    bool concat_values_and_combine = false;
    bool norm_output = false;
    bool non_competitive_gates = false;
    double gumbel_noise_scale = 0;
    double input_dropout = 0;
    double query_dropout = 0;
    double value_dropout = 0;
    double attn_dropout = 0;
    bool sparse = false;
    void fields(auto&& f) {
      f("dim", dim, "width E of the sequence", required);
      f("heads", heads, "heads H (4)");
      f("num_keys", num_keys, "keys n of a half: there are n^2 slots (128)");
      f("topk", topk, "slots k that a head reads (32)");
      f("dim_head", dim_head, "width d of half a query (128)");
      f("use_layernorm", use_layernorm, "LayerNorm of each half query; else batch normalisation over all of them, which looks at other tokens");
      f("pre_layernorm", pre_layernorm, "LayerNorm of the input first");
      f("differentiable_topk", differentiable_topk,
        "half scores that are not chosen get a gradient too: that of a soft choice of 9/8 k of n, found by 20 steps of coordinate descent");
      f("concat_values_and_combine", concat_values_and_combine, "values are d wide; heads are set side by side and projected, not summed");
      f("norm_output", norm_output, "LayerNorm of the result (arXiv 2302.06461)");
      f("non_competitive_gates", non_competitive_gates, "ReLU of the scores instead of a softmax");
      f("gumbel_noise_scale", gumbel_noise_scale, "times Gumbel noise, added to the half scores; 0 none");
      f("input_dropout", input_dropout, "probability of dropping an entry of the input, in training or where input_keep is given");
      f("query_dropout", query_dropout, "the same of the queries, by query_keep");
      f("value_dropout", value_dropout, "the same of the result before its LayerNorm, by value_keep");
      f("attn_dropout", attn_dropout, "the same of the weights, by weight_keep");
      f("sparse", sparse, "the gradient of values is sparse, for torch.optim.SparseAdam");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> query_mask, trainable_slots, gumbel, input_keep, query_keep, value_keep, weight_keep;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("query_mask", query_mask, "bool [B,N] True where a token counts; the others get zeros, and take no part in batch statistics");
      f("trainable_slots", trainable_slots, "bool [*] True where a slot's value gets a gradient, default all");
      f("gumbel", gumbel, "[B,N,*,2,*] the noise of each head, half and key, default drawn");
      f("input_keep", input_keep, "bool [B,N,E] the draw of input_dropout: True where an entry is kept");
      f("query_keep", query_keep, "bool [B,N,*] the draw of query_dropout: 2 H d wide, the halves outermost");
      f("value_keep", value_keep, "bool [B,N,E] the draw of value_dropout");
      f("weight_keep", weight_keep, "bool [B,N,*,*] the draw of attn_dropout, for each head and slot that is read");
    }
  };
  struct Parameters {
    layers::Linear to_queries;
    Tensor keys, values;
    optional<layers::LayerNorm> pre_norm, norm;
    optional<layers::BatchNorm> batch_norm;
    optional<layers::Linear> combine;
    optional<layers::LayerNorm> output_norm;
    void fields(auto&& f) {
      f("to_queries", to_queries, "to the first halves of all heads, then the second; without bias");
      f("keys", keys, "[*,*,2,*] half keys [H,n,2,d]");
      f("values", values, "[*,*] value of each slot");
      f("pre_norm", pre_norm, "of the input; present with pre_layernorm");
      f("norm", norm, "of half queries, one for all; present with use_layernorm");
      f("batch_norm", batch_norm, "of half queries; present without use_layernorm");
      f("combine", combine, "from all heads to E, without bias; present with concat_values_and_combine");
      f("output_norm", output_norm, "of the result; present with norm_output");
    }
  };
  using Outputs = ProductKeyLookup::Outputs;
  using State = None;  ///< each token by itself
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

/// How evenly the slots of a memory are read.
struct ProductKeyUsage {
  Tensor used;     // [] share of the slots read at least once
  Tensor kl;       // [] log S + sum p log p, p the share of the reads that each slot has: 0 where all are read alike
  Tensor gini;     // [] 0 where all are read alike, nearly 1 where one is
  Tensor holding;  // int [3] the fewest slots that have 50, 90 and 99 percent of the reads
};
/// indices int [...] of reads among S slots, counted by their weights [...] if given.
FOVEATE_API ProductKeyUsage product_key_usage(const Tensor& indices, const optional<Tensor>& weights, int64_t slots);

}  // namespace foveate
