#include <foveate/attention.h>
#include <foveate/largest.h>
#include <foveate/lsh.h>
#include <foveate/op.h>
#include <foveate/reformer_decoding.h>
#include <foveate/segment_sum.h>

namespace foveate {
namespace {

using Form = LSHIncrementalAttention;

Tensor buckets_of(const Form::Options& o, const Form::Inputs& in) {
  optional<Tensor> seed;
  if (!in.rotations) seed = ops::draw_seed(in.qk);
  return ops::lsh_buckets(in.qk, {.factors = o.n_buckets,
                                  .rounds = o.n_hashes,
                                  .chunk = o.bucket_size,
                                  .per_head = o.rotations_per_head,
                                  .rotations = in.rotations,
                                  .seed = seed});
}

/// The tokens before each of the last n that it attends to: int [B,H,n,K], in ascending order, -1 where there are fewer.
Tensor recalled(const Form::Options& o, const Tensor& buckets, const Size& n) {
  const Size M = extent(buckets, 3);
  const Tensor asking = buckets.narrow_symint(3, M - n, n).unsqueeze(4);          // [B,H,R,n,1]
  const Tensor shared = at::eq(asking, buckets.unsqueeze(3)).any(2);              // [B,H,n,M]
  const Tensor j = at::arange(M, buckets.options());                              // [M]
  const Tensor ahead = at::arange(M - n, M, buckets.options()).unsqueeze(1) - j;  // [n,M]
  Tensor past = ahead > 0;
  if (o.mem_len) past = at::logical_and(past, ahead < *o.mem_len);
  const Tensor rank = (shared * (j + 1).max() + j).to(at::kDouble).masked_fill(past.logical_not(), -std::numeric_limits<double>::infinity());
  return std::get<0>(ops::largest(rank, o.seen() - 1).sort(-1));
}

/// The last n of M queries attend to what they recall, and, as a last resort, to themselves.
Tensor attend(const Form::Options& o, const Form::State& all, const Size& n) {
  const Tensor index = recalled(o, all.buckets, n);
  const auto each = [](const Tensor& x) { return x.flatten(1, 2); };  // a row for each head and query: [B,H n,...]
  const auto rows = [&](const Tensor& x) {
    return each(ops::take_rows(x, index.flatten(2)).reshape_symint({extent(x, 0), extent(x, 1), n, o.seen() - 1, extent(x, 3)}));
  };
  const auto latest = [&](const Tensor& x) { return x.narrow_symint(2, extent(x, 2) - n, n).unsqueeze(3); };  // [B,H,n,1,D]
  const Tensor q = each(latest(all.qk)), own = each(latest(all.v));
  const Tensor read = ops::attention(q, rows(detail::reformer_keys(all.qk, o.variant)), rows(all.v),
                                     {.mask = each(index >= 0).unsqueeze(2),
                                      .scale = 1,
                                      .start = ops::Start{.logit = q.new_full({}, detail::reformer_self_score(o.variant)), .value = own}})
                          .out;  // [B,H n,1,Dv]
  return read.reshape_symint({extent(all.v, 0), extent(all.v, 1), n, extent(all.v, 3)});
}

}  // namespace

void LSHIncrementalAttention::check(const Options& o) {
  constexpr auto form_name = "lsh_incremental_attention";
  TORCH_CHECK_VALUE(o.bucket_size > 0 && o.n_hashes > 0 && o.chunks_before >= 0 && o.seen() > 1, form_name,
                    ": bucket_size, n_hashes and chunks_before must let a token see more than itself, got ", o.bucket_size, ", ", o.n_hashes, " and ",
                    o.chunks_before);
  TORCH_CHECK_VALUE(!o.n_buckets.empty(), form_name, ": n_buckets must name some");
  TORCH_CHECK_VALUE(o.mem_len.value_or(1) > 0, form_name, ": mem_len must be positive, got ", o.mem_len.value_or(1));
  detail::check_reformer_buckets(form_name, "n_buckets", o.n_buckets);
}

Tensor LSHIncrementalAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  return attend(o, {.qk = in.qk, .v = in.v, .buckets = buckets_of(o, in)}, extent(in.qk, 2));
}

std::pair<Tensor, LSHIncrementalAttention::State> LSHIncrementalAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(in.rotations, "lsh_incremental_attention_step: rotations must be given, the same in all steps");
  State all{.qk = in.qk, .v = in.v, .buckets = buckets_of(o, in)};
  if (past.qk.defined()) {
    all = {.qk = at::cat({past.qk, all.qk}, 2), .v = at::cat({past.v, all.v}, 2), .buckets = at::cat({past.buckets, all.buckets}, 3)};
  }
  Tensor out = attend(o, all, extent(in.qk, 2));
  if (o.mem_len) {  // nobody will look back farther
    const Size M = extent(all.qk, 2), first = (M - (*o.mem_len - 1)).max(0);
    all = {.qk = all.qk.slice_symint(2, first), .v = all.v.slice_symint(2, first), .buckets = all.buckets.slice_symint(3, first)};
  }
  return {std::move(out), std::move(all)};
}

FOVEATE_MECHANISM(LSHIncrementalAttention)

}  // namespace foveate
