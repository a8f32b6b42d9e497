// Convolutions from one map to many features, each applied to its query at once. Features lie in vectors and places are broadcast, so that a
// tile of places stays in registers over all taps; taps that reach beyond the map are not visited.
#include "kernels/position_lambda.h"

#include "kernels/capability.h"
#include "kernels/row_sums.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

constexpr int narrow = vector_bytes == 64 ? 16 : 8, wide = narrow * 3 / 2;  // places whose sums stay in registers

/// Calls f with the tile that leaves less over of n places, as a constant.
template <class F> inline void with_tile(long n, const F& f) {
  if ((n + wide - 1) / wide * wide < (n + narrow - 1) / narrow * narrow) f.template operator()<wide>();
  else f.template operator()<narrow>();
}

/// A half-open range.
struct Range {
  long begin, end;
};
/// The taps by which any of `count` queries from s on reads a value that there is.
inline Range taps_of(const Window& w, long s, long count) { return {most(0, w.padding - s - count + 1), least(w.taps, w.padding + w.values - s)}; }
/// The taps by which any of `count` values from r on is read by a query that there is.
inline Range taps_to(const Window& w, long r, long count) { return {most(0, r + w.padding - w.queries + 1), least(w.taps, r + count + w.padding)}; }
/// The queries that read a value that there is by any of `count` taps from a on.
inline Range queries_of(const Window& w, long a, long count) {
  return {most(0, w.padding - a - count + 1), least(w.queries, w.padding + w.values - a)};
}

/// The value at the start of row r of an image (b v) and u.
template <class scalar> inline const scalar* value_row(const PositionLambda<scalar>& a, long image, long u, long r) {
  return a.values + ((image * a.U + u) * a.down.values + r) * a.row_of_values + a.margin;
}
template <class scalar> inline scalar* lambda_row(const PositionLambda<scalar>& a, long image, long s) {
  return a.d_lambdas + ((image * a.down.queries + s) * a.row_of_lambdas + a.margin) * a.features;
}
template <class scalar> inline long tap(const PositionLambda<scalar>& a, long u, long i, long j) {
  return ((u * a.down.taps + i) * a.across.taps + j) * a.features;
}

/// lambdas [T,features] of the queries (y, x), (y, x + 1), ... of an image.
template <int T, class scalar> inline void make_lambdas(const PositionLambda<scalar>& a, long image, long y, long x, scalar* lambdas) {
  constexpr long W = lanes<scalar>;
  const Range rows = taps_of(a.down, y, 1), columns = taps_of(a.across, x, T);
  for (long k = 0; k < a.features; k += W) {
    Vec<scalar> sum[T];
#pragma GCC unroll 24
    for (int t = 0; t < T; ++t) sum[t] = a.bias ? vec(a.bias + k) : Vec<scalar>{};
    for (long u = 0; u < a.U; ++u) {
      for (long i = rows.begin; i < rows.end; ++i) {
        const scalar* values = value_row(a, image, u, y + i - a.down.padding) + x - a.across.padding;
        for (long j = columns.begin; j < columns.end; ++j) {
          const Vec<scalar> weight = vec(a.weight + tap(a, u, i, j) + k);
#pragma GCC unroll 24
          for (int t = 0; t < T; ++t) sum[t] += splat(values[j + t]) * weight;
        }
      }
    }
#pragma GCC unroll 24
    for (int t = 0; t < T; ++t) vec(lambdas + t * a.features + k) = sum[t];
  }
}

template <class scalar> void forward(const PositionLambda<scalar>& a, long begin, long end, scalar* scratch) {
  const long S = a.down.queries * a.across.queries;
  with_tile(a.across.queries, [&]<int T>() {
    for (long task = begin; task < end; ++task) {
      const long image = task / a.down.queries, b = image / a.V, v = image % a.V, y = task % a.down.queries;
      for (long x = 0; x < a.across.queries; x += T) {
        make_lambdas<T>(a, image, y, x, scratch);
        const long count = least(T, a.across.queries - x), s = y * a.across.queries + x;
        for (long h = 0; h < a.H; ++h) {
          scalar* out = a.out + ((b * a.H + h) * a.V + v) * S + s;
          for (long t = 0; t < count; ++t) out[t] = dot(a.q + ((b * S + s + t) * a.H + h) * a.features, scratch + t * a.features, a.features);
        }
      }
    }
  });
}

template <class scalar> void backward_q(const PositionLambda<scalar>& a, long begin, long end, scalar* scratch) {
  const long S = a.down.queries * a.across.queries;
  with_tile(a.across.queries, [&]<int T>() {
    for (long task = begin; task < end; ++task) {
      const long b = task / a.down.queries, y = task % a.down.queries;
      for (long x = 0; x < a.across.queries; x += T) {
        const long count = least(T, a.across.queries - x), s = y * a.across.queries + x;
        for (long v = 0; v < a.V; ++v) {
          make_lambdas<T>(a, b * a.V + v, y, x, scratch);
          for (long h = 0; h < a.H; ++h) {
            const scalar* g = a.d_out + ((b * a.H + h) * a.V + v) * S + s;
            for (long t = 0; t < count; ++t) add_row(g[t], scratch + t * a.features, a.d_q + ((b * S + s + t) * a.H + h) * a.features, a.features);
          }
        }
      }
    }
  });
}

