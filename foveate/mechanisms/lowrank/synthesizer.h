// Synthesizer: attention whose scores come from a table or from each token alone, out = softmax(S) v.   arXiv 2005.00743
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>

namespace foveate {

inline constexpr Card synthesizer{
    .slug = "synthesizer",
    .title = "Synthesizer",
    .paper = "2005.00743",
    .year = 2020,
    .family = Family::lowrank,
    .cost = "O(N^2 D)",
    .causality = Causality::strict,
    .equation = "out = softmax(S) v; S a table R, R1 R2^T, W2 relu(W1 x_i), the outer product of two maps of x_i, or a mixture"};

/// Where scores come from.
enum class SynthesizerKind { random, factorized_random, dense, dense_query, factorized_dense, vanilla };
template <> inline constexpr auto names<SynthesizerKind> =
    std::array<std::string_view, 6>{"random", "factorized_random", "dense", "dense_query", "factorized_dense", "vanilla"};

/// How the scores of several kinds are joined.
enum class SynthesizerMixture { sum, softmax_alpha, sigmoid_alpha };
template <> inline constexpr auto names<SynthesizerMixture> = std::array<std::string_view, 3>{"sum", "softmax_alpha", "sigmoid_alpha"};

/// Which two entries make the score of key j in factorized_dense, of a and c entries.
enum class SynthesizerTile { outer, repeat };
template <> inline constexpr auto names<SynthesizerTile> = std::array<std::string_view, 2>{"outer", "repeat"};

/// The layer: synthesized scores, softmax, values.
struct FOVEATE_API Synthesizer {
  static constexpr Form form{
      .card = &synthesizer,
      .summary = "multi-head self-attention with synthesized scores",
      .returns = "[B,N,Eo] attended sequence; Eo = E, or H Dv without output projection",
      .example = R"(layer = foveate.nn.Synthesizer(embed_dim=32, num_heads=4, max_len=128, kinds=["vanilla", "dense"], mixture="softmax_alpha")
out = layer(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t max_len = 512;
    optional<std::vector<SynthesizerKind>> kinds;
    SynthesizerMixture mixture = SynthesizerMixture::softmax_alpha;
    SynthesizerTile tile = SynthesizerTile::outer;
    bool causal = false;
    bool softmax = true;
    optional<double> scale;
    optional<int64_t> head_dim, value_dim, hidden_dim;
    int64_t rank = 8;
    optional<int64_t> rows;
    bool fixed = false;
    bool bias = false;
    bool out_projection = true;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H");
      f("max_len", max_len, "longest sequence L; a shorter one uses the first rows and columns");
      f("kinds", kinds, "where scores come from, one or several; default dense");
      f("mixture", mixture,
        "how several are joined: their sum; weighted by softmax(alpha) (paper); two of them by 1 - sigmoid(alpha) and sigmoid(alpha) (authors' "
        "code)");
      f("tile", tile,
        "factorized_dense: key j takes entries j div c and j mod c (paper), or j mod a and j mod c, which repeats scores unless a and c "
        "have no common divisor (leaderj1001)");
      f("causal", causal, "a query sees no token after it");
      f("softmax", softmax, "False takes scores as weights, hidden ones as 0 (leaderj1001's random kind)");
      f("scale", scale, "multiplies q.k of the kind vanilla, default 1/sqrt(D) (authors' code: 1)");
      f("head_dim", head_dim, "width D of queries and keys of vanilla and dense_query, default E/H");
      f("value_dim", value_dim, "width Dv of a head's values, default E/H");
      f("hidden_dim", hidden_dim, "inner width of the kind dense, default E (paper; leaderj1001: max_len)");
      f("rank", rank, "columns of the tables of factorized_random (paper: 8; authors' code: 16)");
      f("rows", rows, "a of factorized_dense, a divisor of max_len; c = max_len / a; default the one next below its root (leaderj1001: 4)");
      f("fixed", fixed, "whether the table of the kind random is not trained");
      f("bias", bias, "whether query, key and value projections have biases (leaderj1001: yes; authors' code: no)");
      f("out_projection", out_projection, "whether heads are projected back to E (leaderj1001: no)");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part");
    }
  };
  struct Parameters {
    layers::Linear value;
    optional<layers::Linear> out, query, key;
    optional<Tensor> table, fixed_table, row_factors, column_factors;
    optional<layers::Linear> hidden;
    optional<Tensor> hidden_keys, scores_bias, query_keys;
    optional<layers::Linear> tile_rows, tile_columns;
    optional<Tensor> alpha;
    void fields(auto&& f) {
      f("value", value, "value projection");
      f("out", out, "output projection, without bias");
      f("query", query, "query projection, of vanilla and dense_query");
      f("key", key, "key projection, of vanilla");
      f("table", table, "[*,*,*] scores of the kind random, heads by L by L");
      f("fixed_table", fixed_table, "[*,*,*] the same, not trained", buffer);
      f("row_factors", row_factors, "[*,*,*] R1, heads by L by rank");
      f("column_factors", column_factors, "[*,*,*] R2, heads by L by rank");
      f("hidden", hidden, "W1 of the kind dense, the heads' inner widths in a row");
      f("hidden_keys", hidden_keys, "[*,*,*] W2 of the kind dense, heads by L by inner width");
      f("scores_bias", scores_bias, "[*,*] its bias, heads by L");
      f("query_keys", query_keys, "[*,*,*] what relu(q) meets in dense_query, heads by D by L");
      f("tile_rows", tile_rows, "the first map of factorized_dense, the heads' a entries in a row");
      f("tile_columns", tile_columns, "the second, c entries");
      f("alpha", alpha, "[*] weights of a mixture: one for each kind, or one of the second kind");
    }
  };
  struct State {
    Tensor v, k;
    void fields(auto&& f) {
      f("v", v, "[B,H,M,Dv] values so far");
      f("k", k, "[B,H,M,D] keys so far, of vanilla; D = 0 without");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
