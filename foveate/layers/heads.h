// The projections of multi-head attention: queries of x, keys and values of a context, and the way back to the model's width.
#pragma once
#include <foveate/linear.h>

namespace foveate::layers {

struct FOVEATE_API Heads {
  Linear query, key, value, out;

  void fields(auto&& f) {
    f("query", query, "query projection");
    f("key", key, "key projection");
    f("value", value, "value projection");
    f("out", out, "output projection");
  }

  struct Sizes {
    int64_t width;                         ///< E, of x
    optional<int64_t> context_width = {};  ///< of the context, default E
    optional<int64_t> keys = {};           ///< H*D, default E
    optional<int64_t> values = {};         ///< H*Dv, default E
    bool bias = true;                      ///< of the query, key and value projections
    optional<bool> out_bias = {};          ///< of the output projection, default `bias`
    optional<double> bound = {};           ///< query, key and value weights uniform in [-bound, bound] with biases 0; default as Linear
  };
  static Heads init(const Sizes&);

  struct Projected {
    Tensor q, k, v;  // [B,H,N,D], [B,H,M,D], [B,H,M,Dv]
  };
  /// x [B,N,E], context [B,M,Ec]
  Projected project(const Tensor& x, const Tensor& context, int64_t heads) const;

  /// [B,H,N,Dv] -> [B,N,E]
  Tensor join(const Tensor& attended) const { return out(merge_heads(attended)); }
};

/// Refuses a number of heads that does not divide the width, naming form and option.
FOVEATE_API void check_heads(const char* form, int64_t embed_dim, int64_t num_heads);
/// The same where the width of a head is an option; given, it need only be positive.
FOVEATE_API void check_heads(const char* form, int64_t embed_dim, int64_t num_heads, const optional<int64_t>& head_dim);

}  // namespace foveate::layers
