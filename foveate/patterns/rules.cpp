#include <foveate/intervals.h>
#include <foveate/rules.h>

#include <c10/util/generic_math.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <mutex>
#include <unordered_map>

namespace foveate::patterns {
namespace {

int64_t floor_mod(int64_t a, int64_t b) { return a - c10::div_floor_integer(a, b) * b; }

// --- arguments of a rule -----------------------------------------------------------------------------------------------------

/// The arguments of a rule as written: numbers, tables (their numbers), rules.
struct Arguments {
  std::string name;
  std::vector<int64_t> numbers = {};
  std::vector<std::size_t> tables = {};
  std::vector<std::shared_ptr<const Rule>> rules = {};

  void need(bool fits, const char* what) const { TORCH_CHECK_VALUE(fits, "pattern: ", name, ": ", what); }
  void need(std::size_t number_count, std::size_t table_count, const char* signature) const {
    TORCH_CHECK_VALUE(numbers.size() == number_count && tables.size() == table_count && rules.empty(), "pattern: ", name, " must be written ",
                      signature);
  }
};

/// A rule's table: found by number, of an integer type, with these dimensions.
struct Table {
  std::string rule;
  std::size_t number;

  const Tensor& in(Tables tables) const {
    TORCH_CHECK_VALUE(number < tables.size(), "pattern: ", rule, ": names table #", number, " of ", tables.size());
    return tables[number];
  }
  const Tensor& in(Tables tables, int64_t dims, const char* shape) const {
    const Tensor& t = in(tables);
    TORCH_CHECK_TYPE(at::isIntegralType(t.scalar_type(), /*includeBool=*/true), "pattern: ", rule, ": its table must be bool or integer, got ",
                     t.scalar_type());
    TORCH_CHECK_VALUE(t.dim() == dims, "pattern: ", rule, ": its table must be ", shape, ", got ", t.sizes());
    return t;
  }
};

Tensor none_like(const Tensor& t) { return at::zeros_like(t, t.options().dtype(at::kBool)); }

// --- rules on the distance j - i ---------------------------------------------------------------------------------------------

struct SlidingWindow final : Rule {
  int64_t left, right;
  explicit SlidingWindow(const Arguments& a) {
    a.need(2, 0, "sliding_window(left,right)");
    left = a.numbers[0];
    right = a.numbers[1];
    a.need(left + right >= 0, "left + right must not be negative");
  }
  Tensor test(const Coordinates& at, Tables) const override {
    const Tensor distance = at.j - at.i;
    return (distance >= -left) & (distance <= right);
  }
  Seer lower(Tables) const override {
    return [*this](const Run& r) {
      return Seen{.some = interval(r.first - left, r.last + right, r.keys), .every = interval(r.last - 1 - left, r.first + 1 + right, r.keys)};
    };
  }
};

struct Causal final : Rule {
  explicit Causal(const Arguments& a) { a.need(0, 0, "causal()"); }
  Tensor test(const Coordinates& at, Tables) const override { return at.j <= at.i; }
  Seer lower(Tables) const override {
    return [](const Run& r) { return Seen{.some = interval(0, r.last, r.keys), .every = interval(0, r.first + 1, r.keys)}; };
  }
};

/// Windows of `left` steps back and `right` ahead, of `dilation` positions each; unbounded ones are strided.
struct Dilated final : Rule {
  bool bounded;
  int64_t left = 0, right = 0, dilation;
  explicit Dilated(const Arguments& a) : bounded(a.name == "dilated") {
    if (bounded) a.need(3, 0, "dilated(left,right,dilation)");
    else a.need(1, 0, "strided(stride)");
    dilation = a.numbers.back();
    a.need(dilation > 0, bounded ? "dilation must be positive" : "stride must be positive");
    if (!bounded) return;
    left = a.numbers[0];
    right = a.numbers[1];
    a.need(left + right >= 0, "left + right must not be negative");
  }
  Tensor test(const Coordinates& at, Tables) const override {
    const Tensor distance = at.j - at.i, whole = distance.remainder(dilation) == 0;
    return bounded ? whole & (distance >= -left * dilation) & (distance <= right * dilation) : whole;
  }
  Seer lower(Tables) const override {
    return [*this](const Run& r) {
      const int64_t back = bounded ? left * dilation : r.last + dilation, ahead = bounded ? right * dilation : r.keys - r.first + dilation;
      Intervals some;
      if (dilation <= std::max(r.last - r.first, r.grain)) {  // the steps of neighbouring queries close the gaps
        some = interval(r.first - back, r.last + ahead, r.keys);
      } else {
        // From the first step that reaches a key at or after 0.
        int64_t step = std::max(-back, c10::div_floor_integer(-r.last, dilation) * dilation);
        step -= floor_mod(step, dilation);
        for (step = std::max(step, -(back / dilation) * dilation); step <= ahead && r.first + step < r.keys; step += dilation) {
          append(some, r.first + step, r.last + step, r.keys);
        }
      }
      Seen seen{.some = std::move(some)};
      if (r.last - r.first == 1 && dilation > r.grain) seen.every = seen.some;
      else if (dilation == 1) seen.every = interval(r.last - 1 - back, r.first + 1 + ahead, r.keys);
      return seen;
    };
  }
};

// --- rules on places ---------------------------------------------------------------------------------------------------------

struct Fixed final : Rule {
  int64_t stride, columns;
  explicit Fixed(const Arguments& a) {
    a.need(2, 0, "fixed(stride,columns)");
    stride = a.numbers[0];
    columns = a.numbers[1];
    a.need(stride > 0 && columns >= 0 && columns <= stride, "columns must lie in 0..stride, stride be positive");
  }
  Tensor test(const Coordinates& at, Tables) const override { return at.j.remainder(stride) >= stride - columns; }
  Seer lower(Tables) const override {
    return [*this](const Run& r) {
      if (columns == stride) return Seen{.some = all(r.keys), .every = all(r.keys)};
      if (columns == 0) return Seen{};
      if (stride <= r.grain) return Seen{.some = all(r.keys)};
      Intervals set;
      for (int64_t end = stride; end - columns < r.keys; end += stride) append(set, end - columns, end, r.keys);
      return Seen{.some = set, .every = set};
    };
  }
};

/// The run of `size` positions in which the query lies, and so many before and behind it: none where block_diagonal.
struct BlockWindow final : Rule {
  int64_t size, left = 0, right = 0;
  explicit BlockWindow(const Arguments& a) {
    const bool wide = a.name == "block_window";
    if (wide) a.need(3, 0, "block_window(size,left,right)");
    else a.need(1, 0, "block_diagonal(size)");
    size = a.numbers[0];
    a.need(size > 0, "size must be positive");
    if (!wide) return;
    left = a.numbers[1];
    right = a.numbers[2];
    a.need(left + size + right >= 0, "left + size + right must not be negative");
  }
  Tensor test(const Coordinates& at, Tables) const override {
    if (left == 0 && right == 0) return at.i.floor_divide(size) == at.j.floor_divide(size);
    const Tensor place = at.j - at.i.floor_divide(size) * size;  // of the key, from where the run begins
    return (place >= -left) & (place < size + right);
  }
  Seer lower(Tables) const override {
    return [*this](const Run& r) {
      const int64_t first = c10::div_floor_integer(r.first, size) * size, last = c10::div_floor_integer(r.last - 1, size) * size;  // runs begin here
      return Seen{.some = interval(first - left, last + size + right, r.keys), .every = interval(last - left, first + size + right, r.keys)};
    };
  }
};

/// A key stands for `step` positions, the first of them `first` before the query that first sees it: step j + first <= i.
struct Staircase final : Rule {
  int64_t step, first;
  explicit Staircase(const Arguments& a) {
    a.need(2, 0, "staircase(step,first)");
    step = a.numbers[0];
    first = a.numbers[1];
    a.need(step > 0, "step must be positive");
  }
  Tensor test(const Coordinates& at, Tables) const override { return at.j * step + first <= at.i; }
  Seer lower(Tables) const override {
    return [*this](const Run& r) {
      const auto seen_by = [&](int64_t i) { return interval(0, c10::div_floor_integer(i - first, step) + 1, r.keys); };
      return Seen{.some = seen_by(r.last - 1), .every = seen_by(r.first)};
    };
  }
};

/// Positions first <= x < last, or those of a table int [P]; of keys or of queries.
struct Places final : Rule {
  bool of_keys;
  optional<Table> table;
  int64_t first = 0, last = 0;
  explicit Places(const Arguments& a) : of_keys(a.name == "keys") {
    const char* signature = of_keys ? "keys(first,last) or keys(#table)" : "queries(first,last) or queries(#table)";
    if (a.tables.empty()) {
      a.need(2, 0, signature);
      first = a.numbers[0];
      last = a.numbers[1];
    } else {
      a.need(0, 1, signature);
      table = Table{a.name, a.tables[0]};
    }
  }
  Tensor test(const Coordinates& at, Tables tables) const override {
    const Tensor& place = of_keys ? at.j : at.i;
    return table ? at::isin(place, table->in(tables, 1, "[P]")) : (place >= first) & (place < last);
  }
  Seer lower(Tables tables) const override {
    Intervals places;  // of queries, perhaps negative ones
    if (table) {
      const Tensor sorted = std::get<0>(table->in(tables, 1, "[P]").to(at::kLong).sort()).contiguous();
      for (const int64_t place : c10::ArrayRef(sorted.const_data_ptr<int64_t>(), static_cast<std::size_t>(sorted.numel()))) {
        if (!places.empty() && place <= places.back().last) places.back().last = place + 1;
        else places.push_back({place, place + 1});
      }
    } else if (first < last) {
      places.push_back({first, last});
    }
    return [places, keys = of_keys](const Run& r) {
      Seen seen;
      if (keys) {
        for (const auto& [a, b] : places) append(seen.some, a, b, r.keys);
        seen.every = seen.some;
        return seen;
      }
      for (const auto& [a, b] : places) {
        if (a < r.last && r.first < b) seen.some = all(r.keys);
        if (a <= r.first && r.last <= b) seen.every = seen.some;
      }
      return seen;
    };
  }
};

struct Heads final : Rule {
  int64_t first, step;
  explicit Heads(const Arguments& a) {
    a.need(2, 0, "heads(first,step)");
    first = a.numbers[0];
    step = a.numbers[1];
    a.need(first >= 0 && step > 0, "first must not be negative, step be positive");
  }
  Tensor test(const Coordinates& at, Tables) const override { return (at.h >= first) & ((at.h - first).remainder(step) == 0); }
  Seer lower(Tables) const override {
    return [*this](const Run& r) {
      const bool chosen = r.head >= first && (r.head - first) % step == 0;
      return chosen ? Seen{.some = all(r.keys), .every = all(r.keys)} : Seen{};
    };
  }
  int64_t heads(Tables) const override { return 0; }
};

// --- rules on tables ---------------------------------------------------------------------------------------------------------

/// The head index into a table of one head, or of all.
Tensor head_of(const Coordinates& at, const Tensor& table) { return extent(table, 0) == 1 ? at::zeros_like(at.h) : at.h; }

/// What queries of several rows see: some of the rows, all of them. row(r) gives the keys of a row.
template <class Row> Seen over_rows(int64_t first, int64_t last, const Row& row) {
  Seen seen{.some = row(first)};
  seen.every = seen.some;
  for (int64_t r = first + 1; r < last; ++r) {
    const Intervals next = row(r);
    seen.some = unite(seen.some, next);
    seen.every = intersect(seen.every, next);
  }
  return seen;
}

/// table int [H or 1, query blocks, r] of key blocks
struct RandomBlocks final : Rule {
  int64_t block;
  Table table;
  explicit RandomBlocks(const Arguments& a) {
    a.need(1, 1, "random_blocks(block,#table)");
    block = a.numbers[0];
    a.need(block > 0, "block must be positive");
    table = {a.name, a.tables[0]};
  }
  const Tensor& in(Tables tables) const { return table.in(tables, 3, "[H or 1, query blocks, r]"); }

