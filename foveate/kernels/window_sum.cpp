// Sums of windows with fractional ends, from running sums of which only those near the window are kept, and the adjoint of that.
#include "kernels/window_sum.h"

#include "kernels/capability.h"
#include "kernels/vec.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// One end of a window: all tokens before `cut` are on one side of it, and of the token beside it the share `part`.
struct End {
  long cut;
  double part;
};

inline double within(double x, double low, double high) { return x > high ? high : x < low ? low : x; }

/// An extent in whole tokens and the rest of one. An extent that is not a number has a rest that is none.
inline End split(double extent, double low, double high) {
  const double e = within(extent, low, high), whole = __builtin_floor(e == e ? e : low);
  return {static_cast<long>(whole), e - whole};
}

/// The window of query t starts `part` before token `cut`, in token cut - 1.
template <class scalar> inline End start_of(const WindowSum<scalar>& a, long b, long q, long h) {
  const long t = a.N - a.Q + q;
  const End e = split(static_cast<double>(a.left[(b * a.Q + q) * a.H + h]), static_cast<double>(t - a.N + 1), static_cast<double>(t));
  return {t - e.cut, e.part};
}

/// The window of query t ends `part` behind the start of token `cut`.
template <class scalar> inline End end_of(const WindowSum<scalar>& a, long b, long q, long h) {
  const long t = a.N - a.Q + q;
  if (!a.right) return {t + 1, 0};
  const End e = split(static_cast<double>(a.right[(b * a.Q + q) * a.H + h]), static_cast<double>(-t), static_cast<double>(a.N - 1 - t));
  return {t + e.cut + 1, e.part};
}

/// A part of a token is of one that there is, but for an extent that is not a number.
template <class scalar> inline bool is_token(const WindowSum<scalar>& a, long t) { return t >= 0 && t < a.N; }

/// Where a task works: channels [first, last) of sequence b, positions [begin, end).
struct Place {
  long b, first, last, begin, end;
};
template <class scalar> inline Place place_of(const WindowSum<scalar>& a, long task, long positions) {
  const long chunks = (positions + a.chunk - 1) / a.chunk, block = task / chunks % a.blocks(), begin = task % chunks * a.chunk;
  return {task / chunks / a.blocks(), block * a.width, least(a.C, (block + 1) * a.width), begin, least(positions, begin + a.chunk)};
}

/// Calls f with each head that has channels in [first, last), and with those channels counted from `first`.
template <class scalar, class F> inline void each_head(const WindowSum<scalar>& a, const Place& at, const F& f) {
  const long R = a.C / a.H;
  for (long h = at.first / R; h * R < at.last; ++h) f(h, most(h * R, at.first) - at.first, least((h + 1) * R, at.last) - at.first);
}

/// P_j, the sum of the tokens from some token on and before j, is row j mod ring.
template <class scalar> void forward(const WindowSum<scalar>& a, long begin, long end, double* scratch) {
  double* const nothing = scratch + a.ring * a.width;  // [width] zeros of type scalar
  for (long c = 0; c < a.width; ++c) nothing[c] = 0;
  const scalar* zeros = reinterpret_cast<const scalar*>(nothing);
  const auto row = [&](long j) { return scratch + (j & (a.ring - 1)) * a.width; };
  for (long task = begin; task < end; ++task) {
    const Place at = place_of(a, task, a.Q);
    const long width = at.last - at.first, before = a.N - a.Q;
    const scalar* x = a.x + at.b * a.N * a.C + at.first;  // [N,width], rows C apart
    long known = most(0, before + at.begin - a.reach_left);
    for (long c = 0; c < width; ++c) row(known)[c] = 0;
    for (long q = at.begin; q < at.end; ++q) {
      for (const long needed = least(a.N, before + q + a.reach_right + 1); known < needed; ++known) {
        const double* __restrict__ sum = row(known);
        double* __restrict__ next = row(known + 1);
        const scalar* __restrict__ x_j = x + known * a.C;
        for (long c = 0; c < width; ++c) next[c] = sum[c] + static_cast<double>(x_j[c]);
      }
      scalar* out_q = a.out + (at.b * a.Q + q) * a.C + at.first;
      each_head(a, at, [&](long h, long from, long to) {
        const End start = start_of(a, at.b, q, h), stop = end_of(a, at.b, q, h);
        const double* low = row(start.cut);
        const double* high = row(stop.cut);
        const scalar* first = start.part == 0 || !is_token(a, start.cut - 1) ? zeros : x + (start.cut - 1) * a.C;
        const scalar* last = stop.part == 0 || !is_token(a, stop.cut) ? zeros : x + stop.cut * a.C;
        scalar* __restrict__ out = out_q;
        for (long c = from; c < to; ++c) {
          const double whole = high[c] - low[c], parts = start.part * static_cast<double>(first[c]) + stop.part * static_cast<double>(last[c]);
          out[c] = static_cast<scalar>(a.scale * (whole + parts));
        }
      });
    }
  }
}

