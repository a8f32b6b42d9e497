#include <foveate/edge_attention.h>
#include <foveate/edge_predictor.h>
#include <foveate/init.h>
#include <foveate/sac.h>

namespace foveate {
namespace {

/// The last n of m + n tokens attend along edges [B,G,L,2].
ops::AlongEdges along(const auto& o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& edges, const optional<Tensor>& key_mask,
                      const optional<double>& scale) {
  const Size n = extent(q, 2), m = extent(k, 2) - n;
  const Tensor first = at::ones_symint({m}, edges.options()).sum();
  const Tensor a = edges.select(3, 0), b = edges.select(3, 1);  // [B,G,L]
  std::vector<Tensor> from{a}, to{b};
  if (o.undirected) {
    from.push_back(b);
    to.push_back(a);
  }
  if (o.self_loops) {
    const Tensor self = at::arange(m, m + n, a.options()).expand_symint({extent(a, 0), extent(a, 1), n});
    from.push_back(self);
    to.push_back(self);
  }
  const Tensor start = at::cat(from, 2);
  Tensor end = at::cat(to, 2);
  if (o.causal) end = end.masked_fill(end > start, -1);
  return ops::edge_attention(q, k, v, end, {.from = start - first, .key_mask = key_mask, .scale = scale});
}

Tensor gumbel(c10::SymIntArrayRef shape, const at::TensorOptions& options) {
  const Tensor u = at::rand_symint(shape, options.dtype(at::kDouble));
  return -(-(u.clamp_min(1e-300)).log()).log().to(options.dtype());
}

}  // namespace

EdgeAttention::Outputs EdgeAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const auto found = along(o, in.q, in.k, in.v, in.edges, in.key_mask, o.scale);
  return {.out = found.out, .degree = found.degree};
}

std::pair<EdgeAttention::Outputs, EdgeAttention::State> EdgeAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& state) {
  return layers::step_with_cache<EdgeAttention>("edge_attention", o, p, in, state);
}

void SparseAdaptiveConnection::check(const Options& o) {
  constexpr auto form_name = "sparse_adaptive_connection";
  layers::check_heads(form_name, o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.alpha > 0 && o.lstm_hidden > 0 && o.beams > 0, form_name, ": alpha, lstm_hidden and beams must be positive, got ", o.alpha,
                    ", ", o.lstm_hidden, " and ", o.beams);
  TORCH_CHECK_VALUE(o.max_distance >= 0, form_name, ": max_distance must not be negative, got ", o.max_distance);
}

SparseAdaptiveConnection::Parameters SparseAdaptiveConnection::init(const Options& o) {
  const int64_t E = o.embed_dim, P = o.lstm_hidden;
  const double bound = 1 / std::sqrt(static_cast<double>(P));
  const auto projection = [&] { return layers::Linear::init(E, E, false); };
  return {.predictor = {.input = layers::uniform({4 * P, E}, bound),
                        .recurrent = layers::uniform({4 * P, P}, bound),
                        .bias = layers::zeros({4 * P}),
                        .start = layers::normal({E}, 1),
                        .node = layers::default_weight({P, E}),
                        .distance = layers::normal({2 * o.max_distance + 1, P}, bound),
                        .head = o.head_adaptive ? optional(layers::normal({o.num_heads, E}, 1)) : std::nullopt},
          .query = projection(),
          .key = projection(),
          .value = projection(),
          .out = projection()};
}

SparseAdaptiveConnection::Outputs SparseAdaptiveConnection::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto& P = p.predictor;
  TORCH_CHECK_VALUE(P.head.has_value() == o.head_adaptive, "sparse_adaptive_connection: head must be given with head_adaptive, and only then");
  const Size B = extent(in.x, 0), N = extent(in.x, 1);
  const int64_t lists = o.head_adaptive ? o.num_heads : 1;
  const Tensor seen = o.detach_input ? in.x.detach() : in.x;
  const Tensor first = P.head ? P.start + *P.head : P.start.unsqueeze(0);  // [G,E]
  const ops::EdgePredictor predictor{.nodes = at::linear(seen, P.node),
                                     .gates = at::linear(seen, P.input, P.bias),
                                     .first_gates = at::linear(first, P.input, P.bias),
                                     .recurrent = P.recurrent,
                                     .distances = P.distance,
                                     .key_mask = in.key_mask,
                                     .alpha = o.alpha,
                                     .starts_given = o.source == EdgeSource::given,
                                     .causal = o.causal};
  Tensor edges;
  if (in.edges) {
    edges = *in.edges;
  } else {
    optional<Tensor> noise;
    if (o.mode == EdgeChoice::sample) noise = in.noise ? *in.noise : gumbel({B, lists, N * (2 * o.alpha), N}, in.x.options());
    edges = ops::predict_edges(predictor, noise, o.mode == EdgeChoice::beam ? o.beams : 1);  // [B,G,alpha N,2]
  }
  const auto heads = [&](const layers::Linear& of) { return split_heads(of(in.x), o.num_heads); };
  Tensor attended = along(o, heads(p.query), heads(p.key), heads(p.value), edges, in.key_mask, {}).out;
  attended = masked_rows(attended, in.key_mask);
  return {.out = p.out(merge_heads(attended)), .used_edges = edges, .edge_log_prob = ops::edge_log_prob(predictor, edges)};
}

FOVEATE_MECHANISM(EdgeAttention)
FOVEATE_MECHANISM(SparseAdaptiveConnection)

}  // namespace foveate
