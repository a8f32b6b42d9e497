// Random features, a tile of positions at a time: u = W x by registers, the top of each position, the features, all while the tile is in
// the caches. The gradient goes from the last position to the first, since a running top gives to the position that set it what all
// positions under it owe. Where features can be read from the results they are; else they are computed anew.
#include "kernels/projected_features.h"

#include "kernels/ahead.h"
#include "kernels/capability.h"
#include "kernels/copy.h"
#include "kernels/room.h"

#include <math.h>

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// The top of nothing: finite, so that differences are never NaN.
template <class scalar> constexpr scalar lowest = static_cast<scalar>(-1e30);

/// exp(x) for any x.
template <class scalar> inline Vec<scalar> any_exp(Vec<scalar> x) {
  const Vec<scalar> most = splat(static_cast<scalar>(sizeof(scalar) == 4 ? 88.72 : 709.7));
  return x > most ? splat(static_cast<scalar>(infinity)) : exp(x);
}

template <class scalar> struct Turned {
  Vec<scalar> sin, cos;
};

/// Sine and cosine of x = n pi/2 + r, |r| <= pi/4, by their series in r; for |x| below `near`.
template <class scalar> constexpr scalar near = static_cast<scalar>(sizeof(scalar) == 4 ? 8192 : 1e8);
template <class scalar> inline Turned<scalar> turned(Vec<scalar> x) {
  constexpr bool wide = sizeof(scalar) == 8;
  typedef typename Vectors<scalar>::integers Int;
  const Vec<scalar> shift = splat(static_cast<scalar>(wide ? 6755399441055744.0 : 12582912.0));  // leaves n in the low bits, as in exp
  const Vec<scalar> shifted = x * static_cast<scalar>(0.63661977236758134308) + shift, n = shifted - shift;
  // pi/2 in three parts, of which n times the first two is exact
  constexpr double parts[2][3] = {{1.5703125, 4.837512969970703125e-4, 7.549789948768648e-8},
                                  {1.57079625129699707031, 7.54978941586159635336e-8, 5.39030285815811905290e-15}};
  Vec<scalar> r = x;
  for (const double part : parts[wide]) r = r - n * static_cast<scalar>(part);
  const Vec<scalar> z = r * r;
  Vec<scalar> s = splat(scalar{1}), c = splat(scalar{1});  // from the last term to the first
  constexpr int last = wide ? 8 : 4;
#pragma GCC unroll 8
  for (int k = last; k > 0; --k) {
    s = 1 - s * z * static_cast<scalar>(1.0 / (2 * k * (2 * k + 1)));
    c = 1 - c * z * static_cast<scalar>(1.0 / (2 * k * (2 * k - 1)));
  }
  s = s * r;
  const Int quadrant = reinterpret_cast<Int>(shifted);
  const Vec<scalar> sin = (quadrant & 1) != 0 ? c : s, cos = (quadrant & 1) != 0 ? s : c;
  constexpr int to_sign = 8 * static_cast<int>(sizeof(scalar)) - 2;
  const Int sin_sign = (quadrant & 2) << to_sign, cos_sign = ((quadrant + 1) & 2) << to_sign;
  return {reinterpret_cast<Vec<scalar>>(reinterpret_cast<Int>(sin) ^ sin_sign), reinterpret_cast<Vec<scalar>>(reinterpret_cast<Int>(cos) ^ cos_sign)};
}
/// The same for any x, number by number.
template <class scalar> inline Turned<scalar> far_turned(Vec<scalar> x) {
  Turned<scalar> t;
  for (long i = 0; i < lanes<scalar>; ++i) {
    t.sin[i] = static_cast<scalar>(::sin(static_cast<double>(x[i])));
    t.cos[i] = static_cast<scalar>(::cos(static_cast<double>(x[i])));
  }
  return t;
}

/// Positions [first, first + height) of one head.
struct Stretch {
  long b, h, first, height;
};

