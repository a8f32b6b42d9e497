#include <c10/util/StringUtil.h>
#include <foveate/pattern.h>
#include <foveate/rules.h>

#include <cctype>

namespace foveate::patterns {
namespace {

/// "dense(#0)" -> "dense(#2)" for an expression whose tables come after two others.
std::string with_tables_after(const std::string& expression, std::size_t others) {
  std::string renumbered;
  for (std::size_t at = 0; at < expression.size();) {
    renumbered += expression[at++];
    if (renumbered.back() != '#') continue;
    std::size_t end = at;
    while (end < expression.size() && std::isdigit(static_cast<unsigned char>(expression[end]))) ++end;
    renumbered += std::to_string(std::stoull(expression.substr(at, end - at)) + others);
    at = end;
  }
  return renumbered;
}

Pattern join(const char* how, const Pattern& a, const Pattern& b) {
  Pattern joined{.expression = c10::str(how, '(', a.expression, ',', with_tables_after(b.expression, a.tables.size()), ')'), .tables = a.tables};
  joined.tables.insert(joined.tables.end(), b.tables.begin(), b.tables.end());
  return joined;
}

}  // namespace

Pattern operator&(const Pattern& a, const Pattern& b) { return join("and", a, b); }
Pattern operator|(const Pattern& a, const Pattern& b) { return join("or", a, b); }
Pattern operator~(const Pattern& a) { return {.expression = c10::str("not(", a.expression, ')'), .tables = a.tables}; }

Pattern sliding_window(int64_t left, int64_t right) { return {c10::str("sliding_window(", left, ',', right, ')')}; }
Pattern causal() { return {"causal()"}; }
Pattern strided(int64_t stride) { return {c10::str("strided(", stride, ')')}; }
Pattern fixed(int64_t stride, int64_t columns) { return {c10::str("fixed(", stride, ',', columns, ')')}; }
Pattern dilated(int64_t left, int64_t right, int64_t dilation) { return {c10::str("dilated(", left, ',', right, ',', dilation, ')')}; }
Pattern block_diagonal(int64_t size) { return {c10::str("block_diagonal(", size, ')')}; }
Pattern staircase(int64_t step, int64_t first) { return {c10::str("staircase(", step, ',', first, ')')}; }
Pattern block_window(int64_t size, int64_t left, int64_t right) { return {c10::str("block_window(", size, ',', left, ',', right, ')')}; }
Pattern keys(int64_t first, int64_t last) { return {c10::str("keys(", first, ',', last, ')')}; }
Pattern queries(int64_t first, int64_t last) { return {c10::str("queries(", first, ',', last, ')')}; }
Pattern keys(const Tensor& positions) { return {"keys(#0)", {positions}}; }
Pattern queries(const Tensor& positions) { return {"queries(#0)", {positions}}; }
Pattern global_tokens(int64_t count) { return queries(0, count) | keys(0, count); }
Pattern global_tokens(const Tensor& positions) { return {"or(queries(#0),keys(#0))", {positions}}; }
Pattern heads(int64_t first, int64_t step) { return {c10::str("heads(", first, ',', step, ')')}; }
Pattern shifted(const Pattern& pattern, int64_t by) { return {c10::str("shifted(", pattern.expression, ',', by, ')'), pattern.tables}; }
Pattern random_blocks(int64_t block, const Tensor& table) { return {c10::str("random_blocks(", block, ",#0)"), {table}}; }
Pattern from_blocks(const Tensor& layout, int64_t block) { return {c10::str("blocks(", block, ",#0)"), {layout}}; }
Pattern from_dense(const Tensor& mask) { return {"dense(#0)", {mask}}; }

Tensor draw_blocks(int64_t heads, Size query_blocks, Size key_blocks, int64_t count, optional<at::Generator> generator, at::TensorOptions options) {
  const Tensor draws = at::rand_symint({heads, std::move(query_blocks), std::move(key_blocks)}, std::move(generator), options);
  return draws.argsort(int64_t{-1}).slice_symint(-1, 0, count);  // the first of a random order
}

Tensor to_blocks(const Pattern& pattern, int64_t heads, const Size& N, int64_t block, at::Device device) {
  const auto whole = at::TensorOptions(device).dtype(at::kLong);
  // One block more than there are, since an exported graph would refuse a size that may be 1; and heads stand between, since strides
  // of T T beside T would tie it to one length.
  const Size count = (N + (block - 1)) / block, more = count + 1;
  const Tensor first = at::arange(more, whole) * block;
  const Tensor seen =
      parse(pattern.expression)->test({.h = at::arange(heads, whole).unsqueeze(1), .i = first.view_symint({more, 1, 1}), .j = first}, pattern.tables);
  return seen.expand_symint({more, heads, more}).transpose(0, 1).slice_symint(1, 0, count).slice_symint(2, 0, count);
}

}  // namespace foveate::patterns
