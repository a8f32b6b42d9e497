// Arguments of attention over a binary partition, forward and backward: ops/partition_attention.h says what it computes.
#pragma once
#include "kernels/rows.h"

namespace foveate::kernels {

/// One level of the partition: tokens at level 0, spans above.
struct PartitionLevel {
  long nodes;         // of the longest sequence
  long key_row;       // where they begin among keys
  long first, asked;  // nodes [first, first + asked) ask
  long query_row;     // where those begin among queries
};

template <class scalar> struct Partition {
  long B, H, D, Dv, levels;
  const PartitionLevel* level;  // [levels]
  const long* length;           // [B] tokens
  long step, clip_dist, types;
  bool causal, right_overflow;
  Rows q, k, v;  // [B,H,rows,D], [B,H,nodes,D], [B,H,nodes,Dv]
  long rows, nodes;
  scalar scale;
  const scalar* by_type;  // [B,H,tokens that ask,types]: q . table; may be null
  scalar* out;            // [B,H,rows,Dv], zero before

  Rows d_out;         // [B,H,rows,Dv]
  scalar* d_q;        // [B,H,rows,D], zero before, as are the others
  scalar* d_k;        // [B,H,nodes,D]
  scalar* d_v;        // [B,H,nodes,Dv]
  scalar* d_by_type;  // [B,H,tokens that ask,types]; null where by_type is
};

}  // namespace foveate::kernels
