#include <foveate/intervals.h>

#include <algorithm>

namespace foveate::patterns {

void append(Intervals& set, int64_t first, int64_t last, int64_t keys) {
  first = std::max<int64_t>(first, 0);
  last = std::min(last, keys);
  if (first >= last) return;
  if (!set.empty() && first <= set.back().last) set.back().last = std::max(set.back().last, last);
  else set.push_back({first, last});
}

Intervals interval(int64_t first, int64_t last, int64_t keys) {
  Intervals set;
  append(set, first, last, keys);
  return set;
}

Intervals all(int64_t keys) { return interval(0, keys, keys); }

Intervals unite(const Intervals& a, const Intervals& b) {
  Intervals set;
  set.reserve(a.size() + b.size());
  for (std::size_t i = 0, j = 0; i < a.size() || j < b.size();) {
    const Interval& next = j == b.size() || (i < a.size() && a[i].first <= b[j].first) ? a[i++] : b[j++];
    append(set, next.first, next.last, next.last);
  }
  return set;
}

Intervals intersect(const Intervals& a, const Intervals& b) {
  Intervals set;
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    append(set, std::max(a[i].first, b[j].first), std::min(a[i].last, b[j].last), std::min(a[i].last, b[j].last));
    a[i].last < b[j].last ? ++i : ++j;
  }
  return set;
}

Intervals complement(const Intervals& a, int64_t keys) {
  Intervals set;
  int64_t at = 0;
  for (const auto& [first, last] : a) {
    append(set, at, first, keys);
    at = last;
  }
  append(set, at, keys, keys);
  return set;
}

}  // namespace foveate::patterns
