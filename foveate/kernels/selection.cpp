// What chooses who attends to whom: PatchMatch, the largest of a row, k-means of codes; sums by group and back.
#include "kernels/selection.h"

#include "kernels/capability.h"
#include "kernels/rows_of_numbers.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

// --- PatchMatch ---------------------------------------------------------------------------------------------------------------------------

struct Neighbour {
  long y, x;
};
constexpr Neighbour neighbours[] = {{-1, 0}, {0, -1}, {1, 0}, {0, 1}};  // up, left, down, right

/// One head.
template <class scalar> struct Search {
  const Matches<scalar>& a;
  long bh;
  const scalar* k;
  const unsigned char* mask;

  scalar score(long i, const scalar* q, long j) const {
    const bool hidden = (a.causal && j > i) || (mask && !mask[j]);
    return hidden ? -static_cast<scalar>(infinity) : dot(q, k + j * a.D, a.D);
  }
  /// Tries a key for query i.
  void offer(long i, const scalar* q, long y, long x, long& match, scalar& best) const {
    if (y < 0 || y >= a.key_height || x < 0 || x >= a.key_width) return;
    const long j = y * a.key_width + x;
    if (j >= a.M) return;
    const scalar s = score(i, q, j);
    if (s > best) {
      best = s;
      match = j;
    }
  }
  /// Tries the matches of neighbours first ... last in `field`.
  void propagate(long i, const scalar* q, long first, long last, const long* field, long& match, scalar& best) const {
    const long y = i / a.query_width, x = i % a.query_width;
    for (long d = first; d < last; ++d) {
      const long ny = y + neighbours[d].y, nx = x + neighbours[d].x, j = ny * a.query_width + nx;
      if (ny < 0 || ny >= a.query_height || nx < 0 || nx >= a.query_width || j >= a.N || (a.causal && j > i)) continue;
      offer(i, q, field[j] / a.key_width - neighbours[d].y, field[j] % a.key_width - neighbours[d].x, match, best);
    }
  }
  /// Tries keys at random, around the match as it was at first.
  void wander(long it, long i, const scalar* q, long& match, scalar& best) const {
    const long y = match / a.key_width, x = match % a.key_width;
    for (long level = 0; level < a.levels; ++level) {
      const double* step = a.steps + (((it * a.levels + level) * a.heads + bh) * (a.N - a.m) + i - a.m) * 2;
      const auto by = [&](double u) { return static_cast<long>(rint(u * a.radius[level])); };
      offer(i, q, clamped(y + by(step[0]), 0, a.key_height - 1), clamped(x + by(step[1]), 0, a.key_width - 1), match, best);
    }
  }
};

template <class scalar> void match(const Matches<scalar>& a, long begin, long end) {
  for (long bh = begin; bh < end; ++bh) {
    const Search<scalar> search{a, bh, a.k + bh * a.M * a.D, a.key_mask ? a.key_mask + bh / a.H * a.M : nullptr};
    const long n = a.N - a.m;
    const scalar* q = a.q + bh * n * a.D;
    scalar* score = a.score + bh * n;
    const auto field_of = [&](long it) { return a.trail + (it * a.heads + bh) * a.N; };
    for (long it = 0; it <= a.iterations; ++it) {
      for (long i = 0; i < a.m; ++i) field_of(it)[i] = a.past[(it * a.heads + bh) * a.m + i];
    }
    for (long i = a.m; i < a.N; ++i) {
      const long first = clamped(a.start[bh * n + i - a.m], 0, a.M - 1);
      field_of(0)[i] = first;
      score[i - a.m] = search.score(i, q + (i - a.m) * a.D, first);
    }
    for (long it = 0; it < a.iterations; ++it) {
      const long* before = field_of(it);
      long* field = field_of(it + 1);
      for (long i = a.m; i < a.N; ++i) field[i] = before[i];
      const bool forwards = !a.scan || a.causal || it % 2 == 0;
      for (long count = 0; count < n; ++count) {
        const long at = forwards ? count : n - 1 - count, i = a.m + at;
        const scalar* q_i = q + at * a.D;
        if (a.scan) search.propagate(i, q_i, forwards ? 0 : 2, forwards ? 2 : 4, field, field[i], score[at]);
        else search.propagate(i, q_i, 0, 4, before, field[i], score[at]);
        search.wander(it, i, q_i, field[i], score[at]);
      }
    }
  }
}