template <class scalar> struct FeatureDesk {
  long deep, wide;
  scalar *x, *u, *h;        // [C,deep], [C,wide], [C]: |y|^2/2
  scalar* all_h;            // [N]
  scalar *value, *d_value;  // [2 wide], [2 wide]: of one position, its second half at `wide`
  scalar* slope;            // [wide]: -sin, of cos_phase
  scalar *d_u, *d_x, *d_h;  // like u, x, h
  mutable Ahead ahead;      // what is asked for changes no result

  FeatureDesk(const ProjectedFeatures<scalar>& a, Room<scalar>& room, bool backward) : deep(round_up<scalar>(a.D)), wide(round_up<scalar>(a.m)) {
    const auto take = [&](bool needed, long count) { return room.take(needed ? count : 0); };
    x = room.take(feature_rows * deep);
    u = room.take(feature_rows * wide);
    h = room.take(feature_rows);
    all_h = take(!backward && a.top == Top::whole, a.N);
    value = take(backward, 2 * wide);
    d_value = take(backward, 2 * wide);
    slope = take(backward, wide);
    d_u = take(backward, feature_rows * wide);
    d_x = take(backward, feature_rows * deep);
    d_h = take(backward, feature_rows);
    for (long i = 0; backward && room.base && i < 2 * wide; ++i) value[i] = d_value[i] = slope[i % wide] = 0;
  }
};

/// Calls f(c, vector of row at c) for all vectors of a padded row.
template <class scalar> inline scalar greatest_of(const scalar* row, long width) {
  Vec<scalar> top = vec(row);
  for (long c = lanes<scalar>; c < width; c += lanes<scalar>) top = vec(row + c) > top ? vec(row + c) : top;
  return highest_of(top);
}
template <class scalar> inline scalar longest_of(const scalar* row, long width) {
  Vec<scalar> top{};
  for (long c = 0; c < width; c += lanes<scalar>) {
    const Vec<scalar> x = vec(row + c), size = x < 0 ? -x : x;
    top = size > top ? size : top;
  }
  return highest_of(top);
}

/// x of a stretch, and h.
template <class scalar> void load_x(const ProjectedFeatures<scalar>& a, const Stretch& at, const FeatureDesk<scalar>& desk) {
  copy_rows(a.x, at.b, at.h, at.first, at.height, a.D, scalar{1}, desk.x, desk.deep);
  for (long r = 0; a.grows() && r < at.height; ++r) {
    Vec<scalar> square{};
    for (long d = 0; d < desk.deep; d += lanes<scalar>) square += vec(desk.x + r * desk.deep + d) * vec(desk.x + r * desk.deep + d);
    desk.h[r] = total<scalar>(square) * (a.scale / 2);
  }
}

/// What lies behind a row of u is a number of it: it changes no maximum.
template <class scalar> inline void pad(const ProjectedFeatures<scalar>& a, scalar* u, long wide) {
  for (long c = a.m; c < wide; ++c) u[c] = u[0];
}

/// u of a stretch.
template <class scalar> void project(const ProjectedFeatures<scalar>& a, const Stretch& at, const FeatureDesk<scalar>& desk) {
  const scalar* W = a.W_across + (a.W_of_heads ? at.h * a.D * desk.wide : 0);
  gemm<false>(desk.ahead, at.height, desk.wide, a.D, Left<scalar>{desk.x, desk.deep, 1}, Right<scalar>{W, desk.wide}, desk.u, desk.wide);
  for (long r = 0; r < at.height; ++r) {
    scalar* u = desk.u + r * desk.wide;
    for (long c = 0; a.phase && c < desk.wide; c += lanes<scalar>) vec(u + c) += vec(a.phase + c);
    pad(a, u, desk.wide);
  }
}

template <class scalar> inline bool trigonometric(const ProjectedFeatures<scalar>& a) {
  return a.map == Projected::cos_sin || a.map == Projected::sin_cos || a.map == Projected::cos_phase;
}

/// What is compared to find a top.
template <class scalar> inline scalar level_of(const ProjectedFeatures<scalar>& a, const FeatureDesk<scalar>& desk, const scalar* u, scalar h) {
  if (trigonometric(a)) return h;
  if (a.map == Projected::hyperbolic) return a.bare ? 2 * h : longest_of(u, desk.wide) - h;
  return greatest_of(u, desk.wide) - (a.bare ? 0 : h);
}

