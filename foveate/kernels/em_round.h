// Arguments of the kernel of em_round.
#pragma once

namespace foveate::kernels {

/// A part of a sequence is a range of its tiles of tokens, and has sums of its own. Rows of bases are filled up with zeros to two vectors.
template <class scalar> struct EmRound {
  const scalar* f;            // [B,C,N]
  const scalar* bases;        // [B,C,padded]
  const unsigned char* mask;  // [B,N], may be null
  scalar* z;                  // [B,N,K], may be null
  scalar *sums, *mass;        // [parts,B,C,padded] and [parts,B,padded], zeros to add to
  long B, C, N, K, padded, parts;
};

template <class scalar> struct EmRoundEngine {
  void (*run)(const EmRound<scalar>&, long begin, long end, scalar* scratch);  ///< tasks: parts of every b
  long (*room)(const EmRound<scalar>&);                                        ///< numbers of scratch
  long vector;                                                                 ///< widths are padded to a multiple of this
};

}  // namespace foveate::kernels
