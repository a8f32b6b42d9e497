// Sums of windows with fractional ends, from running sums of which only those near the window are kept, and the adjoint of that.
#include "kernels/window_sum.h"

#include "kernels/capability.h"
#include "kernels/row_sums.h"

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

/// Calls f with each head from `first_head` on that has channels in [first, last), and with those channels counted from `first`.
template <class F> inline void each_head(const Place& at, long R, long first_head, const F& f) {
  for (long h = first_head, c = h * R; c < at.last; ++h, c += R) f(h, most(c, at.first) - at.first, least(c + R, at.last) - at.first);
}

/// Rows are far apart where a task has some of the channels: the row that is needed so many tokens later is on its way meanwhile.
inline constexpr long tokens_ahead = 8, line_bytes = 64;
template <int writes, class scalar> inline void fetch(const scalar* row, long width) {
  for (long c = 0; c < width; c += line_bytes / static_cast<long>(sizeof(scalar))) __builtin_prefetch(row + c, writes);
}

/// Sums are kept as `sum`: P_j, that of the tokens of a segment before token j, is row j mod ring. Segments are `ring` tokens long and start
/// at multiples of that, so that nothing is ever taken from a sum much longer than a window; a window reaches into one more segment at most.
template <class sum, class scalar> void forward_by(const WindowSum<scalar>& a, long begin, long end, sum* scratch) {
  sum* const whole = scratch + a.ring * a.width;  // [width] of the segment before
  sum* const none = whole + a.width;              // [width] zeros
  scalar* const zeros = reinterpret_cast<scalar*>(none);
  for (long c = 0; c < a.width; ++c) none[c] = 0;
  const auto row = [&](long j) { return scratch + (j & (a.ring - 1)) * a.width; };
  const int bits = __builtin_ctzl(static_cast<unsigned long>(a.ring));
  for (long task = begin; task < end; ++task) {
    const Place at = place_of(a, task, a.Q);
    const long width = at.last - at.first, before = a.N - a.Q, R = a.C / a.H, first_head = at.first / R;
    const scalar* x = a.x + at.b * a.N * a.C + at.first;               // [N,width], rows C apart
    long known = most(0, before + at.begin - a.reach_left) & -a.ring;  // where a segment starts
    for (long c = 0; c < width; ++c) row(known)[c] = whole[c] = 0;
    for (long q = at.begin; q < at.end; ++q) {
      for (const long needed = least(a.N, before + q + a.reach_right + 1); known < needed; ++known) {
        const bool starts = ((known + 1) & (a.ring - 1)) == 0;
        const sum* __restrict__ now = row(known);
        sum* __restrict__ next = starts ? whole : row(known + 1);
        const scalar* __restrict__ x_j = x + known * a.C;
        fetch<0>(x_j + tokens_ahead * a.C, width);
        for (long c = 0; c < width; ++c) next[c] = now[c] + static_cast<sum>(x_j[c]);
        for (long c = 0; starts && c < width; ++c) row(known + 1)[c] = 0;
      }
      scalar* out_q = a.out + (at.b * a.Q + q) * a.C + at.first;
      fetch<1>(out_q + tokens_ahead * a.C, width);
      each_head(at, R, first_head, [&](long h, long from, long to) {
        const End start = start_of(a, at.b, q, h), stop = end_of(a, at.b, q, h);
        const sum low_part = static_cast<sum>(start.part), high_part = static_cast<sum>(stop.part), scale = static_cast<sum>(a.scale);
        const sum *low = row(start.cut), *high = row(stop.cut);
        const scalar* first = start.part == 0 || !is_token(a, start.cut - 1) ? zeros : x + (start.cut - 1) * a.C;
        const scalar* last = stop.part == 0 || !is_token(a, stop.cut) ? zeros : x + stop.cut * a.C;
        const long passes = (stop.cut >> bits) - (start.cut >> bits);  // into another segment: forwards, or where a window is turned round backwards
        const sum* between = passes == 0 ? none : whole;
        const sum sign = static_cast<sum>(passes);
        scalar* __restrict__ out = out_q;
        for (long c = from; c < to; ++c) {
          const sum parts = low_part * static_cast<sum>(first[c]) + high_part * static_cast<sum>(last[c]);
          out[c] = static_cast<scalar>(scale * ((high[c] - low[c]) + sign * between[c] + parts));
        }
      });
    }
  }
}

