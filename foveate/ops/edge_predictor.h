// edge_predictor: an LSTM that names the nodes of a sequence two by two, the start and the end of an edge, then those of the next.
//
//   h_t, c_t = LSTM(h_t-1, c_t-1, the node named last);  logit_i = node_i.h_t, for an end + distances[clip(i - start)].h_t
//   p = softmax(logit);  n_t = argmax log p, or argmax(log p + noise), or what a beam search finds
//
// What it names has no gradient; the log-probability of what was named has.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// A predictor on a sequence, all that does not change from step to step computed.
struct EdgePredictor {
  Tensor nodes;                    ///< [B,N,P] what scores them
  Tensor gates;                    ///< [B,N,4P] what a node adds to the gates i, f, g, o of the step after it was named, biases included
  Tensor first_gates;              ///< [G,4P] the same of the first step, for each list of edges
  Tensor recurrent;                ///< [4P,P] gates of h
  Tensor distances;                ///< [2K+1,P] what scores the distance of an end from its start
  optional<Tensor> key_mask = {};  ///< bool [B,N] True where a node can be named
  int64_t alpha = 1;               ///< edges for each node
  bool starts_given = false;       ///< edge e starts at node e mod N, which is not predicted
  bool causal = false;             ///< no end after its start
};

/// int [B,G,alpha N,2]: start and end of each edge. noise [B,G,2 alpha N,N] is added to log p; more than one beam keeps the best so many
/// beginnings, in place of the best next node.
FOVEATE_API Tensor predict_edges(const EdgePredictor& predictor, const optional<Tensor>& noise, int64_t beams);

/// log p of edges int [B,G,alpha N,2]: [B,G]
FOVEATE_API Tensor edge_log_prob(const EdgePredictor& predictor, const Tensor& edges);

}  // namespace foveate::ops
