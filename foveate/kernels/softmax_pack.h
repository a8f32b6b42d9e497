// Keys and values as products want them: tiles of keys and of values transposed, and both as rows.
#pragma once
#include "kernels/softmax_narrow.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// From one tile on: what is null is not wanted, or not to be filled. For narrow products a number is a pair of bfloat16.
template <class scalar> struct Packed {
  scalar *keys_across, *values_across, *keys, *values;  // [.,D,key_tile], [.,Dv,key_tile], [. key_tile,deep], [. key_tile,wide]
};

/// Numbers for each key of a tile, of rows of `width` turned and in order.
template <class scalar> long size_across(const Softmax<scalar>& a, long width) { return narrow(a) ? round_up<scalar>(width) / 2 : width; }
template <class scalar> long size_along(const Softmax<scalar>& a, long width) { return round_up<scalar>(width) / (narrow(a) ? 2 : 1); }

/// The same from tile t on.
template <class scalar> Packed<scalar> from_tile(const Softmax<scalar>& a, const Packed<scalar>& all, long t) {
  const auto from = [t](scalar* first, long size) { return first ? first + t * key_tile * size : nullptr; };
  return {.keys_across = from(all.keys_across, size_across(a, a.D)),
          .values_across = from(all.values_across, size_across(a, a.Dv)),
          .keys = from(all.keys, size_along(a, a.D)),
          .values = from(all.values, size_along(a, a.Dv))};
}

/// Tile t of all (b, key head), packed before.
template <class scalar> Packed<scalar> at_tile(const Softmax<scalar>& a, long t) {
  return from_tile(a, {a.keys_across, a.values_across, a.keys, a.values}, t);
}

/// Fills what is not null and does not lie as it is wanted already.
template <class scalar> void pack_tile(const Softmax<scalar>& a, long b, long h, long first, const Packed<scalar>& to) {
  const long height = least(key_tile, a.M - first);
  if constexpr (sizeof(scalar) == sizeof(float)) {
    if (a.multiply) {
      if (to.keys_across) pair_across(a.k, b, h, first, height, a.D, round_up<scalar>(a.D), to.keys_across);
      if (to.values_across) pair_across(a.v, b, h, first, height, a.Dv, round_up<scalar>(a.Dv), to.values_across);
      if (to.keys) pair_along(a.k, b, h, first, height, a.D, round_up<scalar>(a.D), to.keys);
      if (to.values) pair_along(a.v, b, h, first, height, a.Dv, round_up<scalar>(a.Dv), to.values);
      return;
    }
  }
  const auto copy_whole = [&](const Rows& rows, long width, scalar* whole) {
    const long padded = round_up<scalar>(width);
    copy_rows(rows, b, h, first, height, width, scalar{1}, whole, padded);
    for (long i = height * padded; i < key_tile * padded; ++i) whole[i] = 0;  // 0 times a NaN would be a NaN
  };
  if (to.keys_across) copy_across(a.k, b, h, first, height, a.D, to.keys_across);
  if (to.values_across) copy_across(a.v, b, h, first, height, a.Dv, to.values_across);
  if (to.keys && !a.whole_keys) copy_whole(a.k, a.D, to.keys);
  if (to.values && !a.whole_values) copy_whole(a.v, a.Dv, to.values);
}

/// Room for a run, where runs are packed as they are met.
template <class scalar> Packed<scalar> room_for_run(const Softmax<scalar>& a, bool backward, Room<scalar>& room) {
  const bool met_once = !a.keys_across;
  const auto take = [&](bool wanted, long size) { return met_once && wanted ? room.take(run_keys * size) : nullptr; };
  return {.keys_across = take(true, size_across(a, a.D)),
          .values_across = take(backward, size_across(a, a.Dv)),
          .keys = take(backward && !a.whole_keys, size_along(a, a.D)),
          .values = take(!a.whole_values, size_along(a, a.Dv))};
}

/// Keys and values of a run: packed before, or packed now in `room`.
template <class scalar> Packed<scalar> packed_run(const Softmax<scalar>& a, const QueryTile& q, const Run& run, const Packed<scalar>& room) {
  const Packed<scalar> whole = at_tile(a, (q.b * a.Hk + q.hk) * tiles_of(a.M, key_tile) + run.first / key_tile);
  if (a.keys_across) return whole;
  for (long t = 0; t < run.padded / key_tile; ++t) pack_tile(a, q.b, q.hk, run.first + t * key_tile, from_tile(a, room, t));
  return {.keys_across = room.keys_across,
          .values_across = room.values_across,
          .keys = a.whole_keys ? whole.keys : room.keys,
          .values = a.whole_values ? whole.values : room.values};
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
