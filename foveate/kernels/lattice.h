// Arguments of the kernels of lattice_filter: one table of vertices, of the points of one sample or of several.
#pragma once

namespace foveate::kernels {

inline constexpr long lattice_most = 17;         // d + 1
inline constexpr long lattice_words = 8;         // of a key, at most
inline constexpr long lattice_limit = 1L << 30;  // of a coordinate's quotient

/// The vertices of a table are in d + 1 groups: group k holds the points' vertices k, whose coordinates are k modulo d + 1. A key is the
/// quotients of the coordinates, packed so that neighbours' keys differ by a constant; each group is sorted by its keys.
template <class scalar> struct Lattice {
  long d, c, samples, N;      // points are samples * N
  const scalar* features;     // [samples,N,d], samples `features_apart`
  const scalar* values;       // [samples,N,c], samples `values_apart`
  const unsigned char* mask;  // [samples,N], samples `mask_apart`; 0 hides; may be null
  long features_apart, values_apart, mask_apart;

  scalar* weights;                            // [d+1,points]
  unsigned char* rank;                        // [points,d+1]
  int* quotient;                              // [points,d] of vertex 0
  int low[lattice_most], high[lattice_most];  // of the quotients of points that are not hidden

  long words;                                   // of a key: 1, 2, 4 or 8
  int word[lattice_most], shift[lattice_most];  // where each quotient stands in a key
  unsigned long* keys;                          // [d+1,points,words] of each group's vertices
  int* order;                                   // [d+1,points] points by their vertex
  int* start;                                   // [d+1,points+1] where those of each vertex begin
  int* vertex;                                  // [d+1,points] vertex of each point within its group
  long count[lattice_most];                     // vertices of each group
  long first[lattice_most + 1];                 // rows before each group, of all vertices

  scalar* out;          // like values
  const scalar* d_out;  // like values
  scalar* d_values;     // like values; may be null
  scalar* d_features;   // like features; may be null

  long points() const { return samples * N; }
  long width() const { return samples * c; }  // of a row of the table
};

template <class scalar> struct LatticeEngine {
  void (*simplex)(const Lattice<scalar>&, long begin, long end);                                                   ///< tasks: points
  void (*bounds)(Lattice<scalar>&);                                                                                ///< of all points
  void (*group)(Lattice<scalar>&, long begin, long end, unsigned long* scratch);                                   ///< tasks: groups
  void (*splat)(const Lattice<scalar>&, const scalar* source, scalar factor, long begin, long end, scalar* rows);  ///< tasks: vertices
  void (*blur)(const Lattice<scalar>&, long direction, long begin, long end, const scalar* from, scalar* to,
               const scalar* zeros);                                                               ///< tasks: vertices
  void (*slice)(const Lattice<scalar>&, const scalar* rows, scalar factor, long begin, long end);  ///< tasks: points
  /// tasks: points; `sums` are the blurred values, `grads` the blurred gradients
  void (*backward)(const Lattice<scalar>&, const scalar* sums, const scalar* grads, scalar factor, long begin, long end);
};

}  // namespace foveate::kernels
