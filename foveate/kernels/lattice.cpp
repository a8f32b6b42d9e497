// Splat, blur and slice on the permutohedral lattice.
#include "kernels/lattice.h"

#include "kernels/capability.h"
#include "kernels/row_sums.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

typedef unsigned long Word;

template <class scalar> inline scalar root(scalar x) {
  if constexpr (sizeof(scalar) == sizeof(double)) return __builtin_sqrt(x);
  else return __builtin_sqrtf(x);
}

/// Where point p lies in an array of samples, rows `row` wide.
template <class scalar> inline long place(const Lattice<scalar>& a, long p, long row, long apart) {
  if (a.samples == 1) return p * row;
  return p / a.N * apart + p % a.N * row;
}
template <class scalar> inline bool hidden(const Lattice<scalar>& a, long p) { return a.mask && !a.mask[place(a, p, 1, a.mask_apart)]; }

/// Column k = 1..d of E is s_k times 1 above row k, -k in row k, 0 below.
template <class scalar> struct Embedding {
  scalar s[lattice_most];
  explicit Embedding(long d) {
    for (long k = 1; k <= d; ++k) s[k] = root(scalar(2) / 3) * static_cast<scalar>(d + 1) / root(static_cast<scalar>(k * (k + 1)));
  }
};

template <class scalar> inline scalar nearest(scalar x) {
  constexpr scalar limit = static_cast<scalar>(lattice_limit);
  if (!(x > -limit)) return x == x ? -limit : 0;
  if (x > limit) return limit;
  if constexpr (sizeof(scalar) == sizeof(double)) return __builtin_nearbyint(x);
  else return __builtin_nearbyintf(x);
}

template <class scalar> void simplex(const Lattice<scalar>& a, long begin, long end) {
  const long d = a.d, P = a.points();
  const Embedding<scalar> E(d);
  const scalar every = static_cast<scalar>(d + 1);
  for (long p = begin; p < end; ++p) {
    const scalar* f = a.features + place(a, p, d, a.features_apart);
    scalar e[lattice_most], r[lattice_most], rest[lattice_most], sorted[lattice_most] = {};
    scalar after = 0, sum = 0;
    for (long i = d; i > 0; --i) {
      const scalar x = E.s[i] * f[i - 1];
      e[i] = after - static_cast<scalar>(i) * x;
      after += x;
    }
    e[0] = after;
    for (long i = 0; i <= d; ++i) {
      r[i] = nearest(e[i] / every);
      rest[i] = e[i] - r[i] * every;
      sum += r[i];
    }
    for (long i = 0; i <= d; ++i) {
      long above = 0;
      for (long j = 0; j < i; ++j) above += rest[j] >= rest[i];
      for (long j = i + 1; j <= d; ++j) above += rest[j] > rest[i];
      above += static_cast<long>(sum);
      const scalar wrap = above < 0 ? 1 : above > d ? -1 : 0;
      r[i] += wrap;
      const long rank = clamped(above + static_cast<long>(wrap) * (d + 1), 0, d);
      a.rank[p * (d + 1) + i] = static_cast<unsigned char>(rank);
      if (i < d) a.quotient[p * d + i] = static_cast<int>(r[i]);
      sorted[d - rank] = e[i] / every - r[i];
    }
    a.weights[p] = sorted[0] + 1 - sorted[d];
    for (long k = 1; k <= d; ++k) a.weights[k * P + p] = sorted[k] - sorted[k - 1];
  }
}

template <class scalar> void bounds(Lattice<scalar>& a) {
  bool any = false;
  for (long p = 0; p < a.points(); ++p) {
    if (hidden(a, p)) continue;
    for (long i = 0; i < a.d; ++i) {
      const int x = a.quotient[p * a.d + i];
      a.low[i] = any && a.low[i] < x ? a.low[i] : x;
      a.high[i] = any && a.high[i] > x ? a.high[i] : x;
    }
    any = true;
  }
  for (long i = 0; i < a.d && !any; ++i) a.low[i] = a.high[i] = 0;
}