template <class scalar> inline bool hidden(const ProjectedFeatures<scalar>& a, long b, long n) { return a.key_mask && !a.key_mask[b * a.N + n]; }

template <class scalar> inline void store(scalar* to, Vec<scalar> x, long count) {
  if (count >= lanes<scalar>) vec(to) = x;
  else {
    for (long i = 0; i < count; ++i) to[i] = x[i];
  }
}

/// The features of one position under `top`, the second half of them behind `to` by `half`; of cos_phase -sin, too, where there is a `slope`.
template <class scalar> void features_of(const ProjectedFeatures<scalar>& a, const scalar* u, scalar h, scalar top, bool hidden, scalar eps,
                                         scalar* to, long half, scalar* slope) {
  constexpr long W = lanes<scalar>;
  const scalar factor = a.factor;
  if (hidden && a.grows()) {
    for (long c = 0; c < a.m; ++c) to[c] = to[c + (a.doubled() ? half : 0)] = eps;
    for (long c = 0; slope && c < a.m; ++c) slope[c] = 0;
    return;
  }
  if (a.map == Projected::positive || a.map == Projected::hyperbolic) {
    const scalar shift = -h - top;
    for (long c = 0; c < a.m; c += W) store(to + c, factor * any_exp<scalar>(vec(u + c) + shift) + eps, a.m - c);
    for (long c = 0; a.doubled() && c < a.m; c += W) store(to + half + c, factor * any_exp<scalar>(shift - vec(u + c)) + eps, a.m - c);
  } else if (trigonometric(a)) {
    const bool far = !(longest_of(u, (a.m + W - 1) / W * W) <= near<scalar>);
    const scalar growth = a.grows() ? factor * static_cast<scalar>(::exp(static_cast<double>(h - top))) : factor;
    for (long c = 0; c < a.m; c += W) {
      const auto [sin, cos] = far ? far_turned<scalar>(vec(u + c)) : turned<scalar>(vec(u + c));
      const Vec<scalar> s = growth * sin + eps, t = growth * cos + eps;
      store(to + c, a.map == Projected::sin_cos ? s : t, a.m - c);
      if (a.doubled()) store(to + half + c, a.map == Projected::sin_cos ? t : s, a.m - c);
      if (slope) store(slope + c, -growth * sin, a.m - c);
    }
  } else {
    for (long c = 0; c < a.m; c += W) {
      const Vec<scalar> x = vec(u + c), positive = x < 0 ? Vec<scalar>{} : x;  // a NaN stays one
      store(to + c, factor * (a.map == Projected::relu ? positive : positive + exp(x > 0 ? Vec<scalar>{} : x)) + eps, a.m - c);
    }
  }
}

template <class scalar> inline scalar* row_of(const ProjectedFeatures<scalar>& a, const Stretch& at, long r) {
  return a.phi + ((at.b * a.H + at.h) * a.N + at.first + r) * a.F();
}

/// Asks for what a stretch reads and writes, during the products of another.
template <class scalar> void look_ahead(const ProjectedFeatures<scalar>& a, const Stretch& at, bool backward, const FeatureDesk<scalar>& desk) {
  const long head = at.b * a.H + at.h;
  desk.ahead.begin(tiles_in<scalar>(feature_rows, backward ? desk.deep : desk.wide));
  desk.ahead.add(a.x, at.b, at.h, at.first, at.height, a.N, a.D);
  desk.ahead.add(a.phi + head * a.N * a.F(), at.first, at.height, a.N, a.F());
  if (!backward) return;
  desk.ahead.add(a.d_phi + head * a.N * a.F(), at.first, at.height, a.N, a.F());
  desk.ahead.add(a.d_x + head * a.N * a.D, at.first, at.height, a.N, a.D);
}

