// Which instruction set a kernel runs on. Every file of this folder is compiled once per capability, inside its own namespace, and
// fills the table `Kernels` of that capability; `kernels()` picks one table when the library is first used.
//
// Nothing here may use a standard container or a tensor: a template instantiated with AVX-512 flags would leak under a shared name.
#pragma once

namespace foveate::kernels {

struct MergeAttention;
template <class scalar> struct Softmax;
template <class scalar> struct Linear;
template <class scalar> struct WindowSumEngine;
template <class scalar> struct ProductKeysEngine;
template <class scalar> struct LatticeEngine;
template <class scalar> struct InnerSumsEngine;
template <class scalar> struct PositionLambdaEngine;
template <class scalar> struct EmRoundEngine;
template <class scalar> struct Cluster;
template <class scalar> struct Partition;
template <class scalar> struct Edges;
template <class scalar> struct Matches;
template <class scalar> struct ProjectedFeatures;
struct Codes;

/// Kernels work on the half-open range [begin, end) of their tasks; the caller spreads ranges over threads.
template <class scalar> struct SoftmaxEngine {
  void (*pack)(const Softmax<scalar>&, long begin, long end);                       ///< tasks: key tiles of every (b, key head)
  void (*forward)(const Softmax<scalar>&, long begin, long end, scalar* scratch);   ///< tasks: splits of query tiles of every (b, h)
  void (*few)(const Softmax<scalar>&, long begin, long end, scalar* scratch);       ///< tasks: splits of every (b, key head); needs no pack
  void (*backward)(const Softmax<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: parts of every (b, key head)
  long (*forward_room)(const Softmax<scalar>&);                                     ///< numbers of scratch
  long (*few_room)(const Softmax<scalar>&);
  long (*backward_room)(const Softmax<scalar>&);
  long (*size_across)(const Softmax<scalar>&, long width);  ///< numbers of a packed row of that width, turned
  long (*size_along)(const Softmax<scalar>&, long width);   ///< the same in order
  long vector;                                              ///< widths are padded to a multiple of this
};

template <class scalar> struct LinearEngine {
  void (*forward)(const Linear<scalar>&, long begin, long end, scalar* scratch);   ///< tasks: every (b, key head)
  void (*backward)(const Linear<scalar>&, long begin, long end, scalar* scratch);  ///< the same
  long (*forward_room)(const Linear<scalar>&);                                     ///< numbers of scratch
  long (*backward_room)(const Linear<scalar>&);
};

/// Linear attention without an order.
template <class scalar> struct WholeEngine {
  void (*sum_keys)(const Linear<scalar>&, long begin, long end, scalar* scratch);      ///< tasks: parts of the keys of every (b, key head)
  void (*join_keys)(const Linear<scalar>&, long begin, long end);                      ///< tasks: every (b, key head)
  void (*read)(const Linear<scalar>&, long begin, long end, scalar* scratch);          ///< tasks: parts of the queries of every (b, key head)
  void (*sum_queries)(const Linear<scalar>&, long begin, long end, scalar* scratch);   ///< the same
  void (*join_queries)(const Linear<scalar>&, long begin, long end);                   ///< tasks: every (b, key head)
  void (*give_to_keys)(const Linear<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: parts of the keys of every (b, key head)
  long (*sums)(const Linear<scalar>&);                                                 ///< numbers of sums
  long (*room)(const Linear<scalar>&);                                                 ///< numbers of scratch
};

template <class scalar> struct ProjectedFeaturesEngine {
  void (*forward)(const ProjectedFeatures<scalar>&, long begin, long end, scalar* scratch);   ///< tasks: see tasks()
  void (*backward)(const ProjectedFeatures<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: every (b, h)
  long (*forward_room)(const ProjectedFeatures<scalar>&);                                     ///< numbers of scratch
  long (*backward_room)(const ProjectedFeatures<scalar>&);
  long vector;  ///< widths are padded to a multiple of this
};

template <class scalar> struct ClusterEngine {
  void (*forward)(const Cluster<scalar>&, long begin, long end, scalar* scratch);   ///< tasks: clusters of every (b, h)
  void (*backward)(const Cluster<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: every (b, h)
  long (*forward_room)(const Cluster<scalar>&);                                     ///< numbers of scratch
  long (*backward_room)(const Cluster<scalar>&);
};

template <class scalar> struct PartitionEngine {
  void (*forward)(const Partition<scalar>&, long begin, long end, scalar* scratch);   ///< tasks: every (b, h)
  void (*backward)(const Partition<scalar>&, long begin, long end, scalar* scratch);  ///< the same
  long (*forward_room)(const Partition<scalar>&);                                     ///< numbers of scratch
  long (*backward_room)(const Partition<scalar>&);
};

template <class scalar> struct EdgeEngine {
  void (*list)(const Edges<scalar>&, long begin, long end, long* scratch);       ///< tasks: every list; scratch: keys
  void (*forward)(const Edges<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: rows of every (b, h); scratch: longest row
  void (*backward_rows)(const Edges<scalar>&, long begin, long end);             ///< the same
  void (*backward_columns)(const Edges<scalar>&, long begin, long end);          ///< tasks: every (b, h)
};

/// What chooses: who attends to whom.
template <class scalar> struct SelectionEngine {
  void (*match)(const Matches<scalar>&, long begin, long end);                                               ///< tasks: every (b, h)
  void (*largest)(const scalar* x, long width, long k, long* places, long begin, long end);                  ///< tasks: rows
  void (*segment_sum)(const scalar* x, const long* groups, long rows, long count, long width, scalar* sums,  ///< tasks: every (b, h)
                      long begin, long end);
  void (*take_rows)(const scalar* x, const long* groups, long rows, long count, long width, scalar* taken, long begin, long end);
};

struct Kernels {
  void (*merge_attention_float)(const MergeAttention&, long begin, long end);
  void (*merge_attention_double)(const MergeAttention&, long begin, long end);
  void (*merge_backward_float)(const MergeAttention&, long begin, long end);
  void (*merge_backward_double)(const MergeAttention&, long begin, long end);
  const SoftmaxEngine<float>* softmax_float;
  const SoftmaxEngine<double>* softmax_double;
  const LinearEngine<float>* linear_float;
  const LinearEngine<double>* linear_double;
  const WholeEngine<float>* linear_whole_float;
  const WholeEngine<double>* linear_whole_double;
  const WindowSumEngine<float>* window_sum_float;
  const WindowSumEngine<double>* window_sum_double;
  const ProductKeysEngine<float>* product_keys_float;
  const ProductKeysEngine<double>* product_keys_double;
  const LatticeEngine<float>* lattice_float;
  const LatticeEngine<double>* lattice_double;
  const ClusterEngine<float>* cluster_float;
  const ClusterEngine<double>* cluster_double;
  const PartitionEngine<float>* partition_float;
  const PartitionEngine<double>* partition_double;
  const EdgeEngine<float>* edges_float;
  const EdgeEngine<double>* edges_double;
  const SelectionEngine<float>* selection_float;
  const SelectionEngine<double>* selection_double;
  void (*cluster_codes)(const Codes&, long begin, long end);  ///< tasks: every (b, h)
  const InnerSumsEngine<float>* inner_sums_float;
  const InnerSumsEngine<double>* inner_sums_double;
  const ProjectedFeaturesEngine<float>* projected_features_float;
  const ProjectedFeaturesEngine<double>* projected_features_double;
  const PositionLambdaEngine<float>* position_lambda_float;
  const PositionLambdaEngine<double>* position_lambda_double;
  const EmRoundEngine<float>* em_round_float;
  const EmRoundEngine<double>* em_round_double;
};

#define FOVEATE_CAPABILITY(name)                                            \
  namespace name {                                                          \
  void merge_attention_float(const MergeAttention&, long begin, long end);  \
  void merge_attention_double(const MergeAttention&, long begin, long end); \
  void merge_backward_float(const MergeAttention&, long begin, long end);   \
  void merge_backward_double(const MergeAttention&, long begin, long end);  \
  extern const SoftmaxEngine<float> softmax_float;                          \
  extern const SoftmaxEngine<double> softmax_double;                        \
  extern const LinearEngine<float> linear_float;                            \
  extern const LinearEngine<double> linear_double;                          \
  extern const WholeEngine<float> linear_whole_float;                       \
  extern const WholeEngine<double> linear_whole_double;                     \
  extern const ProjectedFeaturesEngine<float> projected_features_float;     \
  extern const ProjectedFeaturesEngine<double> projected_features_double;   \
  extern const WindowSumEngine<float> window_sum_float;                     \
  extern const WindowSumEngine<double> window_sum_double;                   \
  extern const ProductKeysEngine<float> product_keys_float;                 \
  extern const ProductKeysEngine<double> product_keys_double;               \
  extern const LatticeEngine<float> lattice_float;                          \
  extern const LatticeEngine<double> lattice_double;                        \
  extern const ClusterEngine<float> cluster_float;                          \
  extern const ClusterEngine<double> cluster_double;                        \
  extern const PartitionEngine<float> partition_float;                      \
  extern const PartitionEngine<double> partition_double;                    \
  extern const EdgeEngine<float> edges_float;                               \
  extern const EdgeEngine<double> edges_double;                             \
  extern const SelectionEngine<float> selection_float;                      \
  extern const SelectionEngine<double> selection_double;                    \
  void cluster_codes(const Codes&, long begin, long end);                   \
  extern const InnerSumsEngine<float> inner_sums_float;                     \
  extern const InnerSumsEngine<double> inner_sums_double;                   \
  extern const PositionLambdaEngine<float> position_lambda_float;           \
  extern const PositionLambdaEngine<double> position_lambda_double;         \
  extern const EmRoundEngine<float> em_round_float;                         \
  extern const EmRoundEngine<double> em_round_double;                       \
  extern const Kernels table;                                               \
  }
FOVEATE_CAPABILITY(DEFAULT)
FOVEATE_CAPABILITY(AVX2)
FOVEATE_CAPABILITY(AVX512)
#undef FOVEATE_CAPABILITY

}  // namespace foveate::kernels
