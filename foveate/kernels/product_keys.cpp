// The best keys of a product, and weighted sums of rows.
#include "kernels/product_keys.h"

#include "kernels/capability.h"
#include "kernels/copy.h"
#include "kernels/gemm.h"
#include "kernels/room.h"
#include "kernels/row_sums.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

template <class scalar> inline constexpr long panel = 2 * lanes<scalar>;

/// The best of what it is shown, falling; of equals the first that was shown. Rows have a vector before and a vector's rest behind.
template <class scalar> class Best {
 public:
  typedef typename Vectors<scalar>::integers Marks;
  typedef decltype(total_of(Marks{})) Mark;
  static_assert(sizeof(Mark) == sizeof(scalar));
  static constexpr long W = lanes<scalar>;

  static long room(long most) { return 2 * (most + 3 * W); }
  Best(scalar* room, long most) : value_(room + W), mark_(reinterpret_cast<Mark*>(room + most + 3 * W) + W), most_(most) {}

  void clear() {
    for (long i = -W; i < most_ + W; ++i) {
      value_[i] = i < 0 ? scalar(infinity) : -scalar(infinity);
      mark_[i] = 0;
    }
  }
  scalar bar() const { return value_[most_ - 1]; }
  scalar value(long i) const { return value_[i]; }
  long mark(long i) const { return static_cast<long>(mark_[i]); }

  /// What is worse moves one place on, all at once and without a branch: from the last vector to the first.
  void show(scalar x, long marked) {
    if (!(x > bar())) return;
    const Vec<scalar> wide = splat(x);
    const Marks wide_mark = static_cast<Mark>(marked) - Marks{};
    for (long i = (most_ - 1) / W * W; i >= 0; i -= W) {
      const Vec<scalar> here = vec(value_ + i), before = vec(value_ + i - 1);
      const Marks here_mark = marks(i), before_mark = marks(i - 1);
      vec(value_ + i) = here >= wide ? here : before >= wide ? wide : before;
      __builtin_memcpy(mark_ + i, &static_cast<const Marks&>(here >= wide ? here_mark : before >= wide ? wide_mark : before_mark), sizeof(Marks));
    }
    for (long i = most_; i % W != 0; ++i) value_[i] = -scalar(infinity);
  }

 private:
  Marks marks(long i) const {
    Marks m;
    __builtin_memcpy(&m, mark_ + i, sizeof m);
    return m;
  }
  scalar* value_;  // [most]
  Mark* mark_;     // [most]
  long most_;
};

/// The best of n scores; most vectors hold none that is taken.
template <class scalar> void choose_half(const scalar* s, long n, Best<scalar>& best) {
  constexpr long W = lanes<scalar>;
  best.clear();
  long i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    const Vec<scalar> x = vec(s + i), y = vec(s + i + W);
    const auto above = (x > y ? x : y) > splat(best.bar());
    if (total_of(above) == 0) continue;
    for (long j = i; j < i + 2 * W; ++j) best.show(s[j], j);
  }
  for (; i < n; ++i) best.show(s[i], i);
}

long wide(long n, long across) { return (n + across - 1) / across * across; }

template <class scalar> long choose_room(const ProductKeys<scalar>& a) {
  Room<scalar> room(nullptr);
  room.take(2 * product_tile * wide(a.n, panel<scalar>));
  for (int i = 0; i < 3; ++i) room.take(Best<scalar>::room(a.k));
  return room.taken;
}