/// Calls f(stretch) for each tile of a head.
template <class scalar, class F> void for_each_stretch(const ProjectedFeatures<scalar>& a, long b, long h, const F& f) {
  for (long first = 0; first < a.N; first += feature_rows) f(Stretch{b, h, first, least(feature_rows, a.N - first)});
}

/// The tile's features, each under the top that `top_of` finds from its row.
template <class scalar, class F> void write(const ProjectedFeatures<scalar>& a, const Stretch& at, const FeatureDesk<scalar>& desk, const F& top_of) {
  for (long r = 0; r < at.height; ++r) {
    const scalar* u = desk.u + r * desk.wide;
    const scalar h = a.grows() ? desk.h[r] : 0;
    features_of<scalar>(a, u, h, top_of(r, u, h), hidden(a, at.b, at.first + r), a.eps, row_of(a, at, r), a.m, nullptr);
  }
}

/// One top for a whole head: found in a first pass, which leaves u, if it needs it, where features will stand.
template <class scalar> void forward_under_one(const ProjectedFeatures<scalar>& a, long b, long h, const FeatureDesk<scalar>& desk) {
  const long head = b * a.H + h;
  scalar top = a.past ? a.past[head] : lowest<scalar>;
  const bool early = !trigonometric(a);
  for_each_stretch(a, b, h, [&](const Stretch& at) {
    load_x(a, at, desk);
    if (early) project(a, at, desk);
    for (long r = 0; r < at.height; ++r) {
      const scalar* u = desk.u + r * desk.wide;
      const scalar level = hidden(a, b, at.first + r) ? lowest<scalar> : level_of(a, desk, u, desk.h[r]);
      top = level > top ? level : top;
      desk.all_h[at.first + r] = desk.h[r];
      for (long c = 0; early && c < a.m; ++c) row_of(a, at, r)[c] = u[c];
    }
  });
  a.tops[head] = top;
  for_each_stretch(a, b, h, [&](const Stretch& at) {
    if (!early) {
      load_x(a, at, desk);
      project(a, at, desk);
    }
    for (long r = 0; r < at.height; ++r) {
      scalar* u = desk.u + r * desk.wide;
      desk.h[r] = desk.all_h[at.first + r];
      if (!early) continue;
      for (long c = 0; c < a.m; ++c) u[c] = row_of(a, at, r)[c];
      pad(a, u, desk.wide);
    }
    write(a, at, desk, [&](long, const scalar*, scalar) { return top; });
  });
}

/// Tasks [begin, end).
template <class scalar> void forward(const ProjectedFeatures<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const FeatureDesk<scalar> desk(a, room, false);
  for (long task = begin; task < end; ++task) {
    const long parts = a.in_order() ? 1 : a.tiles(), head = task / parts, b = head / a.H, h = head % a.H;
    if (a.top == Top::whole) {
      forward_under_one(a, b, h, desk);
      continue;
    }
    scalar top = a.past ? a.past[head] : lowest<scalar>;
    const auto stretch = [&](const Stretch& at) {
      look_ahead(a, {b, h, at.first + feature_rows, feature_rows}, false, desk);
      load_x(a, at, desk);
      project(a, at, desk);
      write(a, at, desk, [&](long r, const scalar* u, scalar size) -> scalar {
        if (a.top == Top::none) return 0;
        const scalar level = hidden(a, b, at.first + r) ? lowest<scalar> : level_of(a, desk, u, size);
        top = a.top == Top::own || level > top ? level : top;
        return a.tops[head * a.N + at.first + r] = top;
      });
    };
    if (a.in_order()) for_each_stretch(a, b, h, stretch);
    else {
      const long first = task % parts * feature_rows;
      stretch({b, h, first, least(feature_rows, a.N - first)});
    }
  }
}

/// Copies a position's features, or their gradients, to where halves are `wide` apart.
template <class scalar> void take_halves(const ProjectedFeatures<scalar>& a, const scalar* from, long wide, scalar* to) {
  for (long c = 0; c < a.m; ++c) to[c] = from[c];
  for (long c = 0; a.doubled() && c < a.m; ++c) to[wide + c] = from[a.m + c];
}

