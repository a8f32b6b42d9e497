// Which instruction set a kernel runs on. Every file of this folder is compiled once per capability, inside its own namespace, and
// fills the table `Kernels` of that capability; `kernels()` picks one table when the library is first used.
//
// Nothing here may use a standard container or a tensor: a template instantiated with AVX-512 flags would leak under a shared name.
#pragma once

namespace foveate::kernels {

struct MergeAttention;

/// One entry per kernel. Kernels work on the half-open range [begin, end) of their outermost index; the caller spreads ranges over threads.
struct Kernels {
  void (*merge_attention_float)(const MergeAttention&, long begin, long end);
  void (*merge_attention_double)(const MergeAttention&, long begin, long end);
};

namespace DEFAULT { extern const Kernels table; }
namespace AVX2 { extern const Kernels table; }
namespace AVX512 { extern const Kernels table; }

}  // namespace foveate::kernels
