#include <foveate/attention.h>
#include <foveate/blockwise.h>
#include <foveate/dropout.h>

#include <numeric>

namespace foveate {
namespace {

/// A sequence cut into n blocks, position i in block floor(i n / N). Where their sizes differ, a place of the smaller ones is empty.
struct Blocks {
  int64_t count;  // n
  Size length;    // N
  Size size;      // of the largest
  Tensor first;   // [n+1] where each block begins, and N
  Tensor index;   // [n,size] positions, those of empty places not after N - 1

  Blocks(int64_t n, const Tensor& x) : count(n), length(extent(x, 2)), size((length + (n - 1)) / n) {
    const auto whole = x.options().dtype(at::kLong);
    first = (at::arange(n + 1, whole) * length + (n - 1)).floor_divide(n);
    index = (first.slice(0, 0, n).unsqueeze(1) + at::arange(size, whole)).clamp_max(length - 1);
  }

  /// False where it depends on a length not known yet.
  bool even() const { return (size * count - length).maybe_as_int() == 0; }

  /// x [B,H,N,D] -> [B,H,n,size,D]
  Tensor cut(const Tensor& x) const { return even() ? x.unflatten(2, {count, -1}) : at::index(x, {{}, {}, index}); }

  /// x [B,H,n,size,D] -> [B,H,N,D]
  Tensor join(const Tensor& x) const {
    if (even()) return x.flatten(2, 3);
    const Tensor position = at::arange(length, index.options()), block = (position * count).floor_divide(length);
    return at::index(x, {{}, {}, block, position - first.index_select(0, block)});
  }

  /// Which places hold a position: [n,size]
  Tensor held() const { return first.slice(0, 0, count).unsqueeze(1) + at::arange(size, index.options()) < first.slice(0, 1).unsqueeze(1); }
};

/// Cyclic shifts of n blocks for H heads: int [H,n]
Tensor shifts(const std::vector<int64_t>& heads_per_permutation, int64_t heads, int64_t n, at::TensorOptions options) {
  const auto whole = options.dtype(at::kLong);
  Tensor shift = at::arange(heads, whole);
  if (!heads_per_permutation.empty()) {
    shift = at::zeros({heads}, whole);
    int64_t before = 0;
    for (const int64_t count : heads_per_permutation) {  // the heads after so many shift once more
      before += count;
      shift = shift + (at::arange(heads, whole) >= before);
    }
  }
  return (shift.unsqueeze(1) + at::arange(n, whole)).remainder(n);
}

void check_blocks(const char* form, int64_t n, const std::vector<int64_t>& heads_per_permutation, double dropout) {
  TORCH_CHECK_VALUE(n > 0, form, ": num_blocks must be positive, got ", n);
  TORCH_CHECK_VALUE(std::all_of(heads_per_permutation.begin(), heads_per_permutation.end(), [](int64_t count) { return count >= 0; }) &&
                        static_cast<int64_t>(heads_per_permutation.size()) <= n,
                    form, ": heads_per_permutation must be counts of heads, at most num_blocks = ", n, " of them, got ",
                    c10::ArrayRef(heads_per_permutation));
  layers::check_dropout(form, "dropout", dropout);
}

void check_heads(const char* form, const std::vector<int64_t>& heads_per_permutation, int64_t heads) {
  const int64_t given = std::accumulate(heads_per_permutation.begin(), heads_per_permutation.end(), int64_t{0});
  TORCH_CHECK_VALUE(heads_per_permutation.empty() || given == heads, form, ": heads_per_permutation must add up to the ", heads, " heads, got ",
                    c10::ArrayRef(heads_per_permutation));
}

}  // namespace

void BlockwiseAttention::check(const Options& o) { check_blocks("blockwise_attention", o.num_blocks, o.heads_per_permutation, o.dropout); }

Tensor BlockwiseAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const int64_t n = o.num_blocks, heads = plain_extent(in.q, 1), key_heads = plain_extent(in.k, 1);
  ops::check_qkv("blockwise_attention", in.q, in.k, in.v);
  if (!in.permutations) check_heads("blockwise_attention", o.heads_per_permutation, heads);
  const Tensor pi = in.permutations ? in.permutations->to(at::kLong) : shifts(o.heads_per_permutation, heads, n, in.q.options());  // [H,n]
  TORCH_CHECK_VALUE(extent(pi, 1) == n, "blockwise_attention: permutations must be [H,n] with n = num_blocks = ", n, ", got ", pi.sym_sizes());

  const Blocks blocks(n, in.q);
  const Tensor head = at::arange(heads, pi.options()).unsqueeze(1);  // [H,1]
  const Tensor key_head = head.floor_divide(heads / key_heads);
  const auto queries = [&](const Tensor& x) { return blocks.cut(x).flatten(1, 2); };                              // [B,H n,size,D]
  const auto keys = [&](const Tensor& x) { return at::index(blocks.cut(x), {{}, key_head, pi}).flatten(1, 2); };  // those they see

  optional<Tensor> mask;  // [B or 1,H n,1,size]
  if (!blocks.even() || in.key_mask) {
    Tensor seen = blocks.held().unsqueeze(0);  // [B or 1,n,size]
    if (in.key_mask) seen = seen & at::index(*in.key_mask, {{}, blocks.index});
    mask = at::index(seen, {{}, pi}).flatten(1, 2).unsqueeze(2);
  }
  const Tensor out = ops::attention(queries(in.q), keys(in.k), keys(in.v),
                                    {.mask = mask,
                                     .scale = o.scale,
                                     .dropout_keep = in.dropout_keep ? optional(queries(*in.dropout_keep)) : std::nullopt,
                                     .dropout = o.dropout})
                         .out;
  return blocks.join(out.unflatten(1, {heads, n}));
}

FOVEATE_MECHANISM(BlockwiseAttention)

void BlockwiseMultiheadAttention::check(const Options& o) {
  constexpr const char* name = "blockwise_multihead_attention";
  layers::check_heads(name, o.embed_dim, o.num_heads);
  check_blocks(name, o.num_blocks, o.heads_per_permutation, o.dropout);
  check_heads(name, o.heads_per_permutation, o.num_heads);
}

BlockwiseMultiheadAttention::Parameters BlockwiseMultiheadAttention::init(const Options& o) {
  return {.attention = layers::Heads::init({.width = o.embed_dim, .bias = o.bias}),
          .permutations = shifts(o.heads_per_permutation, o.num_heads, o.num_blocks, {})};
}

Tensor BlockwiseMultiheadAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto [q, k, v] = p.attention.project(in.x, in.x, o.num_heads);
  optional<Tensor> keep = in.dropout_keep;
  if (training && o.dropout > 0 && !keep) {
    const Size places = (extent(in.x, 1) + (o.num_blocks - 1)) / o.num_blocks;
    keep = at::rand_symint({extent(in.x, 0), o.num_heads, extent(in.x, 1), places}, in.x.options().dtype(at::kFloat)) >= o.dropout;
  }
  return p.attention.join(
      BlockwiseAttention::forward({.num_blocks = o.num_blocks, .scale = o.scale, .dropout = o.dropout}, {},
                                  {.q = q, .k = k, .v = v, .permutations = p.permutations, .key_mask = in.key_mask, .dropout_keep = keep}));
}

FOVEATE_MECHANISM(BlockwiseMultiheadAttention)

}  // namespace foveate
