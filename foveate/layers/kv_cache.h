// The cache of an attention that streams: keys and values of the tokens so far, of which the last query sees all.
#pragma once
#include <foveate/contract.h>

#include <utility>

namespace foveate::layers {

struct KVCache {
  Tensor k, v;

  void fields(auto&& f) {
    f("k", k, "[B,Hk,M,D] keys so far");
    f("v", v, "[B,Hk,M,Dv] values so far");
  }

  /// The cache with more tokens behind those so far; an empty one starts.
  KVCache then(const Tensor& more_k, const Tensor& more_v) const {
    if (!k.defined()) return {.k = more_k, .v = more_v};
    return {.k = at::cat({k, more_k}, 2), .v = at::cat({v, more_v}, 2)};
  }
};

/// The step of a form of q, k, v whose last query meets the last key: its forward over all keys so far. A key mask covers all of them.
template <class F> auto step_with_cache(const char* form, const typename F::Options& o, const typename F::Parameters& p, const typename F::Inputs& in,
                                        const KVCache& past) {
  if constexpr (requires { o.causal; }) TORCH_CHECK_VALUE(o.causal, form, "_step: causal must be True for the form to stream, got False");
  typename F::Inputs whole = in;
  KVCache next = past.then(in.k, in.v);
  whole.k = next.k;
  whole.v = next.v;
  return std::pair(F::forward(o, p, whole), std::move(next));
}

}  // namespace foveate::layers