  Tensor test(const Coordinates& at, Tables tables) const override {
    const Tensor& t = in(tables);
    Tensor seen = none_like(at.i + at.j);
    if (t.sym_numel() == 0) return seen;
    const Tensor row = at.i.floor_divide(block), column = at.j.floor_divide(block);
    const Tensor drawn = at::index(t, {head_of(at, t), row.clamp(0, extent(t, 1) - 1)});  // [h,i,1,r]
    for (const Tensor& one : drawn.unbind(-1)) seen = seen | (one == column);
    return seen & (row >= 0) & (row < extent(t, 1)) & (column >= 0);
  }
  Seer lower(Tables tables) const override {
    const Tensor t = in(tables).to(at::kLong).contiguous();
    return [t, size = block](const Run& r) {
      const auto a = t.accessor<int64_t, 3>();
      return over_rows(c10::div_floor_integer(r.first, size), c10::div_floor_integer(r.last - 1, size) + 1, [&](int64_t row) {
        Intervals set;
        if (row < 0 || row >= a.size(1)) return set;
        const auto drawn = a[a.size(0) == 1 ? 0 : r.head][row];
        std::vector<int64_t> columns;
        for (int64_t n = 0; n < drawn.size(0); ++n) {
          if (drawn[n] >= 0) columns.push_back(drawn[n]);
        }
        std::sort(columns.begin(), columns.end());
        for (const int64_t column : columns) {
          if (column * size < r.keys) append(set, column * size, (column + 1) * size, r.keys);
        }
        return set;
      });
    };
  }
  int64_t heads(Tables tables) const override { return in(tables).size(0); }
};

/// A table of cells, each `block` queries by `block` keys: layout [H or 1, rows, columns], or a mask [N,M] or [H,N,M] with cells of
/// one element, whose last row belongs to the query that meets its last key.
struct Cells final : Rule {
  bool dense;
  int64_t block = 1;
  Table table;
  explicit Cells(const Arguments& a) : dense(a.name == "dense") {
    if (dense) {
      a.need(0, 1, "dense(#table)");
    } else {
      a.need(1, 1, "blocks(block,#table)");
      block = a.numbers[0];
      a.need(block > 0, "block must be positive");
    }
    table = {a.name, a.tables[0]};
  }
  Tensor in(Tables tables) const {  // [H or 1, rows, columns]
    if (dense && table.in(tables).dim() == 2) return table.in(tables, 2, "[N,M] or [H,N,M]").unsqueeze(0);
    return table.in(tables, 3, dense ? "[N,M] or [H,N,M]" : "[H or 1, query blocks, key blocks]");
  }
  int64_t shift(const Tensor& t) const { return dense ? t.size(2) - t.size(1) : 0; }