template <class scalar> void backward_lambdas(const PositionLambda<scalar>& a, long begin, long end) {
  const long S = a.down.queries * a.across.queries;
  for (long task = begin; task < end; ++task) {
    const long image = a.first + task / a.down.queries, b = image / a.V, v = image % a.V, y = task % a.down.queries;
    scalar* row = lambda_row(a, task / a.down.queries, y);
    for (long n = -a.margin * a.features; n < (a.row_of_lambdas - a.margin) * a.features; ++n) row[n] = 0;
    for (long x = 0; x < a.across.queries; ++x) {
      const long s = y * a.across.queries + x;
      for (long h = 0; h < a.H; ++h) {
        const scalar g = a.d_out[((b * a.H + h) * a.V + v) * S + s];
        add_row(g, a.q + ((b * S + s) * a.H + h) * a.features, row + x * a.features, a.features);
      }
    }
  }
}

/// d_value = sum over the taps by which it is read, and over features, of weight and gradient.
template <class scalar> void backward_values(const PositionLambda<scalar>& a, long begin, long end) {
  constexpr long W = lanes<scalar>;
  with_tile(a.across.values, [&]<int T>() {
    for (long task = begin; task < end; ++task) {
      const long r = task % a.down.values, u = task / a.down.values % a.U, image = task / a.down.values / a.U;
      const Range rows = taps_to(a.down, r, 1);
      scalar* d_values = a.d_values + (((a.first + image) * a.U + u) * a.down.values + r) * a.across.values;
      for (long x = 0; x < a.across.values; x += T) {
        const Range columns = taps_to(a.across, x, T);
        Vec<scalar> sum[T] = {};
        for (long i = rows.begin; i < rows.end; ++i) {
          const scalar* row = lambda_row(a, image, r + a.down.padding - i) + (x + a.across.padding) * a.features;
          for (long j = columns.begin; j < columns.end; ++j) {
            for (long k = 0; k < a.features; k += W) {
              const Vec<scalar> weight = vec(a.weight + tap(a, u, i, j) + k);
              const scalar* given = row - j * a.features + k;
#pragma GCC unroll 24
              for (int t = 0; t < T; ++t) sum[t] += vec(given + t * a.features) * weight;
            }
          }
        }
        const long count = least(T, a.across.values - x);
#pragma GCC unroll 24
        for (int t = 0; t < T; ++t) {
          if (t < count) d_values[x + t] = total<scalar>(sum[t]);
        }
      }
    }
  });
}

/// d_weight = sum over images and the queries that read a value by the tap; an image at a time, so that no sum becomes long.
template <class scalar> void backward_weight(const PositionLambda<scalar>& a, long begin, long end) {
  constexpr long W = lanes<scalar>;
  with_tile(a.across.taps, [&]<int T>() {
    for (long task = begin; task < end; ++task) {
      const long u = task / a.down.taps, i = task % a.down.taps;
      const Range rows = queries_of(a.down, i, 1);
      for (long image = 0; image < a.images; ++image) {
        for (long j = 0; j < a.across.taps; j += T) {
          const Range columns = queries_of(a.across, j, T);
          for (long k = 0; k < a.features; k += W) {
            Vec<scalar> sum[T] = {};
            for (long y = rows.begin; y < rows.end; ++y) {
              const scalar* values = value_row(a, a.first + image, u, y + i - a.down.padding) + j - a.across.padding;
              const scalar* given = lambda_row(a, image, y) + k;
              for (long x = columns.begin; x < columns.end; ++x) {
                const Vec<scalar> g = vec(given + x * a.features);
#pragma GCC unroll 24
                for (int t = 0; t < T; ++t) sum[t] += splat(values[x + t]) * g;
              }
            }
            const long count = least(T, a.across.taps - j);
#pragma GCC unroll 24
            for (int t = 0; t < T; ++t) {
              if (t < count) vec(a.d_weight + tap(a, u, i, j + t) + k) += sum[t];
            }
          }
        }
      }
    }
  });
}

template <class scalar> constexpr PositionLambdaEngine<scalar> engine{.forward = forward<scalar>,
                                                                      .backward_q = backward_q<scalar>,
                                                                      .backward_lambdas = backward_lambdas<scalar>,
                                                                      .backward_values = backward_values<scalar>,
                                                                      .backward_weight = backward_weight<scalar>,
                                                                      .vector = lanes<scalar>,
                                                                      .margin = wide,
                                                                      .tile = wide};

}  // namespace

const PositionLambdaEngine<float> position_lambda_float = engine<float>;
const PositionLambdaEngine<double> position_lambda_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
