// Attention over a binary partition. A tile of tokens reads, of each level and on each side, a short run of consecutive nodes: all of them
// stand in one list, whose scores are products of matrices, and each token keeps those of the list that it reads. A span reads its tokens.
#include "kernels/partition.h"

#include "kernels/capability.h"
#include "kernels/copy.h"
#include "kernels/gemm.h"
#include "kernels/room.h"
#include "kernels/row_sums.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

constexpr long T = 64;  // tokens that ask together, and nodes that are scored together

/// Nodes that a tile of tokens may read, side by side: row among keys, number within the level, level, side (1 on the right).
struct List {
  long count, padded;  // padded: to whole tiles, with rows of nobody
  long* row;
  int *node, *level, *right;
  int* beyond;  // 1 just behind the end of its level: stands for the next level's first node
};

/// Tokens [first, first + height) of a sequence.
struct Tokens {
  long b, h, first, height;
};

template <class scalar> long longest_list(const Partition<scalar>& a) {
  long count = 0;
  for (long j = 0; j < a.levels; ++j) count += 2 * ((T >> j) + a.step + 3);
  return (count + T - 1) / T * T;
}

template <class scalar> void add_run(const Partition<scalar>& a, long b, long j, bool right, long begin, long end, List& list) {
  const PartitionLevel& level = a.level[j];
  const long there = right ? (a.length[b] + (1L << j) - 1) >> j : level.nodes;
  const bool overflows = right && a.right_overflow && j + 1 < a.levels;
  for (long u = most(begin, 0); u < least(end, there + (overflows ? 1 : 0)); ++u, ++list.count) {
    const bool beyond = u == there;
    list.row[list.count] = beyond ? a.level[j + 1].key_row : level.key_row + u;
    list.node[list.count] = static_cast<int>(u);
    list.level[list.count] = static_cast<int>(j);
    list.right[list.count] = right;
    list.beyond[list.count] = beyond;
  }
}

template <class scalar> void list_nodes(const Partition<scalar>& a, const Tokens& t, List& list) {
  list.count = 0;
  const long k = a.step, last = t.first + t.height - 1;
  for (long j = 0; j < a.levels; ++j) {
    add_run(a, t.b, j, false, ((t.first - 1 + k) >> j) - 2 * k, ((last - 1 + k) >> j) - k + (j == 0 ? 2 : 1), list);
    if (!a.causal) add_run(a, t.b, j, true, ((t.first + 1 - k) >> j) + k, ((last + 1 - k) >> j) + 2 * k + 1, list);
  }
  list.padded = (list.count + T - 1) / T * T;
  for (long c = list.count; c < list.padded; ++c) {
    list.row[c] = -1;
    list.node[c] = list.level[c] = list.right[c] = list.beyond[c] = 0;
  }
}

/// Which of nodes [from, from + T) of the list token i reads, and the types of those edges.
template <class scalar> void judge(const Partition<scalar>& a, const List& list, long from, long i, int* seen, int* type) {
  const int k = static_cast<int>(a.step), clip = static_cast<int>(a.clip_dist), types = static_cast<int>(a.types);
  const int left_place = static_cast<int>(i) - 1 + k, right_place = static_cast<int>(i) + 1 - k, there = static_cast<int>(list.count - from);
  for (int c = 0; c < T; ++c) {
    const int j = list.level[from + c], right = list.right[from + c], node = list.node[from + c];
    const int p = right ? right_place : left_place, run = p >> j, m = right ? node - run - k : run - k - node;
    const int nearest = j == 0 ? right - 1 : static_cast<int>((p >> (j - (j > 0)) & 1) == right), farthest = k - 1 + ((run & 1) == right);
    seen[c] = (m >= nearest) & (m <= farthest) & (!list.beyond[from + c] | (m == k)) & (c < there);
    const int above = j + (m >= k), base = (2 * k + 1) * (above < clip ? above : clip), t = base + (m < k ? 2 * m : 0) + 1 + right;
    type[c] = t < 0 ? 0 : t < types ? t : types - 1;
  }
}