template <int W> inline int compare(const Word* x, const Word* y) {
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w) {
    if (x[w] != y[w]) return x[w] < y[w] ? -1 : 1;
  }
  return 0;
}

/// The key of point p's vertex k: coordinates of rank d + 1 - k or more have a quotient one less. Two below the lowest is 0.
template <int W, class scalar> inline void make_key(const Lattice<scalar>& a, long p, long k, Word* key) {
  for (int w = 0; w < W; ++w) key[w] = 0;
  const int* quotient = a.quotient + p * a.d;
  const unsigned char* rank = a.rank + p * (a.d + 1);
  for (long i = 0; i < a.d; ++i) {
    const long q = static_cast<long>(quotient[i]) - (rank[i] >= a.d + 1 - k) - a.low[i] + 2;
    key[a.word[i]] += static_cast<Word>(q) << a.shift[i];
  }
}

/// Sorts keys and the points beside them, by bytes from the last to the first; bytes that all have in common cost one reading.
template <int W> void sort(Word*& keys, int*& points, Word*& other_keys, int*& other_points, long n) {
  for (int w = W - 1; w >= 0; --w) {
    for (int shift = 0; shift < 64; shift += 8) {
      long place[257] = {};
      for (long i = 0; i < n; ++i) ++place[(keys[i * W + w] >> shift & 255) + 1];
      if (place[(keys[w] >> shift & 255) + 1] == n) {
        Word above = 0;  // nothing is left above in this word
        if (shift < 56) {
          for (long i = 0; i < n; ++i) above |= keys[i * W + w] >> (shift + 8);
        }
        if (above == 0) break;
        continue;
      }
      for (int b = 0; b < 256; ++b) place[b + 1] += place[b];
      for (long i = 0; i < n; ++i) {
        const long to = place[keys[i * W + w] >> shift & 255]++;
        for (int v = 0; v < W; ++v) other_keys[to * W + v] = keys[i * W + v];
        other_points[to] = points[i];
      }
      Word* const k = keys;
      keys = other_keys;
      other_keys = k;
      int* const p = points;
      points = other_points;
      other_points = p;
    }
  }
}

template <int W, class scalar> void group_of(Lattice<scalar>& a, long k, Word* scratch) {
  const long P = a.points();
  Word *keys = scratch, *other_keys = scratch + P * W;
  int *points = reinterpret_cast<int*>(scratch + 2 * P * W), *other_points = points + P;
  long n = 0;
  for (long p = 0; p < P; ++p) {
    a.vertex[k * P + p] = -1;
    if (hidden(a, p)) continue;
    make_key<W>(a, p, k, keys + n * W);
    points[n++] = static_cast<int>(p);
  }
  if (n > 0) sort<W>(keys, points, other_keys, other_points, n);
  Word* const found = a.keys + k * P * W;
  int* const start = a.start + k * (P + 1);
  long count = 0;
  for (long i = 0; i < n; ++i) {
    if (i == 0 || compare<W>(keys + i * W, keys + (i - 1) * W) != 0) {
      for (int w = 0; w < W; ++w) found[count * W + w] = keys[i * W + w];
      start[count++] = static_cast<int>(i);
    }
    a.order[k * P + i] = points[i];
    a.vertex[k * P + points[i]] = static_cast<int>(count - 1);
  }
  start[count] = static_cast<int>(n);
  a.count[k] = count;
}

template <class scalar> void group(Lattice<scalar>& a, long begin, long end, Word* scratch) {
  for (long k = begin; k < end; ++k) {
    switch (a.words) {
      case 1: group_of<1>(a, k, scratch); break;
      case 2: group_of<2>(a, k, scratch); break;
      case 4: group_of<4>(a, k, scratch); break;
      default: group_of<8>(a, k, scratch);
    }
  }
}