  Tensor test(const Coordinates& at, Tables tables) const override {
    const Tensor t = in(tables);
    if (t.numel() == 0) return none_like(at.i + at.j);
    const Tensor row = (at.i - shift(t)).floor_divide(block), column = at.j.floor_divide(block);
    const Tensor cell = at::index(t, {head_of(at, t), row.clamp(0, t.size(1) - 1), column.clamp(0, t.size(2) - 1)});
    return (cell != 0) & (row >= 0) & (row < t.size(1)) & (column >= 0) & (column < t.size(2));
  }
  Seer lower(Tables tables) const override {
    const Tensor t = (in(tables) != 0).contiguous();
    return [t, size = block, shift = shift(t)](const Run& r) {
      const int64_t rows = t.size(1), columns = std::min(t.size(2), (r.keys + size - 1) / size);
      const bool* cells = t.const_data_ptr<bool>() + (t.size(0) == 1 ? 0 : r.head) * rows * t.size(2);
      std::vector<unsigned char> some(static_cast<std::size_t>(columns), 0), every(static_cast<std::size_t>(columns), 1);
      for (int64_t row = c10::div_floor_integer(r.first - shift, size); row <= c10::div_floor_integer(r.last - 1 - shift, size); ++row) {
        if (row < 0 || row >= rows) {
          std::fill(every.begin(), every.end(), 0);
          continue;
        }
        const bool* cell = cells + row * t.size(2);
        for (std::size_t c = 0; c < some.size(); ++c) {
          some[c] |= static_cast<unsigned char>(cell[c]);
          every[c] &= static_cast<unsigned char>(cell[c]);
        }
      }
      const auto intervals = [&](const std::vector<unsigned char>& flags) {
        Intervals set;
        for (int64_t c = 0; c < columns; ++c) {
          if (flags[static_cast<std::size_t>(c)]) append(set, c * size, (c + 1) * size, r.keys);
        }
        return set;
      };
      return Seen{.some = intervals(some), .every = intervals(every)};
    };
  }
  int64_t heads(Tables tables) const override { return in(tables).size(0); }
};

// --- the algebra -------------------------------------------------------------------------------------------------------------

struct Joined final : Rule {
  bool both;  // & or |
  std::vector<std::shared_ptr<const Rule>> rules;
  explicit Joined(const Arguments& a) : both(a.name == "and"), rules(a.rules) {
    a.need(!rules.empty() && a.numbers.empty() && a.tables.empty(), "joins rules, one or more");
  }
  Tensor test(const Coordinates& at, Tables tables) const override {
    Tensor result = rules[0]->test(at, tables);
    for (std::size_t r = 1; r < rules.size(); ++r) {
      const Tensor next = rules[r]->test(at, tables);
      result = both ? result & next : result | next;
    }
    return result;
  }
  Seer lower(Tables tables) const override {
    std::vector<Seer> seers;
    for (const auto& rule : rules) seers.push_back(rule->lower(tables));
    return [seers, join = both ? intersect : unite](const Run& r) {
      Seen seen = seers[0](r);
      for (std::size_t s = 1; s < seers.size(); ++s) {
        const Seen next = seers[s](r);
        seen = {.some = join(seen.some, next.some), .every = join(seen.every, next.every)};
      }
      return seen;
    };
  }
  int64_t heads(Tables tables) const override {
    int64_t count = 1;
    for (const auto& rule : rules) {
      const int64_t other = rule->heads(tables);
      TORCH_CHECK_VALUE(count <= 1 || other <= 1 || count == other, "pattern: tables of ", count, " and of ", other, " heads do not go together");
      count = count == 1 ? other : std::max(count, other == 1 ? count : other);
    }
    return count;
  }
};

struct Negated final : Rule {
  std::shared_ptr<const Rule> rule;
  explicit Negated(const Arguments& a) {
    a.need(a.rules.size() == 1 && a.numbers.empty() && a.tables.empty(), "takes one rule");
    rule = a.rules[0];
  }
  Tensor test(const Coordinates& at, Tables tables) const override { return rule->test(at, tables).logical_not(); }
  Seer lower(Tables tables) const override {
    return [inner = rule->lower(tables)](const Run& r) {
      const Seen seen = inner(r);
      return Seen{.some = complement(seen.every, r.keys), .every = complement(seen.some, r.keys)};
    };
  }
  int64_t heads(Tables tables) const override { return rule->heads(tables); }
};

/// A rule on positions counted from `by` on. Where `by` is positive, what stands before neither sees nor is seen; where it is negative,
/// the first key stands at position -by of the rule.
struct Shifted final : Rule {
  std::shared_ptr<const Rule> rule;
  int64_t by;
  explicit Shifted(const Arguments& a) {
    a.need(a.rules.size() == 1 && a.numbers.size() == 1 && a.tables.empty(), "must be written shifted(rule,by)");
    rule = a.rules[0];
    by = a.numbers[0];
  }
  Tensor test(const Coordinates& at, Tables tables) const override {
    return rule->test({.h = at.h, .i = at.i - by, .j = at.j - by}, tables) & (at.i >= by) & (at.j >= by);
  }
  Seer lower(Tables tables) const override {
    return [inner = rule->lower(tables), shift = by](const Run& r) {
      if (r.last <= shift || r.keys <= shift) return Seen{};
      Seen seen =
          inner({.head = r.head, .first = std::max(r.first, shift) - shift, .last = r.last - shift, .keys = r.keys - shift, .grain = r.grain});
      if (r.first < shift) seen.every.clear();
      for (Intervals* set : {&seen.some, &seen.every}) {
        for (auto& [first, last] : *set) {
          first = std::max<int64_t>(first + shift, 0);
          last += shift;
        }
        std::erase_if(*set, [](const Interval& one) { return one.last <= one.first; });
      }
      return seen;
    };
  }
  int64_t heads(Tables tables) const override { return rule->heads(tables); }
};

// --- reading -----------------------------------------------------------------------------------------------------------------

template <class R> std::shared_ptr<const Rule> make(const Arguments& a) { return std::make_shared<R>(a); }

using Maker = std::shared_ptr<const Rule> (*)(const Arguments&);
const std::map<std::string, Maker, std::less<>>& makers() {
  static const std::map<std::string, Maker, std::less<>> all{
      {"sliding_window", make<SlidingWindow>},
      {"causal", make<Causal>},
      {"strided", make<Dilated>},
      {"fixed", make<Fixed>},
      {"dilated", make<Dilated>},
      {"block_diagonal", make<BlockWindow>},
      {"block_window", make<BlockWindow>},
      {"staircase", make<Staircase>},
      {"keys", make<Places>},
      {"queries", make<Places>},
      {"heads", make<Heads>},
      {"random_blocks", make<RandomBlocks>},
      {"blocks", make<Cells>},
      {"dense", make<Cells>},
      {"and", make<Joined>},
      {"or", make<Joined>},
      {"not", make<Negated>},
      {"shifted", make<Shifted>},
  };
  return all;
}

/// Reads rule = name "(" argument, ... ")", argument = rule | number | "#" number.
class Reader {
 public:
  explicit Reader(const std::string& text) : text_(text) {}

