// Locality-sensitive hashing by random rotations, and the line in which hashed tokens stand (Reformer).
//
//   p_r = x W_r,   bucket_r = argmax [p_r, -p_r]  (of equal ones the first);   several factors: bucket = b_1 + f_1 b_2 + f_1 f_2 b_3 + ...
//
// Every round r has buckets of its own: r times their number is added. No gradient.
#pragma once
#include <foveate/contract.h>

namespace foveate::ops {

/// How many buckets there are where nobody says.
enum class BucketRule {
  one_a_chunk,   ///< an even number, one for each chunk of the sequence
  power_of_two,  ///< the largest power of two that is at most twice the chunks, as two factors where it is large
};

struct LSHBuckets {
  std::vector<int64_t> factors = {};  ///< even numbers, whose product is the number of buckets; empty: by the rule
  int64_t rounds = 1;
  int64_t chunk = 64;  ///< tokens of a chunk
  BucketRule rule = BucketRule::one_a_chunk;
  optional<int64_t> longest = {};   ///< the longest sequence, which decides whether there are two factors; default this one
  bool per_head = false;            ///< heads have rotations of their own, where they are drawn
  bool rehash = true;               ///< False: one rotation, and in round r a token goes to its (rounds - r)-th best bucket
  optional<Tensor> rotations = {};  ///< [1 or H or B H,D,R or 1,sum of factors / 2]
  optional<Tensor> seed = {};       ///< int []: they are drawn from it
  optional<Tensor> mask = {};       ///< bool [B,N]: where it hides a token, hidden ones share one bucket more, behind the others
};

/// x [B,H,N,D] -> int [B,H,R,N]
FOVEATE_API Tensor lsh_buckets(const Tensor& x, const LSHBuckets& options);

/// The tokens sorted by bucket, then by time, one round behind the other; each round fills up its last chunk with nobody, -1.
struct LSHLine {
  Tensor token;     ///< int [B,H,P]: who stands there
  Tensor place;     ///< int [B,H,R N]: where each token stands in each round
  Tensor label;     ///< int [B,H,P]: the bucket there, -1
  Tensor meetings;  ///< int [2,B,H,R,N]: the chunk of each token, and the chunk behind it, the first one behind the last
};

/// buckets [B,H,R,N]; `within`: chunks of different buckets are different, for tokens that meet only inside a bucket.
FOVEATE_API LSHLine lsh_line(const Tensor& buckets, int64_t chunk, bool within);

}  // namespace foveate::ops