template <class scalar> void choose(const ProductKeys<scalar>& a, long begin, long end, scalar* scratch) {
  const long width = wide(a.n, panel<scalar>);
  Room<scalar> room(scratch);
  scalar* const s = room.take(2 * product_tile * width);  // [2,tile,width]
  const auto best = [&] { return Best<scalar>(room.take(Best<scalar>::room(a.k)), a.k); };
  Best<scalar> first = best(), second = best(), pairs = best();
  for (long task = begin; task < end; ++task) {
    const long head = task % a.H, t0 = task / a.H * product_tile, height = least(product_tile, a.T - t0);
    for (long half = 0; half < 2; ++half) {
      const scalar* q = a.q + ((t0 * a.H + head) * 2 + half) * a.h;
      const scalar* keys = a.panels + a.table(head, half) * width * a.h;
      for (long i = 0; i < width; i += panel<scalar>) {
        gemm<false>(height, panel<scalar>, a.h, Left<scalar>{q, a.H * 2 * a.h, 1}, Right<scalar>{keys + i * a.h, panel<scalar>},
                    s + half * product_tile * width + i, width);
      }
    }
    for (long r = 0; r < height; ++r) {
      choose_half(s + r * width, a.n, first);
      choose_half(s + (product_tile + r) * width, a.n, second);
      pairs.clear();
      for (long i = 0; i < a.k; ++i) {
        for (long j = 0; (i + 1) * (j + 1) <= a.k; ++j) {
          const scalar sum = first.value(i) + second.value(j);
          if (!(sum > pairs.bar())) break;  // sums fall with j
          pairs.show(sum, i * a.k + j);
        }
      }
      const long at = ((t0 + r) * a.H + head) * a.k;
      for (long j = 0; j < a.k; ++j) {
        a.scores[at + j] = pairs.value(j);
        a.slots[at + j] = first.mark(pairs.mark(j) / a.k) * a.n + second.mark(pairs.mark(j) % a.k);
      }
    }
  }
}

template <class scalar> void d_q(const ProductKeys<scalar>& a, long begin, long end) {
  for (long th = begin; th < end; ++th) {
    const long head = th % a.H;
    scalar* out = a.d_q + th * 2 * a.h;
    for (long c = 0; c < 2 * a.h; ++c) out[c] = 0;
    for (long j = 0; j < a.k; ++j) {
      const long slot = a.slots[th * a.k + j];
      const scalar g = a.d_scores[th * a.k + j];
      add_row(g, a.keys + (a.table(head, 0) * a.n + slot / a.n) * a.h, out, a.h);
      add_row(g, a.keys + (a.table(head, 1) * a.n + slot % a.n) * a.h, out + a.h, a.h);
    }
  }
}

/// Each task owns a range of one table's keys, and passes over all that chose them in order: the same sums on any number of threads.
template <class scalar> void d_keys(const ProductKeys<scalar>& a, long begin, long end) {
  for (long task = begin; task < end; ++task) {
    const long table = task / a.ranges, each = (a.n + a.ranges - 1) / a.ranges, first = task % a.ranges * each, last = least(a.n, first + each);
    for (long th = 0; th < a.T * a.H; ++th) {
      const long head = th % a.H;
      for (long half = 0; half < 2; ++half) {
        if (a.table(head, half) != table) continue;
        const scalar* q = a.q + (th * 2 + half) * a.h;
        for (long j = 0; j < a.k; ++j) {
          const long slot = a.slots[th * a.k + j], i = half ? slot % a.n : slot / a.n;
          if (i >= first && i < last) add_row(a.d_scores[th * a.k + j], q, a.d_keys + (table * a.n + i) * a.h, a.h);
        }
      }
    }
  }
}

/// Calls f with the values as a pointer to their type, and with how to read one.
template <class scalar, class F> inline void with_values(const WeightedRows<scalar>& a, const F& f) {
  const Rows all{.data = a.values, .kind = a.kind, .batch = 0, .head = 0, .row = a.width, .index = nullptr, .index_batch = 0, .index_head = 0};
  with_row<scalar>(all, 0, 0, 0, f);
}

