// KVCache: the keys and values of a sequence that arrives piece by piece, for decoding with any causal attention.
//
//   foveate::KVCache cache({.window = 256});
//   const Tensor out = cache.attend(q, k, v);                    // of the new tokens, to all that they may see
//   const Tensor next = cache.attend(q2, k2, v2, {.pattern = patterns::strided(64) & patterns::causal()});
//
// Tokens are written behind those that are there, into room that doubles when it is used up: a token costs what it writes, and what its
// pattern reads. Numbers are kept in the type they come in. No graph is kept: for training there is step().
#pragma once
#include <foveate/sparse_attention.h>

namespace foveate {

struct KVCacheOptions {
  optional<int64_t> window = {};  ///< a token sees this many, itself among them; older ones are dropped. Default: all are kept
};

/// How the tokens of one call attend.
struct Decoding {
  optional<patterns::Pattern> pattern = {};  ///< who attends to whom, by positions in the whole sequence; what lies ahead is hidden
  optional<Tensor> key_mask = {};            ///< bool [B,kept + n], True where a key takes part
  optional<double> scale = {};               ///< default 1/sqrt(D)
  optional<double> softcap = {};
  ops::ScoreBias position = {};
};

class FOVEATE_API KVCache {
 public:
  explicit KVCache(KVCacheOptions options = {});

  /// Appends k [B,Hk,n,D] and v [B,Hk,n,Dv]; the attention of q [B,H,n,D], the same tokens, to all that they may see: [B,H,n,Dv].
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Decoding& how = {});

  /// Tokens behind those that are there; drops what the window no longer reaches.
  void append(const Tensor& k, const Tensor& v);
  /// Drops all but the last `keep` tokens.
  void evict(int64_t keep);
  /// Batch rows index[0], index[1], ... of the cache become its rows 0, 1, ...: for beam search. index int [B'].
  void reorder(const Tensor& index);
  /// Forgets the last `count` tokens, as after a rejected draft.
  void rewind(int64_t count);

  int64_t length() const { return first_ + kept_; }  ///< tokens so far, dropped ones among them
  int64_t first() const { return first_; }           ///< the position of the first that is kept
  Tensor keys() const;                               ///< [B,Hk,kept,D], a view
  Tensor values() const;                             ///< [B,Hk,kept,Dv], a view

 private:
  void add(const Tensor& k, const Tensor& v);
  void make_room(const Tensor& k, const Tensor& v);

  KVCacheOptions options_;
  Tensor keys_, values_;                      // [B,Hk,room,D], [B,Hk,room,Dv]
  int64_t start_ = 0, kept_ = 0, first_ = 0;  // kept tokens lie at [start, start + kept) of the room
};

}  // namespace foveate