  std::shared_ptr<const Rule> whole() {
    auto rule = this->rule();
    need(at_ == text_.size(), "something follows the end");
    return rule;
  }

 private:
  std::shared_ptr<const Rule> rule() {
    need(++depth_ <= 200, "nested too deeply");
    Arguments arguments{.name = word()};
    const auto maker = makers().find(arguments.name);
    need(maker != makers().end(), "there is no rule '" + arguments.name + "'");
    need(take('('), "'(' expected");
    while (!take(')')) {
      const char next = at_ < text_.size() ? text_[at_] : '\0';
      if (take('#')) arguments.tables.push_back(static_cast<std::size_t>(number()));
      else if (next == '-' || (next >= '0' && next <= '9')) arguments.numbers.push_back(number());
      else arguments.rules.push_back(rule());
      if (!take(',')) need(at_ < text_.size() && text_[at_] == ')', "',' or ')' expected");
    }
    --depth_;
    return maker->second(arguments);
  }
  bool take(char c) {
    const bool there = at_ < text_.size() && text_[at_] == c;
    at_ += there;
    return there;
  }
  std::string word() {
    const std::size_t start = at_;
    while (at_ < text_.size() && (text_[at_] == '_' || (text_[at_] >= 'a' && text_[at_] <= 'z'))) ++at_;
    need(at_ > start, "a rule expected");
    return text_.substr(start, at_ - start);
  }
  int64_t number() {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
    constexpr int64_t most = int64_t{1} << 31;  // products of two stay in range
    need(error == std::errc() && value >= -most && value <= most, "a whole number up to 2^31 expected");
    at_ = static_cast<std::size_t>(end - text_.data());
    return value;
  }
  void need(bool holds, const std::string& what) const { TORCH_CHECK_VALUE(holds, "pattern: ", what, " at character ", at_, " of '", text_, "'"); }
  const std::string& text_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

std::shared_ptr<const Rule> parse(const std::string& expression) {
  static std::mutex mutex;
  static std::unordered_map<std::string, std::shared_ptr<const Rule>> read;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto known = read.find(expression); known != read.end()) return known->second;
  auto rule = Reader(expression).whole();
  constexpr std::size_t kept = 1024;
  if (read.size() == kept) read.clear();
  return read.emplace(expression, std::move(rule)).first->second;
}

int64_t check_heads(const Rule& rule, Tables tables, optional<int64_t> heads) {
  const int64_t told_apart = rule.heads(tables);
  if (told_apart == 1) return 1;
  if (told_apart == 0) {
    TORCH_CHECK_VALUE(heads, "pattern: heads() tells heads apart, so the number of heads must be given");
    return *heads;
  }
  TORCH_CHECK_VALUE(!heads || *heads == told_apart, "pattern: its tables are of ", told_apart, " heads, got ", heads.value_or(0), " heads");
  return told_apart;
}

}  // namespace foveate::patterns
