// SAC: a graph on the sequence, edges named one by one by an LSTM; out_i = sum over edges i -> j of softmax_j(q_i.k_j / sqrt(D)) v_j.
// arXiv 2003.09833
#pragma once
#include <foveate/contract.h>
#include <foveate/heads.h>
#include <foveate/kv_cache.h>

namespace foveate {

inline constexpr Card sac{.slug = "sac",
                          .title = "SAC: sparse adaptive connection",
                          .paper = "2003.09833",
                          .year = 2020,
                          .family = Family::select,
                          .cost = "O(N alpha D)",
                          .causality = Causality::logits_only,
                          .equation = "out_i = sum over edges i -> j of softmax_j(scale q_i.k_j) v_j, edges named by an LSTM"};

namespace detail {
/// What edges mean.
void edge_fields(auto&& f, auto& o) {
  f("undirected", o.undirected, "an edge a -> b is also one b -> a");
  f("self_loops", o.self_loops, "every token sees itself");
  f("causal", o.causal, "no token sees a later one: such edges are left out");
}
}  // namespace detail

/// Attention along edges that are given: any fixed rule of who sees whom, or a learned one.
struct FOVEATE_API EdgeAttention {
  static constexpr Form form{.card = &sac, .summary = "attention along a list of edges", .example = R"(q, k, v = torch.randn(3, 1, 2, 10, 8)
i = torch.arange(10)
edges = torch.stack([i, (i + 3) % 10], -1)[None, None]
out, degree = foveate.edge_attention(q, k, v, edges, undirected=True)
assert out.shape == (1, 2, 10, 8) and (degree == 3).all())"};
  struct Options {
    bool undirected = false;
    bool self_loops = true;
    bool causal = false;
    optional<double> scale;
    void fields(auto&& f) {
      detail::edge_fields(f, *this);
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v, edges;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,H,N,D] keys");
      f("v", v, "[B,H,N,Dv] values");
      f("edges", edges,
        "int [B,*,*,2] for all heads alike or for each, edges a -> b: a sees b; one that stands there several times counts once, one with a -1 not "
        "at all; in a step, tokens are numbered from the first one of all");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part as a key; of all so far in a step");
    }
  };
  struct Outputs {
    Tensor out, degree;
    void fields(auto&& f) {
      f("out", out, "[B,H,N,Dv] attended values; zeros where a token sees none");
      f("degree", degree, "int [B,*,N] how many keys a token sees");
    }
  };
  using Parameters = None;
  using State = layers::KVCache;
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Outputs, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// How the next node is chosen.
enum class EdgeChoice {
  greedy,  ///< the most probable one
  sample,  ///< at random, by its probability
  beam,    ///< the best of several beginnings
};
template <> inline constexpr auto names<EdgeChoice> = std::array<std::string_view, 3>{"greedy", "sample", "beam"};

/// Where the starts of edges come from.
enum class EdgeSource {
  predicted,  ///< the LSTM names them, too
  given,      ///< edge e starts at token e mod N
};
template <> inline constexpr auto names<EdgeSource> = std::array<std::string_view, 2>{"predicted", "given"};

/// The LSTM that names edges, node by node, and what it scores nodes with.
struct EdgePredictorParameters {
  Tensor input, recurrent, bias, start, node, distance;
  optional<Tensor> head;
  void fields(auto&& f) {
    f("input", input, "[*,*] 4P by E: what the token named last adds to the gates i, f, g, o");
    f("recurrent", recurrent, "[*,*] 4P by P: what the state adds to them");
    f("bias", bias, "[*] 4P, of the gates");
    f("start", start, "[E] stands for the token named last in the first step");
    f("node", node, "[*,E] P by E: what makes a token one that the state can score");
    f("distance", distance, "[*,*] 2K+1 by P: scored by the state for the distance of an edge's end from its start");
    f("head", head, "[*,E] added to start for each head, where edges are predicted for each");
  }
};

/// The layer: predicts edges of a sequence, then attends along them. Its log-probability of the edges is trained with a reward, by the
/// gradient of sum (reward - baseline) log p.
struct FOVEATE_API SparseAdaptiveConnection {
  static constexpr Form form{.card = &sac,
                             .summary = "self-attention along edges that an LSTM predicts",
                             .example = R"(layer = foveate.nn.SparseAdaptiveConnection(embed_dim=32, num_heads=4, alpha=3)
out, edges, edge_log_prob = layer(torch.randn(2, 20, 32))
assert out.shape == (2, 20, 32) and edges.shape == (2, 1, 60, 2) and edge_log_prob.shape == (2, 1))"};
  struct Options {
    int64_t embed_dim = 0;
    int64_t num_heads = 0;
    int64_t alpha = 5;
    int64_t lstm_hidden = 64;
    int64_t max_distance = 16;
    EdgeChoice mode = EdgeChoice::greedy;
    int64_t beams = 5;
    EdgeSource source = EdgeSource::predicted;
    bool undirected = false;
    bool self_loops = true;
    bool causal = false;
    bool head_adaptive = false;
    bool detach_input = false;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E", required);
      f("num_heads", num_heads, "heads H, a divisor of E", required);
      f("alpha", alpha, "edges for each token (paper: 5, 10, 15, 30)");
      f("lstm_hidden", lstm_hidden, "width P of the predictor's state");
      f("max_distance", max_distance, "K: ends farther from their start than this are as if they were so far");
      f("mode", mode,
        "the next node: greedy, the most probable; sample, at random by its probability (training); beam, of the best beginnings (paper, in tests)");
      f("beams", beams, "beginnings that a beam search keeps (paper: 5)");
      f("source", source, "starts of edges: predicted by the LSTM, or given, edge e starting at token e mod N");
      detail::edge_fields(f, *this);
      f("head_adaptive", head_adaptive, "each head has edges of its own");
      f("detach_input", detach_input, "the log-probability passes no gradient to the sequence");
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask, noise, edges;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence");
      f("key_mask", key_mask, "bool [B,N] True where a token takes part");
      f("noise", noise, "[B,*,*,N] the draw of mode sample for each of 2 alpha N steps, added to log p; default Gumbel noise");
      f("edges", edges, "int [B,*,*,2] alpha N edges instead of predicted ones, say those of an earlier layer; their log-probability is returned");
    }
  };
  struct Parameters {
    EdgePredictorParameters predictor;
    layers::Linear query, key, value, out;
    void fields(auto&& f) {
      f("predictor", predictor, "names edges");
      f("query", query, "query projection");
      f("key", key, "key projection");
      f("value", value, "value projection");
      f("out", out, "output projection");
    }
  };
  struct Outputs {
    Tensor out, used_edges, edge_log_prob;
    void fields(auto&& f) {
      f("out", out, "[B,N,E] attended sequence");
      f("used_edges", used_edges, "int [B,*,*,2] the edges, for all heads or for each");
      f("edge_log_prob", edge_log_prob, "[B,*] log-probability of all edges together");
    }
  };
  static void check(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&);
};

}  // namespace foveate
