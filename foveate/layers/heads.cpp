#include <foveate/heads.h>
#include <foveate/init.h>

namespace foveate::layers {

Heads Heads::init(const Sizes& s) {
  const int64_t context = s.context_width.value_or(s.width), keys = s.keys.value_or(s.width), values = s.values.value_or(s.width);
  Heads heads{.query = Linear::init(s.width, keys, s.bias),
              .key = Linear::init(context, keys, s.bias),
              .value = Linear::init(context, values, s.bias),
              .out = Linear::init(values, s.width, s.out_bias.value_or(s.bias))};
  if (s.bound) {
    for (Linear* projection : {&heads.query, &heads.key, &heads.value}) projection->weight = uniform(projection->weight.sizes(), *s.bound);
    for (Linear* projection : {&heads.query, &heads.key, &heads.value, &heads.out}) {
      if (projection->bias) projection->bias->zero_();
    }
  }
  return heads;
}

Heads::Projected Heads::project(const Tensor& x, const Tensor& context, int64_t heads) const {
  return {.q = split_heads(query(x), heads), .k = split_heads(key(context), heads), .v = split_heads(value(context), heads)};
}

void check_heads(const char* form, int64_t embed_dim, int64_t num_heads) {
  TORCH_CHECK_VALUE(num_heads > 0 && embed_dim > 0 && embed_dim % num_heads == 0, form, ": num_heads must divide embed_dim, got ", num_heads, " and ",
                    embed_dim);
}

void check_heads(const char* form, int64_t embed_dim, int64_t num_heads, const optional<int64_t>& head_dim) {
  TORCH_CHECK_VALUE(num_heads > 0 && embed_dim > 0 && (head_dim || embed_dim % num_heads == 0), form,
                    ": num_heads must divide embed_dim where head_dim is not given, got ", num_heads, " and ", embed_dim);
  TORCH_CHECK_VALUE(head_dim.value_or(1) > 0, form, ": head_dim must be positive, got ", *head_dim);
}

}  // namespace foveate::layers