/// The row that is read so many rows later is on its way meanwhile.
inline constexpr long rows_ahead = 8, line_bytes = 64, fetched_bytes = 1024;
template <class stored, class scalar> inline void fetch(const stored* values, const WeightedRows<scalar>& a, long at) {
  if (at >= a.T * a.K) return;
  const char* row = reinterpret_cast<const char*>(values + a.index[at] * a.width);
  const long bytes = least(fetched_bytes, a.width * static_cast<long>(sizeof(stored)));
  for (long byte = 0; byte < bytes; byte += line_bytes) __builtin_prefetch(row + byte);
}

template <class scalar> void rows(const WeightedRows<scalar>& a, long begin, long end) {
  with_values(a, [&](const auto* values, auto read) {
    const auto row = [&](long at) { return values + a.index[at] * a.width; };
    for (long t = begin; t < end; ++t) {
      scalar* __restrict__ out = a.out + t * a.width;
      for (long c = 0; c < a.width; ++c) out[c] = 0;
      long at = t * a.K;
      const long last = at + a.K;
      for (; at + 4 <= last; at += 4) {  // four at a time: what waits for one row can read another
        for (long i = 0; i < 4; ++i) fetch(values, a, at + rows_ahead + i);
        const auto *r0 = row(at), *r1 = row(at + 1), *r2 = row(at + 2), *r3 = row(at + 3);
        const scalar w0 = a.weights[at], w1 = a.weights[at + 1], w2 = a.weights[at + 2], w3 = a.weights[at + 3];
        for (long c = 0; c < a.width; ++c) {
          out[c] += (w0 * static_cast<scalar>(read(r0[c])) + w1 * static_cast<scalar>(read(r1[c]))) +
                    (w2 * static_cast<scalar>(read(r2[c])) + w3 * static_cast<scalar>(read(r3[c])));
        }
      }
      for (; at < last; ++at) {
        const auto* one = row(at);
        const scalar weight = a.weights[at];
        for (long c = 0; c < a.width; ++c) out[c] += weight * static_cast<scalar>(read(one[c]));
      }
    }
  });
}

template <class scalar> void d_weights(const WeightedRows<scalar>& a, long begin, long end) {
  constexpr long W = lanes<scalar>;
  with_values(a, [&](const auto* values, auto read) {
    for (long t = begin; t < end; ++t) {
      const scalar* g = a.d_out + t * a.width;
      for (long at = t * a.K; at < (t + 1) * a.K; ++at) {
        fetch(values, a, at + rows_ahead);
        const auto* row = values + a.index[at] * a.width;
        scalar sums[W] = {}, sum = 0;
        long c = 0;
        for (; c + W <= a.width; c += W) {
          for (long i = 0; i < W; ++i) sums[i] += g[c + i] * static_cast<scalar>(read(row[c + i]));
        }
        for (; c < a.width; ++c) sum += g[c] * static_cast<scalar>(read(row[c]));
        for (long i = 0; i < W; ++i) sum += sums[i];
        a.d_weights[at] = sum;
      }
    }
  });
}

template <class scalar> void d_values(const WeightedRows<scalar>& a, long begin, long end) {
  for (long r = begin; r < end; ++r) {
    scalar* out = a.d_values + r * a.width;
    for (long c = 0; c < a.width; ++c) out[c] = 0;
    for (long i = a.start[r]; i < a.start[r + 1]; ++i) add_row(a.weights[a.order[i]], a.d_out + a.order[i] / a.K * a.width, out, a.width);
  }
}

template <class scalar> constexpr ProductKeysEngine<scalar> engine{.choose = choose<scalar>,
                                                                   .d_q = d_q<scalar>,
                                                                   .d_keys = d_keys<scalar>,
                                                                   .choose_room = choose_room<scalar>,
                                                                   .rows = rows<scalar>,
                                                                   .d_weights = d_weights<scalar>,
                                                                   .d_values = d_values<scalar>,
                                                                   .panel = panel<scalar>};

}  // namespace

const ProductKeysEngine<float> product_keys_float = engine<float>;
const ProductKeysEngine<double> product_keys_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