// --- the largest of a row -------------------------------------------------------------------------------------------------------------------

template <class scalar> void largest(const scalar* x, long width, long k, long* places, long begin, long end) {
  for (long r = begin; r < end; ++r) {
    const scalar* row = x + r * width;
    long* place = places + r * k;  // in descending order of what stands there
    long count = 0;
    for (long j = 0; j < width; ++j) {
      if (count == k ? !(row[j] > row[place[k - 1]]) : row[j] == -static_cast<scalar>(infinity)) continue;
      long at = count < k ? count++ : k - 1;
      for (; at > 0 && row[place[at - 1]] < row[j]; --at) place[at] = place[at - 1];
      place[at] = j;
    }
    for (; count < k; ++count) place[count] = -1;
  }
}

// --- groups ---------------------------------------------------------------------------------------------------------------------------------

template <class scalar> void segment_sum(const scalar* x, const long* groups, long rows, long count, long width, scalar* sums, long begin, long end) {
  for (long bh = begin; bh < end; ++bh) {
    scalar* sum = sums + bh * count * width;
    for (long d = 0; d < count * width; ++d) sum[d] = 0;
    for (long n = 0; n < rows; ++n) {
      const long c = groups[bh * rows + n];
      if (c >= 0 && c < count) add_scaled(static_cast<scalar>(1), x + (bh * rows + n) * width, sum + c * width, width);
    }
  }
}

template <class scalar> void take_rows(const scalar* x, const long* groups, long rows, long count, long width, scalar* taken, long begin, long end) {
  for (long bh = begin; bh < end; ++bh) {
    for (long n = 0; n < rows; ++n) {
      const long c = groups[bh * rows + n];
      const bool is_there = c >= 0 && c < count;
      for (long d = 0; d < width; ++d) taken[(bh * rows + n) * width + d] = is_there ? x[(bh * count + c) * width + d] : 0;
    }
  }
}

template <class scalar> constexpr SelectionEngine<scalar> engine{match<scalar>, largest<scalar>, segment_sum<scalar>, take_rows<scalar>};

}  // namespace

const SelectionEngine<float> selection_float = engine<float>;
const SelectionEngine<double> selection_double = engine<double>;

// --- k-means of codes -----------------------------------------------------------------------------------------------------------------------

void cluster_codes(const Codes& a, long begin, long end) {
  for (long bh = begin; bh < end; ++bh) {
    const unsigned long* code = a.code + bh * a.N;
    const unsigned char* mask = a.mask ? a.mask + bh / a.H * a.N : nullptr;
    unsigned long* centre = a.centre + bh * a.C;
    long *groups = a.groups + bh * a.N, *counts = a.counts + bh * a.C, *ones = a.ones + bh * a.C * a.bits;
    for (long c = 0; c < a.C; ++c) centre[c] = code[a.seeds[c]];
    for (long it = 0; it < a.iterations; ++it) {
      for (long c = 0; c < a.C; ++c) counts[c] = 0;
      for (long n = 0; n < a.N; ++n) {
        if (mask && !mask[n]) {
          groups[n] = a.C + 1;
          continue;
        }
        long nearest = 0, least_bits = __builtin_popcountl(code[n] ^ centre[0]);
        for (long c = 1; c < a.C; ++c) {
          const long away = __builtin_popcountl(code[n] ^ centre[c]);
          nearest = away < least_bits ? c : nearest;
          least_bits = away < least_bits ? away : least_bits;
        }
        groups[n] = nearest;
        ++counts[nearest];
      }
      if (it + 1 == a.iterations) break;
      for (long r = 0; r < a.C * a.bits; ++r) ones[r] = 0;
      for (long n = 0; n < a.N; ++n) {
        if (groups[n] >= a.C) continue;
        for (long r = 0; r < a.bits; ++r) ones[groups[n] * a.bits + r] += static_cast<long>(code[n] >> r & 1);
      }
      for (long c = 0; c < a.C; ++c) {
        if (counts[c] == 0) {
          if (a.empty_codes) centre[c] = a.empty_codes[it * a.C + c];
          continue;
        }
        centre[c] = 0;
        for (long r = 0; r < a.bits; ++r) centre[c] |= static_cast<unsigned long>(2 * ones[c * a.bits + r] > counts[c]) << r;
      }
    }
  }
}

}  // namespace foveate::kernels::CPU_CAPABILITY