/// d_x is the running sum of what starts and stops at each token; row u mod ring holds it until no window reaches u any more.
template <class scalar> void backward_x(const WindowSum<scalar>& a, long begin, long end, double* scratch) {
  double* const sum = scratch + a.ring * a.width;  // [width]
  for (long task = begin; task < end; ++task) {
    const Place at = place_of(a, task, a.N);
    const long width = at.last - at.first, before = a.N - a.Q;
    for (long c = 0; c < a.ring * a.width + width; ++c) scratch[c] = 0;
    long done = at.begin;
    const auto finish = [&](long until) {
      for (; done < least(until, at.end); ++done) {
        double* __restrict__ change = scratch + (done & (a.ring - 1)) * a.width;
        double* __restrict__ total = sum;
        scalar* __restrict__ d_x = a.d_x + (at.b * a.N + done) * a.C + at.first;
        for (long c = 0; c < width; ++c) {
          total[c] += change[c];
          change[c] = 0;
          d_x[c] = static_cast<scalar>(a.scale * total[c]);
        }
      }
    };
    const auto add = [&](long u, double factor, const scalar* g, long from, long to) {  // what starts earlier has started
      if (u >= at.end || factor == 0) return;
      double* __restrict__ change = scratch + (most(u, at.begin) & (a.ring - 1)) * a.width;
      for (long c = from; c < to; ++c) change[c] += factor * static_cast<double>(g[c]);
    };
    const long first = most(0, at.begin - a.reach_right - 1 - before), last = least(a.Q, at.end + a.reach_left - before);
    for (long q = first; q < last; ++q) {
      finish(before + q - a.reach_left - 1);
      const scalar* g = a.d_out + (at.b * a.Q + q) * a.C + at.first;
      each_head(a, at, [&](long h, long from, long to) {
        const End start = start_of(a, at.b, q, h), stop = end_of(a, at.b, q, h);
        add(start.cut - 1, start.part, g, from, to);
        add(start.cut, 1 - start.part, g, from, to);
        add(stop.cut, stop.part - 1, g, from, to);
        add(stop.cut + 1, -stop.part, g, from, to);
      });
    }
    finish(at.end);
  }
}

template <class scalar> scalar dot(const scalar* a, const scalar* b, long n) {
  constexpr long wide = lanes<scalar>;
  Vec<scalar> sums{};
  long i = 0;
  for (; i + wide <= n; i += wide) sums += vec(a + i) * vec(b + i);
  scalar sum = total<scalar>(sums);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// The gradient of an end is what the token that it lies in adds.
template <class scalar> void backward_ends(const WindowSum<scalar>& a, long begin, long end) {
  const long R = a.C / a.H;
  for (long bq = begin; bq < end; ++bq) {
    const long b = bq / a.Q, q = bq % a.Q;
    const scalar* x = a.x + b * a.N * a.C;
    for (long h = 0; h < a.H; ++h) {
      const scalar* g = a.d_out + bq * a.C + h * R;
      const auto value = [&](const End& e, long token) {
        return e.part == 0 || !is_token(a, token) ? scalar(0) : static_cast<scalar>(a.scale) * dot(x + token * a.C + h * R, g, R);
      };
      const End start = start_of(a, b, q, h), stop = end_of(a, b, q, h);
      if (a.d_left) a.d_left[bq * a.H + h] = value(start, start.cut - 1);
      if (a.d_right) a.d_right[bq * a.H + h] = value(stop, stop.cut);
    }
  }
}

}  // namespace

const WindowSumEngine<float> window_sum_float{.forward = forward<float>, .backward_x = backward_x<float>, .backward_ends = backward_ends<float>};
const WindowSumEngine<double> window_sum_double{.forward = forward<double>, .backward_x = backward_x<double>, .backward_ends = backward_ends<double>};

}  // namespace foveate::kernels::CPU_CAPABILITY