/// d_u of row r from the gradients of its features; gives the gradient of the exponent that they share.
template <class scalar> scalar gradient_of_u(const ProjectedFeatures<scalar>& a, const FeatureDesk<scalar>& desk, scalar* d_u) {
  const scalar *p = desk.value, *p2 = p + desk.wide, *d = desk.d_value, *d2 = d + desk.wide;
  Vec<scalar> along{};
  const auto each = [&](const auto& f) {
    for (long c = 0; c < desk.wide; c += lanes<scalar>) vec(d_u + c) = f(c);
  };
  switch (a.map) {
    case Projected::positive:
      each([&](long c) {
        const Vec<scalar> x = vec(d + c) * vec(p + c);
        along += x;
        return x;
      });
      break;
    case Projected::hyperbolic:
      each([&](long c) {
        const Vec<scalar> x = vec(d + c) * vec(p + c), y = vec(d2 + c) * vec(p2 + c);
        along += x + y;
        return x - y;
      });
      break;
    case Projected::cos_sin:
      each([&](long c) {
        along += vec(d + c) * vec(p + c) + vec(d2 + c) * vec(p2 + c);
        return vec(d2 + c) * vec(p + c) - vec(d + c) * vec(p2 + c);
      });
      break;
    case Projected::sin_cos: each([&](long c) { return vec(d + c) * vec(p2 + c) - vec(d2 + c) * vec(p + c); }); break;
    case Projected::cos_phase:
      each([&](long c) {
        along += vec(d + c) * vec(p + c);
        return vec(d + c) * vec(desk.slope + c);
      });
      break;
    case Projected::relu: each([&](long c) { return vec(p + c) / a.factor > 0 ? a.factor * vec(d + c) : Vec<scalar>{}; }); break;
    case Projected::elu_plus_one:
      each([&](long c) {
        const Vec<scalar> share = vec(p + c) / a.factor;
        return vec(d + c) * (share > 1 ? splat(a.factor) : vec(p + c));
      });
      break;
  }
  return total<scalar>(along);
}

/// The gradient of a position's level, to what it was found from.
template <class scalar> void give_to_level(const ProjectedFeatures<scalar>& a, const FeatureDesk<scalar>& desk, long r, scalar g) {
  const scalar* u = desk.u + r * desk.wide;
  scalar* d_u = desk.d_u + r * desk.wide;
  if (trigonometric(a)) desk.d_h[r] += g;
  else if (a.map == Projected::hyperbolic && a.bare) desk.d_h[r] += 2 * g;
  else {
    const bool both = a.map == Projected::hyperbolic;
    const scalar top = both ? longest_of(u, desk.wide) : greatest_of(u, desk.wide);
    scalar count = 0;
    for (long c = 0; c < a.m; ++c) count += (u[c] == top) + (both && -u[c] == top);
    for (long c = 0; c < a.m; ++c) d_u[c] += g / count * static_cast<scalar>((u[c] == top) - (both && -u[c] == top));
    if (!a.bare) desk.d_h[r] -= g;
  }
}

/// From d_u and d_h to x, W and phase.
template <bool add, class scalar> void give_to_x(const ProjectedFeatures<scalar>& a, const Stretch& at, const FeatureDesk<scalar>& desk) {
  const long head = at.b * a.H + at.h, deep = desk.deep, wide = desk.wide;
  const scalar* W = a.W + (a.W_of_heads ? at.h * a.m * deep : 0);
  gemm<false>(desk.ahead, at.height, deep, a.m, Left<scalar>{desk.d_u, wide, 1}, Right<scalar>{W, deep}, desk.d_x, deep);
  for (long r = 0; r < at.height; ++r) {
    scalar* to = a.d_x + (head * a.N + at.first + r) * a.D;
    const scalar from_h = a.grows() ? a.scale * desk.d_h[r] : 0;
    for (long d = 0; d < a.D; ++d) to[d] = (add ? to[d] : 0) + desk.d_x[r * deep + d] + from_h * desk.x[r * deep + d];
  }
  if (a.d_W) gemm<true>(a.m, deep, at.height, Left<scalar>{desk.d_u, 1, wide}, Right<scalar>{desk.x, deep}, a.d_W + head * a.m * deep, deep);
  for (long r = 0; a.d_phase && r < at.height; ++r) {
    for (long c = 0; c < wide; c += lanes<scalar>) vec(a.d_phase + head * wide + c) += vec(desk.d_u + r * wide + c);
  }
}

