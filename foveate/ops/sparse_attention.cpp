#include <foveate/rules.h>
#include <foveate/sparse_attention.h>

namespace foveate::ops {

Attended sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v, const patterns::Pattern& pattern, const Attention& options) {
  patterns::parse(pattern.expression);  // refused here, where the caller can see it
  return attention_over("sparse_attention", q, k, v, pattern, options);
}

}  // namespace foveate::ops
