// A round of expectation and maximisation over tiles of tokens: shares of a tile stay in a cache, where the sums meet them.
#include "kernels/em_round.h"

#include "kernels/capability.h"
#include "kernels/gemm.h"
#include "kernels/room.h"

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

constexpr long tile = 64;  // tokens

template <class scalar> struct EmRoom {
  scalar *f, *z;  // [C,tile], [tile,padded]
  EmRoom(const EmRound<scalar>& a, Room<scalar>& room) {
    f = room.take(a.C * tile);
    z = room.take(tile * a.padded);
  }
};

/// Scores of K bases become shares, times a factor; what fills the row up becomes zero.
template <class scalar> inline void softmax(scalar* row, long K, long padded, scalar factor) {
  constexpr long W = lanes<scalar>;
  for (long k = K; k < padded; ++k) row[k] = -static_cast<scalar>(infinity);
  Vec<scalar> tops = vec(row);
  for (long k = W; k < padded; k += W) tops = vec(row + k) > tops ? vec(row + k) : tops;
  const scalar top = highest_of(tops);
  Vec<scalar> totals{};
  for (long k = 0; k < padded; k += W) totals += vec(row + k) = exp(vec(row + k) - splat(top));
  const Vec<scalar> share = splat(factor / total<scalar>(totals));
  for (long k = 0; k < padded; k += W) vec(row + k) *= share;
}

template <class scalar> void run(const EmRound<scalar>& a, long begin, long end, scalar* scratch) {
  Room<scalar> room(scratch);
  const EmRoom<scalar> at(a, room);
  const long tiles = (a.N + tile - 1) / tile;
  for (long task = begin; task < end; ++task) {
    const long b = task / a.parts, part = task % a.parts, place = part * a.B + b;
    scalar *sums = a.sums + place * a.C * a.padded, *mass = a.mass + place * a.padded;
    for (long n0 = tiles * part / a.parts * tile; n0 < least(a.N, tiles * (part + 1) / a.parts * tile); n0 += tile) {
      const long height = least(tile, a.N - n0);
      for (long c = 0; c < a.C; ++c) {
        for (long r = 0; r < height; ++r) at.f[c * tile + r] = a.f[(b * a.C + c) * a.N + n0 + r];
      }
      gemm<false>(height, a.padded, a.C, Left<scalar>{at.f, 1, tile}, Right<scalar>{a.bases + b * a.C * a.padded, a.padded}, at.z, a.padded);
      for (long r = 0; r < height; ++r) {
        scalar* z = at.z + r * a.padded;
        softmax<scalar>(z, a.K, a.padded, a.mask && !a.mask[b * a.N + n0 + r] ? 0 : 1);
        for (long k = 0; k < a.padded; k += lanes<scalar>) vec(mass + k) += vec(z + k);
        for (long k = 0; a.z && k < a.K; ++k) a.z[(b * a.N + n0 + r) * a.K + k] = z[k];
      }
      gemm<true>(a.C, a.padded, height, Left<scalar>{at.f, tile, 1}, Right<scalar>{at.z, a.padded}, sums, a.padded);
    }
  }
}

template <class scalar> long room_for(const EmRound<scalar>& a) { return numbers_of<EmRoom<scalar>, scalar>(a); }

}  // namespace

const EmRoundEngine<float> em_round_float{.run = run<float>, .room = room_for<float>, .vector = 2 * lanes<float>};
const EmRoundEngine<double> em_round_double{.run = run<double>, .room = room_for<double>, .vector = 2 * lanes<double>};

}  // namespace foveate::kernels::CPU_CAPABILITY