/// Tasks [begin, end) of B * H.
template <class scalar> void backward(const ProjectedFeatures<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const FeatureDesk<scalar> desk(a, room, true);
  const bool anew = a.eps != 0 || a.map == Projected::cos_phase || a.through_top;
  for (long head = begin; head < end; ++head) {
    const long b = head / a.H, h = head % a.H;
    scalar owed = a.top == Top::whole && a.d_tops ? a.d_tops[head] : 0;  // what positions under the same top give to it
    long setter = -1;                                                    // of the whole
    for (long first = (a.tiles() - 1) * feature_rows; first >= 0; first -= feature_rows) {
      const Stretch at{b, h, first, least(feature_rows, a.N - first)};
      look_ahead(a, {b, h, first - feature_rows, feature_rows}, true, desk);
      load_x(a, at, desk);
      if (anew) project(a, at, desk);
      for (long r = at.height - 1; r >= 0; --r) {
        const long n = at.first + r, row = head * a.N + n;
        const scalar *u = desk.u + r * desk.wide, size = a.grows() ? desk.h[r] : 0;
        const scalar top = a.top == Top::none ? 0 : a.tops[a.top == Top::whole ? head : row];
        const bool unseen = hidden(a, b, n);
        if (anew) features_of<scalar>(a, u, size, top, unseen, 0, desk.value, desk.wide, a.map == Projected::cos_phase ? desk.slope : nullptr);
        else take_halves(a, a.phi + row * a.F(), desk.wide, desk.value);
        take_halves(a, a.d_phi + row * a.F(), desk.wide, desk.d_value);
        const scalar along = gradient_of_u(a, desk, desk.d_u + r * desk.wide);
        desk.d_h[r] = trigonometric(a) ? along : -along;
        if (!a.through_top) continue;
        owed += (a.top != Top::whole && a.d_tops ? a.d_tops[row] : 0) - along;
        const scalar level = unseen ? lowest<scalar> : level_of(a, desk, u, size);
        if (a.top == Top::whole) {
          if (!unseen && level == top) setter = n;
          continue;
        }
        scalar before = lowest<scalar>;
        if (a.top == Top::running && n > 0) before = a.tops[row - 1];
        else if (a.top == Top::running && a.past) before = a.past[head];
        if (a.top == Top::running && (unseen || !(level > before))) continue;
        if (!unseen) give_to_level(a, desk, r, owed);
        owed = 0;
      }
      give_to_x<false>(a, at, desk);
    }
    if (setter >= 0 && !(a.past && a.past[head] == a.tops[head])) {
      const Stretch at{b, h, setter, 1};
      load_x(a, at, desk);
      project(a, at, desk);
      for (long c = 0; c < desk.wide; ++c) desk.d_u[c] = 0;
      desk.d_h[0] = 0;
      give_to_level(a, desk, 0, owed);
      give_to_x<true>(a, at, desk);
      owed = 0;
    }
    if (a.d_past) a.d_past[head] = owed;
  }
}

template <class scalar, bool backward> long numbers_for(const ProjectedFeatures<scalar>& a) {
  return numbers_of<FeatureDesk<scalar>, scalar>(a, backward);
}

template <class scalar> constexpr ProjectedFeaturesEngine<scalar> engine{.forward = forward<scalar>,
                                                                         .backward = backward<scalar>,
                                                                         .forward_room = numbers_for<scalar, false>,
                                                                         .backward_room = numbers_for<scalar, true>,
                                                                         .vector = 2 * lanes<scalar>};

}  // namespace

const ProjectedFeaturesEngine<float> projected_features_float = engine<float>;
const ProjectedFeaturesEngine<double> projected_features_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