template <class scalar> struct Tile {
  scalar *queries, *packed, *s;  // s [T,longest list]: scores, then probabilities
  List list;
  int *seen, *type;  // [T], of one token
};

template <class scalar> Tile<scalar> tile_in(const Partition<scalar>& a, Room<scalar>& room) {
  const long longest = longest_list(a), width = most(round_up<scalar>(a.D), round_up<scalar>(a.Dv));
  Tile<scalar> at{};
  at.queries = room.take(T * width);
  at.packed = room.take(T * width);
  at.s = room.take(T * longest);
  at.list.row = room.template take_as<long>(longest);
  at.list.node = room.template take_as<int>(longest);
  at.list.level = room.template take_as<int>(longest);
  at.list.right = room.template take_as<int>(longest);
  at.list.beyond = room.template take_as<int>(longest);
  at.seen = room.template take_as<int>(T);
  at.type = room.template take_as<int>(T);
  return at;
}

/// Rows by the nodes of the list.
inline Rows listed(Rows rows, const List& list) {
  rows.index = list.row;
  rows.index_batch = rows.index_head = 0;
  return rows;
}

/// Probabilities of the tokens [height,list.padded], zero where a node is not read.
template <class scalar> void weigh(const Partition<scalar>& a, const Tokens& t, Tile<scalar>& at) {
  constexpr long W = lanes<scalar>;
  const scalar hidden = -static_cast<scalar>(infinity);
  const long deep = round_up<scalar>(a.D), longest = longest_list(a), first_row = t.first - a.level[0].first;
  list_nodes(a, t, at.list);
  const Rows keys = listed(a.k, at.list);
  copy_rows(a.q, t.b, t.h, first_row, t.height, a.D, a.scale, at.queries, deep);
  for (long from = 0; from < at.list.padded; from += T) {
    copy_across(keys, t.b, t.h, from, T, a.D, at.packed);
    gemm<false>(t.height, T, a.D, Left<scalar>{at.queries, deep, 1}, Right<scalar>{at.packed, T}, at.s + from, longest);
    for (long r = 0; r < t.height; ++r) {
      scalar* s = at.s + r * longest + from;
      judge(a, at.list, from, t.first + r, at.seen, at.type);
      if (a.by_type) {
        const scalar* worth = a.by_type + ((t.b * a.H + t.h) * a.level[0].asked + first_row + r) * a.types;
        for (long c = 0; c < T; ++c) s[c] += a.scale * worth[at.type[c]];
      }
      for (long c = 0; c < T; ++c) s[c] = at.seen[c] ? s[c] : hidden;
    }
  }
  for (long r = 0; r < t.height; ++r) {
    scalar* s = at.s + r * longest;
    Vec<scalar> high = splat(hidden), sum{};
    for (long c = 0; c < at.list.padded; c += W) high = vec(s + c) > high ? vec(s + c) : high;
    const scalar top = highest_of(high);  // a token always reads itself
    for (long c = 0; c < at.list.padded; c += W) {
      vec(s + c) = exp(vec(s + c) - splat(top));
      sum += vec(s + c);
    }
    const scalar share = 1 / total<scalar>(sum);
    for (long c = 0; c < at.list.padded; c += W) vec(s + c) *= splat(share);
  }
}