/// d_x is the running total of what starts and stops at each token; row u mod ring holds it until no window reaches u any more.
template <class sum, class scalar> void backward_x_by(const WindowSum<scalar>& a, long begin, long end, sum* scratch) {
  double* const total = reinterpret_cast<double*>(scratch + a.ring * a.width);  // [width]
  for (long task = begin; task < end; ++task) {
    const Place at = place_of(a, task, a.N);
    const long width = at.last - at.first, before = a.N - a.Q, R = a.C / a.H, first_head = at.first / R;
    for (long c = 0; c < a.ring * a.width; ++c) scratch[c] = 0;
    for (long c = 0; c < width; ++c) total[c] = 0;
    long done = at.begin;
    const auto finish = [&](long until) {
      for (; done < least(until, at.end); ++done) {
        sum* __restrict__ change = scratch + (done & (a.ring - 1)) * a.width;
        double* __restrict__ now = total;
        scalar* __restrict__ d_x = a.d_x + (at.b * a.N + done) * a.C + at.first;
        fetch<1>(d_x + tokens_ahead * a.C, width);
        for (long c = 0; c < width; ++c) {
          now[c] += static_cast<double>(change[c]);
          change[c] = 0;
          d_x[c] = static_cast<scalar>(a.scale * now[c]);
        }
      }
    };
    const auto add = [&](const End& edge, double sign, long first_row, const scalar* g, long from, long to) {
      // Of token first_row the share `part` is inside: so much changes there, the rest at the next. What is earlier than the chunk has happened.
      for (long i = 0; i < 2; ++i) {
        const long u = first_row + i;
        const sum factor = static_cast<sum>(sign * (i == 0 ? edge.part : 1 - edge.part));
        if (u >= at.end || factor == 0) continue;
        sum* __restrict__ change = scratch + (most(u, at.begin) & (a.ring - 1)) * a.width;
        for (long c = from; c < to; ++c) change[c] += factor * static_cast<sum>(g[c]);
      }
    };
    const long first = most(0, at.begin - a.reach_right - 1 - before), last = least(a.Q, at.end + a.reach_left - before);
    for (long q = first; q < last; ++q) {
      finish(before + q - a.reach_left - 1);
      const scalar* g = a.d_out + (at.b * a.Q + q) * a.C + at.first;
      fetch<0>(g + tokens_ahead * a.C, width);
      each_head(at, R, first_head, [&](long h, long from, long to) {
        const End start = start_of(a, at.b, q, h), stop = end_of(a, at.b, q, h);
        add(start, 1, start.cut - 1, g, from, to);
        add({stop.cut, 1 - stop.part}, -1, stop.cut, g, from, to);
      });
    }
    finish(at.end);
  }
}

/// Where few sums are kept none is long, and float will do: of 128 tokens of one sign each addition errs by 4e-6 of a token at most.
template <class scalar> inline bool sums_are_short(const WindowSum<scalar>& a) { return sizeof(scalar) == sizeof(float) && a.ring <= 128; }

template <class scalar> void forward(const WindowSum<scalar>& a, long begin, long end, double* scratch) {
  if (sums_are_short(a)) forward_by(a, begin, end, reinterpret_cast<float*>(scratch));
  else forward_by(a, begin, end, scratch);
}
template <class scalar> void backward_x(const WindowSum<scalar>& a, long begin, long end, double* scratch) {
  if (sums_are_short(a)) backward_x_by(a, begin, end, reinterpret_cast<float*>(scratch));
  else backward_x_by(a, begin, end, scratch);
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
