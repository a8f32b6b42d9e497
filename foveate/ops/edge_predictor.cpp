#include <foveate/attention_formula.h>
#include <foveate/edge_predictor.h>
#include <foveate/op.h>

#include <limits>

namespace foveate::ops {
namespace {

constexpr double low = -std::numeric_limits<double>::infinity();

struct Cell {
  Tensor h, c;  // [...,P]
};

/// gates [...,4P]: i, f, g, o
Cell next(const Cell& cell, const Tensor& input, const Tensor& recurrent) {
  const auto z = (input + at::matmul(cell.h, recurrent.t())).chunk(4, -1);
  const Tensor c = z[1].sigmoid() * cell.c + z[0].sigmoid() * z[2].tanh();
  return {.h = z[3].sigmoid() * c.tanh(), .c = c};
}

/// log softmax of logits [...,N] over what is not hidden; zeros where all is.
Tensor log_softmax_of(const Tensor& logits, const Tensor& hidden) {
  const Tensor none = hidden.all(-1, true);
  return logits.masked_fill(hidden & none.logical_not(), low).log_softmax(-1).masked_fill(none, 0);
}

/// What the distances add to the logits of ends, given h [...,P] and starts [...]: [...,N]
Tensor by_distance(const Tensor& h, const Tensor& start, const Tensor& distances, const Tensor& numbers) {
  const int64_t K = (distances.size(0) - 1) / 2;
  const Tensor place = (numbers - start.unsqueeze(-1)).clamp(-K, K) + K;
  return at::matmul(h, distances.t()).gather(-1, place);
}

Tensor predict_edges_formula(const Tensor& nodes_given, const Tensor& gates_given, const Tensor& first_gates, const Tensor& recurrent_given,
                             const Tensor& distances_given, const optional<Tensor>& key_mask, const optional<Tensor>& noise, int64_t alpha,
                             bool starts_given, bool causal, int64_t beams) {
  const auto type = accumulation_type(nodes_given.scalar_type());
  const auto exact = [&](const Tensor& x) { return x.detach().to(type); };
  const Tensor nodes = exact(nodes_given), gates = exact(gates_given), recurrent = exact(recurrent_given), distances = exact(distances_given);
  const int64_t B = nodes.size(0), N = nodes.size(1), P = nodes.size(2), G = first_gates.size(0), W = beams, steps = 2 * alpha * N;
  const auto whole = nodes.options().dtype(at::kLong);
  const Tensor numbers = at::arange(N, whole), batch = at::arange(B, whole).view({B, 1, 1});
  Tensor input = exact(first_gates).unsqueeze(1).expand({B, G, W, 4 * P});
  Cell cell{.h = at::zeros({B, G, W, P}, nodes.options()), .c = at::zeros({B, G, W, P}, nodes.options())};
  Tensor score = at::zeros({W}, nodes.options());  // [B,G,W] log p of each beginning; of the first one all are the same
  score = score.masked_fill(at::arange(W, whole) > 0, low).expand({B, G, W});
  Tensor node = at::zeros({B, G, W}, whole), named = at::zeros({B, G, W, 0}, whole);
  for (int64_t t = 0; t < steps; ++t) {
    const bool is_end = t % 2 == 1;
    cell = next(cell, input, recurrent);
    if (!is_end && starts_given) {
      node = at::full({B, G, W}, t / 2 % N, whole);
    } else {
      Tensor logits = at::matmul(cell.h, nodes.transpose(1, 2).unsqueeze(1));  // [B,G,W,N]
      Tensor hidden = at::zeros_like(logits, at::kBool);
      if (is_end) {
        logits = logits + by_distance(cell.h, node, distances, numbers);
        if (causal) hidden = hidden | (numbers > node.unsqueeze(-1));
      }
      if (key_mask) hidden = hidden | key_mask->logical_not().view({B, 1, 1, N});
      Tensor worth = log_softmax_of(logits, hidden);
      if (noise) worth = worth + exact(*noise).select(2, t).unsqueeze(2);
      if (W == 1) {
        node = worth.argmax(-1);
      } else {
        const auto [best, order] = (score.unsqueeze(3) + worth).flatten(2).sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
        score = best.narrow(2, 0, W);
        node = order.narrow(2, 0, W).remainder(N);
        const Tensor parent = order.narrow(2, 0, W).floor_divide(N).unsqueeze(3);
        const auto follow = [&](const Tensor& x) { return x.gather(2, parent.expand({B, G, W, x.size(3)})); };
        cell = {.h = follow(cell.h), .c = follow(cell.c)};
        named = follow(named);
      }
    }
    named = at::cat({named, node.unsqueeze(3)}, 3);
    input = at::index(gates, c10::List<optional<Tensor>>({batch, node}));
  }
  return named.select(2, 0).unflatten(2, {alpha * N, 2}).contiguous();
}

Tensor predict_edges_meta(const Tensor& nodes, const Tensor&, const Tensor& first_gates, const Tensor&, const Tensor&, const optional<Tensor>&,
                          const optional<Tensor>&, int64_t alpha, bool, bool, int64_t) {
  return nodes.new_empty_symint({extent(nodes, 0), extent(first_gates, 0), extent(nodes, 1) * alpha, 2}, nodes.options().dtype(at::kLong));
}

Tensor edge_log_prob_formula(const Tensor& nodes_given, const Tensor& gates_given, const Tensor& first_gates, const Tensor& recurrent_given,
                             const Tensor& distances_given, const optional<Tensor>& key_mask, const Tensor& edges, bool starts_given, bool causal) {
  const auto type = accumulation_type(nodes_given.scalar_type());
  const Tensor nodes = nodes_given.to(type), gates = gates_given.to(type), recurrent = recurrent_given.to(type);
  const int64_t B = nodes.size(0), N = nodes.size(1), P = nodes.size(2), G = first_gates.size(0), T = edges.size(2);
  const Tensor zero = at::zeros({B, G, P}, nodes.options());
  if (edges.numel() == 0) return (zero.sum(-1) + nodes.sum() * 0).to(nodes_given.scalar_type());
  const auto whole = nodes.options().dtype(at::kLong);
  const Tensor batch = at::arange(B, whole).view({B, 1, 1});
  const Tensor fed = at::index(gates, c10::List<optional<Tensor>>({batch, edges.flatten(2)}));  // [B,G,2T,4P]
  Cell cell{.h = zero, .c = zero};
  std::vector<Tensor> hs;
  for (int64_t t = 0; t < 2 * T; ++t) {
    cell = next(cell, t == 0 ? first_gates.to(type).unsqueeze(0).expand({B, G, 4 * P}) : fed.select(2, t - 1), recurrent);
    hs.push_back(cell.h);
  }
  const Tensor h = at::stack(hs, 2).unflatten(2, {T, 2}), numbers = at::arange(N, whole);  // [B,G,T,2,P]
  const Tensor start = edges.select(3, 0), end = edges.select(3, 1);                       // [B,G,T]
  const auto log_p = [&](const Tensor& logits, const Tensor& hidden, const Tensor& node) {
    return log_softmax_of(logits, key_mask ? hidden | key_mask->logical_not().view({B, 1, 1, N}) : hidden).gather(3, node.unsqueeze(3)).squeeze(3);
  };
  const auto by_node = [&](const Tensor& of) { return at::matmul(of, nodes.transpose(1, 2).unsqueeze(1)); };  // [B,G,T,N]
  const Tensor h_end = h.select(3, 1), logits = by_node(h_end) + by_distance(h_end, start, distances_given.to(type), numbers);
  const Tensor nothing = at::zeros_like(logits, at::kBool);
  Tensor total = log_p(logits, causal ? numbers > start.unsqueeze(3) : nothing, end).sum(-1);
  if (!starts_given) total = total + log_p(by_node(h.select(3, 0)), nothing, start).sum(-1);
  return total.to(nodes_given.scalar_type()).contiguous();
}

Tensor edge_log_prob_meta(const Tensor& nodes, const Tensor&, const Tensor& first_gates, const Tensor&, const Tensor&, const optional<Tensor>&,
                          const Tensor&, bool, bool) {
  return nodes.new_empty_symint({extent(nodes, 0), extent(first_gates, 0)});
}

}  // namespace

FOVEATE_OP(predict_edges,
           "_predict_edges(Tensor nodes, Tensor gates, Tensor first_gates, Tensor recurrent, Tensor distances, Tensor? key_mask, Tensor? noise, "
           "int alpha, bool starts_given, bool causal, int beams) -> Tensor",
           {.formula = &predict_edges_formula, .meta = &predict_edges_meta})
FOVEATE_OP(edge_log_prob,
           "_edge_log_prob(Tensor nodes, Tensor gates, Tensor first_gates, Tensor recurrent, Tensor distances, Tensor? key_mask, Tensor edges, "
           "bool starts_given, bool causal) -> Tensor",
           {.formula = &edge_log_prob_formula, .meta = &edge_log_prob_meta})

Tensor predict_edges(const EdgePredictor& p, const optional<Tensor>& noise, int64_t beams) {
  TORCH_CHECK_VALUE(p.alpha > 0 && beams > 0, "predict_edges: alpha and beams must be positive, got ", p.alpha, " and ", beams);
  return primitive<decltype(predict_edges_formula)>("foveate::_predict_edges")
      .call(p.nodes.detach(), p.gates.detach(), p.first_gates.detach(), p.recurrent.detach(), p.distances.detach(), p.key_mask, noise, p.alpha,
            p.starts_given, p.causal, beams);
}

Tensor edge_log_prob(const EdgePredictor& p, const Tensor& edges) {
  return primitive<decltype(edge_log_prob_formula)>("foveate::_edge_log_prob")
      .call(p.nodes, p.gates, p.first_gates, p.recurrent, p.distances, p.key_mask, edges, p.starts_given, p.causal);
}

}  // namespace foveate::ops