template <class scalar> void forward_tokens(const Partition<scalar>& a, const Tokens& t, Tile<scalar>& at, scalar* sums) {
  constexpr long W = lanes<scalar>;
  const long wide = round_up<scalar>(a.Dv), longest = longest_list(a);
  weigh(a, t, at);
  for (long x = 0; x < t.height * wide; x += W) vec(sums + x) = Vec<scalar>{};
  const Rows values = listed(a.v, at.list);
  for (long from = 0; from < at.list.padded; from += T) {
    copy_rows(values, t.b, t.h, from, T, a.Dv, scalar{1}, at.packed, wide);
    gemm<true>(t.height, wide, T, Left<scalar>{at.s + from, longest, 1}, Right<scalar>{at.packed, wide}, sums, wide);
  }
  scalar* out = a.out + ((t.b * a.H + t.h) * a.rows + t.first - a.level[0].first) * a.Dv;
  for (long r = 0; r < t.height; ++r) {
    for (long d = 0; d < a.Dv; ++d) out[r * a.Dv + d] = sums[r * wide + d];
  }
}

/// Calls f for the tiles of the tokens of (b, h) that ask.
template <class scalar, class F> void for_each_tokens(const Partition<scalar>& a, long head, const F& f) {
  const long b = head / a.H, begin = a.level[0].first, end = least(begin + a.level[0].asked, a.length[b]);
  for (long first = begin; first < end; first += T) f(Tokens{b, head % a.H, first, least(T, end - first)});
}

/// A span that asks, and the tokens that it reads.
struct Span {
  long row, first, count;
};

/// Calls f for the spans of (b, h) that ask and have tokens.
template <class scalar, class F> void for_each_span(const Partition<scalar>& a, long head, const F& f) {
  const long length = a.length[head / a.H];
  for (long j = 1; j < a.levels; ++j) {
    const PartitionLevel& level = a.level[j];
    for (long u = level.first; u < level.first + level.asked && u << j < length; ++u) {
      f(Span{level.query_row + u - level.first, u << j, least(1L << j, length - (u << j))});
    }
  }
}

/// Rows of a head for spans: widened, padded.
template <class scalar> struct SpanRoom {
  scalar *query, *keys, *values, *p, *more;  // [deep], [tokens,deep], [tokens,wide], [tokens], [deep or wide] for gradients
};

template <class scalar> long longest_span(const Partition<scalar>& a) { return (a.level[0].nodes + T - 1) / T * T; }

template <class scalar> SpanRoom<scalar> span_room(const Partition<scalar>& a, Room<scalar>& room) {
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv), tokens = longest_span(a);
  SpanRoom<scalar> at{};
  at.query = room.take(deep);
  at.keys = room.take(tokens * deep);
  at.values = room.take(tokens * wide);
  at.p = room.take(tokens);
  at.more = room.take(deep + wide);
  return at;
}

template <class scalar> void take_tokens(const Partition<scalar>& a, long head, const SpanRoom<scalar>& at) {
  const long b = head / a.H, h = head % a.H;
  copy_rows(a.k, b, h, 0, a.length[b], a.D, scalar{1}, at.keys, round_up<scalar>(a.D));
  copy_rows(a.v, b, h, 0, a.length[b], a.Dv, scalar{1}, at.values, round_up<scalar>(a.Dv));
}

/// p [span.count]: what the span reads of each of its tokens.
template <class scalar> void weigh_span(const Partition<scalar>& a, long head, const Span& span, const SpanRoom<scalar>& at) {
  constexpr long W = lanes<scalar>;
  const long deep = round_up<scalar>(a.D), padded = (span.count + W - 1) / W * W;
  copy_rows(a.q, head / a.H, head % a.H, span.row, 1, a.D, a.scale, at.query, deep);
  scalar top = -static_cast<scalar>(infinity);
  for (long c = 0; c < padded; ++c) {
    at.p[c] = c < span.count ? dot(at.query, at.keys + (span.first + c) * deep, deep) : -static_cast<scalar>(infinity);
    top = at.p[c] > top ? at.p[c] : top;
  }
  Vec<scalar> sum{};
  for (long c = 0; c < padded; c += W) {
    vec(at.p + c) = exp(vec(at.p + c) - splat(top));
    sum += vec(at.p + c);
  }
  const scalar share = 1 / total<scalar>(sum);
  for (long c = 0; c < span.count; ++c) at.p[c] *= share;
}

