// Input-independent attention: maps that are learned, or synthesized from each token alone, from handcrafted starts.   arXiv 2006.05174
#pragma once
#include <foveate/contract.h>
#include <foveate/linear.h>

namespace foveate {

inline constexpr Card input_independent{.slug = "input-independent",
                                        .title = "Input-independent attention weights",
                                        .paper = "2006.05174",
                                        .year = 2020,
                                        .family = Family::lowrank,
                                        .cost = "O(N^2 D)",
                                        .causality = Causality::strict,
                                        .equation = "out = softmax(S) v; S [H,L,L] learned from handcrafted patterns, or W2 relu(W1 x_i)"};

enum class InputIndependentKind { random, dense };
template <> inline constexpr auto names<InputIndependentKind> = std::array<std::string_view, 2>{"random", "dense"};

/// How the table starts.
enum class TableInit { handcrafted, free };
template <> inline constexpr auto names<TableInit> = std::array<std::string_view, 2>{"handcrafted", "free"};

/// The layer. It has no output projection.
struct FOVEATE_API InputIndependentAttention {
  static constexpr Form form{.card = &input_independent,
                             .summary = "multi-head self-attention by learned maps",
                             .returns = "[B,N,E] attended sequence",
                             .example = R"(layer = foveate.nn.InputIndependentAttention(embed_dim=32, num_heads=8, max_len=128)
out = layer(torch.randn(2, 100, 32))
assert out.shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t max_len = 512;
    InputIndependentKind kind = InputIndependentKind::random;
    TableInit table_init = TableInit::handcrafted;
    int64_t bottleneck = 16;
    bool causal = false;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H, a divisor of E");
      f("max_len", max_len, "longest sequence L; a shorter one uses the first rows and columns, so patterns that reach the end refer to L - 1");
      f("kind", kind, "random: a table for each head; dense: two maps of the head's part of each token, shared by heads");
      f("table_init", table_init,
        "handcrafted: the first seven heads start as seven patterns (itself, next, previous, left context, right context, end, start), further ones "
        "from N(0,1), fewer take the first patterns; free: all from N(0,1). Patterns are scores, and so flat for long L (authors' code)");
      f("bottleneck", bottleneck, "inner width of the kind dense (authors' code: 16)");
      f("causal", causal, "a query sees no token after it");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, head_gate;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part");
      f("head_gate", head_gate, "[*] multiplies each head's weights, [H]");
    }
  };
  struct Parameters {
    layers::Linear value;
    optional<Tensor> table;
    optional<layers::Linear> hidden, keys;
    void fields(auto&& f) {
      f("value", value, "value projection");
      f("table", table, "[*,*,*] scores of the kind random, H by L by L");
      f("hidden", hidden, "W1 of the kind dense, E/H to the bottleneck");
      f("keys", keys, "W2 of the kind dense, the bottleneck to L scores");
    }
  };
  struct State {
    Tensor v;
    void fields(auto&& f) { f("v", v, "[B,H,M,Dv] values so far"); }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);

  /// The seven patterns, [7,L,L].
  static Tensor patterns(int64_t length);
};

}  // namespace foveate