/// Calls f(k, from, to) for the vertices [begin, end) of all groups, as vertices of each group.
template <class scalar, class F> inline void each_group(const Lattice<scalar>& a, long begin, long end, const F& f) {
  for (long k = 0; k <= a.d; ++k) {
    const long from = most(begin, a.first[k]) - a.first[k], to = least(end, a.first[k + 1]) - a.first[k];
    if (from < to) f(k, from, to);
  }
}

template <class scalar> void splat(const Lattice<scalar>& a, const scalar* source, scalar factor, long begin, long end, scalar* rows) {
  const long P = a.points(), width = a.width();
  each_group(a, begin, end, [&](long k, long from, long to) {
    const int *start = a.start + k * (P + 1), *order = a.order + k * P;
    for (long v = from; v < to; ++v) {
      scalar* row = rows + (a.first[k] + v) * width;
      for (long i = 0; i < width; ++i) row[i] = 0;
      for (long i = start[v]; i < start[v + 1]; ++i) {
        const long p = order[i], sample = a.samples == 1 ? 0 : p / a.N;
        add_row(factor * a.weights[k * P + p], source + place(a, p, a.c, a.values_apart), row + sample * a.c, a.c);
      }
    }
  });
}

/// What is added to a key for its neighbour: one more in coordinate `direction` and one less in the remainder, or the reverse; a remainder
/// that passes 0 takes one from all quotients.
template <class scalar> inline void step_of(const Lattice<scalar>& a, long direction, bool up, bool wraps, Word* delta) {
  for (long w = 0; w < a.words; ++w) delta[w] = 0;
  for (long i = 0; i < a.d; ++i) {
    const long plus = (i == direction) - static_cast<long>(wraps);
    delta[a.word[i]] += static_cast<Word>(up ? plus : -plus) << a.shift[i];
  }
}

/// The rows of the vertices that lie one step from those of a group, found by walking both in order.
template <int W> struct Neighbours {
  const Word* keys;
  long at, count, first;
  Word delta[W];

  template <class scalar> Neighbours(const Lattice<scalar>& a, long k, long direction, bool up, long from) {
    const bool wraps = up ? k == 0 : k == a.d;
    const long group = wraps ? (up ? a.d : 0) : up ? k - 1 : k + 1;
    keys = a.keys + group * a.points() * W;
    count = a.count[group];
    first = a.first[group];
    step_of(a, direction, up, wraps, delta);
    Word wanted[W];
    target(a.keys + (k * a.points() + from) * W, wanted);
    long low = 0, high = count;
    while (low < high) {
      const long middle = (low + high) / 2;
      if (compare<W>(keys + middle * W, wanted) < 0) low = middle + 1;
      else high = middle;
    }
    at = low;
  }
  void target(const Word* key, Word* wanted) const {
    for (int w = 0; w < W; ++w) wanted[w] = key[w] + delta[w];
  }
  /// The row of the neighbour of the next vertex, -1 where there is none.
  long next(const Word* key) {
    Word wanted[W];
    target(key, wanted);
    while (at < count && compare<W>(keys + at * W, wanted) < 0) ++at;
    return at < count && compare<W>(keys + at * W, wanted) == 0 ? first + at : -1;
  }
};

template <int W, class scalar> void blur_by(const Lattice<scalar>& a, long direction, long begin, long end, const scalar* from, scalar* to,
                                            const scalar* zeros) {
  const long width = a.width();
  each_group(a, begin, end, [&](long k, long v0, long v1) {
    Neighbours<W> up(a, k, direction, true, v0), down(a, k, direction, false, v0);
    const Word* keys = a.keys + k * a.points() * W;
    for (long v = v0; v < v1; ++v) {
      const long i = up.next(keys + v * W), j = down.next(keys + v * W), row = a.first[k] + v;
      const scalar* __restrict__ here = from + row * width;
      const scalar* __restrict__ above = i < 0 ? zeros : from + i * width;
      const scalar* __restrict__ below = j < 0 ? zeros : from + j * width;
      scalar* __restrict__ blurred = to + row * width;
      for (long n = 0; n < width; ++n) blurred[n] = here[n] + scalar(0.5) * (above[n] + below[n]);
    }
  });
}

