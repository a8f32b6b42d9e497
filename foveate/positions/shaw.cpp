#include <foveate/init.h>
#include <foveate/shaw.h>

namespace foveate {

ops::ScoreBias positions::shaw(const Tensor& key_rows, const optional<Tensor>& value_rows) {
  const auto by_head = [](const Tensor& rows) { return rows.dim() == 2 ? rows.unsqueeze(0) : rows; };  // [H or 1,2c+1,D]
  return {.rows = by_head(key_rows),
          .value_rows = value_rows ? optional<Tensor>(by_head(*value_rows)) : std::nullopt,
          .origin = (extent(key_rows, -2) - 1) / 2};
}

void ShawAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.head_dim > 0, "shaw_attention: head_dim must be positive, got ", o.head_dim);
  TORCH_CHECK_VALUE(o.value_dim.value_or(1) > 0, "shaw_attention: value_dim must be positive, got ", *o.value_dim);
  TORCH_CHECK_VALUE(o.max_distance >= 0, "shaw_attention: max_distance must not be negative, got ", o.max_distance);
  TORCH_CHECK_VALUE(o.table_heads.value_or(1) > 0, "shaw_attention: table_heads must be positive, got ", *o.table_heads);
}

ShawAttention::Parameters ShawAttention::init(const Options& o) {
  const int64_t rows = 2 * o.max_distance + 1;
  const auto table = [&](int64_t width) {  // Glorot-uniform in each head
    const double bound = std::sqrt(6.0 / static_cast<double>(rows + width));
    return o.table_heads ? layers::uniform({*o.table_heads, rows, width}, bound) : layers::uniform({rows, width}, bound);
  };
  Parameters made{.rel_key = table(o.head_dim)};
  if (o.values) made.rel_value = table(o.value_dim.value_or(o.head_dim));
  return made;
}

Tensor ShawAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto check_rows = [&](const char* name, const Tensor& table) {
    TORCH_CHECK_VALUE(extent(table, -2) == 2 * o.max_distance + 1 && (table.dim() == 2 || (table.dim() == 3 && extent(table, 0) == extent(in.q, 1))),
                      "shaw_attention: ", name, " must be [R,D] or [H,R,D] with R = 2 max_distance + 1 = ", 2 * o.max_distance + 1,
                      " and H of q, got ", table.sym_sizes());
  };
  check_rows("rel_key", p.rel_key);
  if (p.rel_value) check_rows("rel_value", *p.rel_value);
  const auto position = positions::shaw(p.rel_key, p.rel_value);
  return ops::attention(in.q, in.k, in.v, {.key_mask = in.key_mask, .causal = o.causal, .scale = o.scale, .position = position}).out;
}

std::pair<Tensor, ShawAttention::State> ShawAttention::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  return layers::step_with_cache<ShawAttention>("shaw_attention", o, p, in, past);
}

FOVEATE_MECHANISM(ShawAttention)

}  // namespace foveate