/// Tasks: every (b, h).
template <class scalar> void forward(const Partition<scalar>& a, long begin, long end, scalar* scratch) {
  constexpr long W = lanes<scalar>;
  const long wide = round_up<scalar>(a.Dv);
  Room<scalar> room(scratch);
  Tile<scalar> at = tile_in(a, room);
  scalar* const sums = room.take(T * wide);
  const SpanRoom<scalar> spans = span_room(a, room);
  for (long head = begin; head < end; ++head) {
    for_each_tokens(a, head, [&](const Tokens& t) { forward_tokens(a, t, at, sums); });
    take_tokens(a, head, spans);
    for_each_span(a, head, [&](const Span& span) {
      weigh_span(a, head, span, spans);
      for (long d = 0; d < wide; d += W) vec(sums + d) = Vec<scalar>{};
      for (long c = 0; c < span.count; ++c) add_row(spans.p[c], spans.values + (span.first + c) * wide, sums, wide);
      for (long d = 0; d < a.Dv; ++d) a.out[(head * a.rows + span.row) * a.Dv + d] = sums[d];
    });
  }
}

template <class scalar> struct BackwardRoom {
  scalar *d_out, *d_s, *d_queries, *sums, *delta, *rows;
};

/// d_q, d_k, d_v and d_by_type of a tile of tokens:  ds = p (do v^T - delta), delta = do.out.
template <class scalar> void backward_tokens(const Partition<scalar>& a, const Tokens& t, Tile<scalar>& at, const BackwardRoom<scalar>& room) {
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv), longest = longest_list(a), head = t.b * a.H + t.h,
             first_row = t.first - a.level[0].first;
  weigh(a, t, at);
  copy_rows(a.d_out, t.b, t.h, first_row, t.height, a.Dv, scalar{1}, room.d_out, wide);
  for (long r = 0; r < t.height; ++r) {
    room.delta[r] = 0;
    for (long d = 0; d < a.Dv; ++d) room.delta[r] += room.d_out[r * wide + d] * a.out[(head * a.rows + first_row + r) * a.Dv + d];
  }
  for (long x = 0; x < T * deep; ++x) room.d_queries[x] = 0;
  const Rows keys = listed(a.k, at.list), values = listed(a.v, at.list);
  for (long from = 0; from < at.list.padded; from += T) {
    const long count = least(T, at.list.count - from);
    copy_across(values, t.b, t.h, from, T, a.Dv, at.packed);
    gemm<false>(t.height, T, a.Dv, Left<scalar>{room.d_out, wide, 1}, Right<scalar>{at.packed, T}, room.d_s, T);
    for (long r = 0; r < t.height; ++r) {
      scalar* ds = room.d_s + r * T;
      const scalar* p = at.s + r * longest + from;
      for (long c = 0; c < T; ++c) ds[c] = p[c] * (ds[c] - room.delta[r]);
      if (!a.d_by_type) continue;
      judge(a, at.list, from, t.first + r, at.seen, at.type);
      scalar* worth = a.d_by_type + (head * a.level[0].asked + first_row + r) * a.types;
      for (long c = 0; c < count; ++c) {
        if (at.seen[c]) worth[at.type[c]] += a.scale * ds[c];
      }
    }
    copy_rows(keys, t.b, t.h, from, T, a.D, scalar{1}, room.rows, deep);
    gemm<true>(t.height, deep, T, Left<scalar>{room.d_s, T, 1}, Right<scalar>{room.rows, deep}, room.d_queries, deep);
    gemm<false>(count, deep, t.height, Left<scalar>{room.d_s, 1, T}, Right<scalar>{at.queries, deep}, room.sums, deep);
    scatter_rows(room.sums, deep, at.list.row + from, count, a.D, scalar{1}, a.d_k + head * a.nodes * a.D);
    gemm<false>(count, wide, t.height, Left<scalar>{at.s + from, 1, longest}, Right<scalar>{room.d_out, wide}, room.sums, wide);
    scatter_rows(room.sums, wide, at.list.row + from, count, a.Dv, scalar{1}, a.d_v + head * a.nodes * a.Dv);
  }
  for (long r = 0; r < t.height; ++r) {
    for (long d = 0; d < a.D; ++d) a.d_q[(head * a.rows + first_row + r) * a.D + d] = a.scale * room.d_queries[r * deep + d];
  }
}

