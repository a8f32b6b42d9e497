// What a pattern's expression means: each rule answers two questions.
//
//   test   of coordinates h, i, j, broadcast: does query i see key j in head h?
//   lower  of a run of queries: which keys do some of them see, and which do all of them see?
//
// A block of queries by keys is empty where no key is seen by some, full where each key is seen by all, partial else. The algebra
// works on sets of keys: ~ exchanges the two sets and takes complements, & intersects, | unites. `some` may be too large and `every`
// too small, never the other way round. To add a rule: a class in rules.cpp and its line in the table there, a constructor in
// pattern.h, and one in python/foveate/patterns.py.
#pragma once
#include <foveate/intervals.h>
#include <foveate/tensor.h>

#include <functional>
#include <memory>
#include <string>

namespace foveate::patterns {

/// The queries at positions first <= i < last of one head, before keys 0 <= j < keys. Intervals may be as coarse as `grain`.
struct Run {
  int64_t head, first, last, keys, grain;
};

struct Seen {
  Intervals some, every;
};

/// What an expression sees, its tables read and summarised.
using Seer = std::function<Seen(const Run&)>;

/// Integer tensors that broadcast to the coordinates of a test.
struct Coordinates {
  Tensor h, i, j;
};

using Tables = c10::ArrayRef<Tensor>;

class Rule {
 public:
  virtual ~Rule() = default;
  virtual Tensor test(const Coordinates& at, Tables tables) const = 0;  // bool
  virtual Seer lower(Tables tables) const = 0;                          // tables on the CPU
  /// How many heads it tells apart: 1 where all are alike, 0 where it tells them apart and does not know their number.
  virtual int64_t heads(Tables) const { return 1; }
};

/// The rule of an expression, which the message names if it cannot be read. Recent ones are kept.
std::shared_ptr<const Rule> parse(const std::string& expression);

/// Refuses tables that do not fit the expression. `heads` is the number that the caller has, if it has one.
int64_t check_heads(const Rule& rule, Tables tables, optional<int64_t> heads);

}  // namespace foveate::patterns
