// Sets of positions, as intervals: what rules say of the keys that queries see.
#pragma once
#include <cstdint>
#include <vector>

namespace foveate::patterns {

/// Positions first <= j < last.
struct Interval {
  int64_t first, last;
};
/// Ascending, neither touching nor empty.
using Intervals = std::vector<Interval>;

/// Appends an interval that starts at or after the start of the last one, cut to 0 <= j < keys.
void append(Intervals& set, int64_t first, int64_t last, int64_t keys);
Intervals interval(int64_t first, int64_t last, int64_t keys);
Intervals all(int64_t keys);
Intervals unite(const Intervals& a, const Intervals& b);
Intervals intersect(const Intervals& a, const Intervals& b);
Intervals complement(const Intervals& a, int64_t keys);

}  // namespace foveate::patterns