/// The same of a span; d_query and d_out have room for one row.
template <class scalar> void backward_span(const Partition<scalar>& a, long head, const Span& span, const SpanRoom<scalar>& at) {
  constexpr long W = lanes<scalar>;
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
  scalar *const d_query = at.more, *const d_out = at.more + deep;
  weigh_span(a, head, span, at);
  copy_rows(a.d_out, head / a.H, head % a.H, span.row, 1, a.Dv, scalar{1}, d_out, wide);
  scalar delta = 0;
  for (long d = 0; d < a.Dv; ++d) delta += d_out[d] * a.out[(head * a.rows + span.row) * a.Dv + d];
  for (long d = 0; d < deep; d += W) vec(d_query + d) = Vec<scalar>{};
  for (long c = 0; c < span.count; ++c) {
    const long token = span.first + c;
    const scalar p = at.p[c], ds = p * (dot(d_out, at.values + token * wide, wide) - delta);
    add_row(ds, at.query, a.d_k + (head * a.nodes + token) * a.D, a.D);
    add_row(p, d_out, a.d_v + (head * a.nodes + token) * a.Dv, a.Dv);
    add_row(ds, at.keys + token * deep, d_query, deep);
  }
  for (long d = 0; d < a.D; ++d) a.d_q[(head * a.rows + span.row) * a.D + d] = a.scale * d_query[d];
}

template <class scalar> BackwardRoom<scalar> backward_room_in(const Partition<scalar>& a, Room<scalar>& room) {
  const long deep = round_up<scalar>(a.D), wide = round_up<scalar>(a.Dv);
  BackwardRoom<scalar> at{};
  at.d_out = room.take(T * wide);
  at.d_s = room.take(T * T);
  at.d_queries = room.take(T * deep);
  at.sums = room.take(T * most(deep, wide));
  at.delta = room.take(T);
  at.rows = room.take(T * deep);
  return at;
}

/// Tasks: every (b, h), since nodes are read by several tiles.
template <class scalar> void backward(const Partition<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  Tile<scalar> at = tile_in(a, room);
  const BackwardRoom<scalar> more = backward_room_in(a, room);
  const SpanRoom<scalar> spans = span_room(a, room);
  for (long head = begin; head < end; ++head) {
    for_each_tokens(a, head, [&](const Tokens& t) { backward_tokens(a, t, at, more); });
    take_tokens(a, head, spans);
    for_each_span(a, head, [&](const Span& span) { backward_span(a, head, span, spans); });
  }
}

template <class scalar> long forward_room(const Partition<scalar>& a) {
  Room<scalar> room(nullptr);
  tile_in(a, room);
  room.take(T * round_up<scalar>(a.Dv));
  span_room(a, room);
  return room.taken;
}

template <class scalar> long backward_room(const Partition<scalar>& a) {
  Room<scalar> room(nullptr);
  tile_in(a, room);
  backward_room_in(a, room);
  span_room(a, room);
  return room.taken;
}

template <class scalar> constexpr PartitionEngine<scalar> engine{
    .forward = &forward<scalar>, .backward = &backward<scalar>, .forward_room = &forward_room<scalar>, .backward_room = &backward_room<scalar>};

}  // namespace

const PartitionEngine<float> partition_float = engine<float>;
const PartitionEngine<double> partition_double = engine<double>;

}  // namespace foveate::kernels::CPU_CAPABILITY
