// Scratch for one task.
#pragma once
#include "kernels/vec.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// Scratch handed out piece by piece; of a null scratch only the size.
template <class scalar> struct Room {
  scalar* base;
  long taken = 0;
  explicit Room(scalar* scratch) : base(scratch) {}
  scalar* take(long count) {
    const long at = taken;
    taken += (count + 15) / 16 * 16;
    return base ? base + at : nullptr;
  }
  /// Room for so many numbers of another type, no more strictly aligned than 16 scalars are.
  template <class T> T* take_as(long count) {
    constexpr long size = sizeof(T), unit = sizeof(scalar);
    return reinterpret_cast<T*>(take((count * size + unit - 1) / unit));
  }
};

/// How many numbers a Desk(a, room, more...) takes.
template <class Desk, class scalar, class Arguments, class... More> long numbers_of(const Arguments& a, const More&... more) {
  Room<scalar> room(nullptr);
  Desk(a, room, more...);
  return room.taken;
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