template <class scalar> void blur(const Lattice<scalar>& a, long direction, long begin, long end, const scalar* from, scalar* to,
                                  const scalar* zeros) {
  switch (a.words) {
    case 1: blur_by<1>(a, direction, begin, end, from, to, zeros); break;
    case 2: blur_by<2>(a, direction, begin, end, from, to, zeros); break;
    case 4: blur_by<4>(a, direction, begin, end, from, to, zeros); break;
    default: blur_by<8>(a, direction, begin, end, from, to, zeros);
  }
}

/// The part of a table's row that belongs to point p, of its vertex k.
template <class scalar> inline const scalar* row_of(const Lattice<scalar>& a, const scalar* rows, long k, long p) {
  const long sample = a.samples == 1 ? 0 : p / a.N;
  return rows + (a.first[k] + a.vertex[k * a.points() + p]) * a.width() + sample * a.c;
}

template <class scalar> void slice(const Lattice<scalar>& a, const scalar* rows, scalar factor, long begin, long end) {
  for (long p = begin; p < end; ++p) {
    scalar* out = a.out + place(a, p, a.c, a.values_apart);
    for (long n = 0; n < a.c; ++n) out[n] = 0;
    if (hidden(a, p)) continue;
    for (long k = 0; k <= a.d; ++k) add_row(factor * a.weights[k * a.points() + p], row_of(a, rows, k, p), out, a.c);
  }
}

template <class scalar> void backward(const Lattice<scalar>& a, const scalar* sums, const scalar* grads, scalar factor, long begin, long end) {
  const long d = a.d;
  const Embedding<scalar> E(d);
  for (long p = begin; p < end; ++p) {
    const long at = place(a, p, a.c, a.values_apart);
    scalar* d_f = a.d_features ? a.d_features + place(a, p, d, a.features_apart) : nullptr;
    if (a.d_values) {
      for (long n = 0; n < a.c; ++n) a.d_values[at + n] = 0;
    }
    if (hidden(a, p)) {
      for (long i = 0; d_f && i < d; ++i) d_f[i] = 0;
      continue;
    }
    scalar d_w[lattice_most] = {};
    for (long k = 0; k <= d; ++k) {
      const scalar* grad = row_of(a, grads, k, p);
      if (a.d_values) add_row(a.weights[k * a.points() + p], grad, a.d_values + at, a.c);
      if (d_f) d_w[k] = dot(grad, a.values + at, a.c) + factor * dot(row_of(a, sums, k, p), a.d_out + at, a.c);
    }
    if (!d_f) continue;
    scalar before = 0;
    for (long i = 0; i <= d; ++i) {  // weight k rises with the k-th smallest coordinate, weight k + 1 falls
      const long k = d - a.rank[p * (d + 1) + i];
      const scalar d_e = (d_w[k] - d_w[k == d ? 0 : k + 1]) / static_cast<scalar>(d + 1);
      if (i > 0) d_f[i - 1] = E.s[i] * (before - static_cast<scalar>(i) * d_e);
      before += d_e;
    }
  }
}

template <class scalar> constexpr LatticeEngine<scalar> engine{.simplex = simplex<scalar>,
                                                               .bounds = bounds<scalar>,
                                                               .group = group<scalar>,
                                                               .splat = splat<scalar>,
                                                               .blur = blur<scalar>,
                                                               .slice = slice<scalar>,
                                                               .backward = backward<scalar>};

}  // namespace

const LatticeEngine<float> lattice_float = engine<float>;
const LatticeEngine<double> lattice_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
