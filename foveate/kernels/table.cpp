// The kernels of one capability, together.
#include "kernels/capability.h"

namespace foveate::kernels::CPU_CAPABILITY {

const Kernels table{.merge_attention_float = merge_attention_float,
                    .merge_attention_double = merge_attention_double,
                    .merge_backward_float = merge_backward_float,
                    .merge_backward_double = merge_backward_double,
                    .softmax_float = &softmax_float,
                    .softmax_double = &softmax_double,
                    .linear_float = &linear_float,
                    .linear_double = &linear_double,
                    .linear_whole_float = &linear_whole_float,
                    .linear_whole_double = &linear_whole_double,
                    .window_sum_float = &window_sum_float,
                    .window_sum_double = &window_sum_double,
                    .product_keys_float = &product_keys_float,
                    .product_keys_double = &product_keys_double,
                    .lattice_float = &lattice_float,
                    .lattice_double = &lattice_double,
                    .cluster_float = &cluster_float,
                    .cluster_double = &cluster_double,
                    .partition_float = &partition_float,
                    .partition_double = &partition_double,
                    .edges_float = &edges_float,
                    .edges_double = &edges_double,
                    .selection_float = &selection_float,
                    .selection_double = &selection_double,
                    .cluster_codes = cluster_codes,
                    .inner_sums_float = &inner_sums_float,
                    .inner_sums_double = &inner_sums_double,
                    .projected_features_float = &projected_features_float,
                    .projected_features_double = &projected_features_double,
                    .position_lambda_float = &position_lambda_float,
                    .position_lambda_double = &position_lambda_double,
                    .em_round_float = &em_round_float,
                    .em_round_double = &em_round_double};

}  // namespace foveate::kernels::CPU_CAPABILITY
