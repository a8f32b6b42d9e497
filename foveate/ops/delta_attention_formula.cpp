// delta_attention, plainly: the corrected writes u are found by chunks; what is left is linear attention with u in place of v.
//
// Within a chunk of rows K, V that starts from the memory S, u_i + beta_i sum_{j<i} (k_i.k_j) u_j = beta_i (v_i - S^T k_i): with
// A = I + tril(diag(beta) K K^T, -1), unit lower triangular,
//
//   U = A^-1 diag(beta) (V - K S) = Y - X S,   [Y, X] = A^-1 diag(beta) [V, K]
//
// Y and X depend on no memory (the WY form), so that they are solved for all chunks at once.
#include <foveate/delta_attention_formula.h>

#include <foveate/attention_formula.h>
#include <foveate/linear_attention_formula.h>

#include <algorithm>
#include <vector>

namespace foveate::ops {
namespace {

constexpr int64_t chunk_length = 64;

/// u of every key: k [B,Hk,M,F], v [B,Hk,M,Dv], beta [B,Hk,M], S [B,Hk,F,Dv] -> [B,Hk,M,Dv]
Tensor corrected_writes(const Tensor& k, const Tensor& v, const Tensor& beta, Tensor S) {
  const int64_t M = k.size(2), C = std::min(chunk_length, M), n = (M + C - 1) / C;
  const auto chunks = [&](const Tensor& t) {  // [B,Hk,M,...] -> [B,Hk,n,C,...]; a ragged end is filled with zeros, which write nothing
    const Tensor whole = n * C == M ? t : at::cat({t, at::zeros_like(t.narrow(2, 0, n * C - M))}, 2);
    return whole.unflatten(2, {n, C});
  };
  const Tensor K = chunks(k), V = chunks(v), b = chunks(beta).unsqueeze(-1);
  const Tensor A = (b * at::matmul(K, K.transpose(-1, -2))).tril(-1);  // the ones of the diagonal are implied
  const Tensor YX = at::linalg_solve_triangular(A, b * at::cat({V, K}, -1), /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  const Tensor Y = YX.narrow(-1, 0, V.size(-1)), X = YX.narrow(-1, V.size(-1), K.size(-1));
  const auto Y_of = Y.unbind(2), X_of = X.unbind(2), K_of = K.unbind(2);  // of each chunk
  std::vector<Tensor> writes;
  for (std::size_t c = 0; c < K_of.size(); ++c) {
    writes.push_back(Y_of[c] - at::matmul(X_of[c], S));
    S = S + at::matmul(K_of[c].transpose(-1, -2), writes.back());
  }
  return at::cat(writes, 2).narrow(2, 0, M);
}

}  // namespace

std::tuple<Tensor, Tensor> delta_attention_formula(const Tensor& q, const Tensor& k_given, const Tensor& v_given, const Tensor& beta_given,
                                                   const optional<Tensor>& key_mask, const optional<Tensor>& state, Size offset, bool causal) {
  const auto type = accumulation_type(q.scalar_type());
  Tensor k = k_given.to(type), v = v_given.to(type), beta = beta_given.to(type);
  if (key_mask) {  // a hidden key may hold anything
    const Tensor hidden = key_mask->logical_not().unsqueeze(1);
    k = k.masked_fill(hidden.unsqueeze(-1), 0);
    v = v.masked_fill(hidden.unsqueeze(-1), 0);
    beta = beta.masked_fill(hidden, 0);
  }
  const Tensor S = state ? *state : k.new_zeros({k.size(0), k.size(1), k.size(3), v.size(3)});
  const Tensor u = k.size(2) == 0 ? v : corrected_writes(k, v, beta, S);
  const auto [out, after, sum] =
      linear_attention_formula(q.to(type), k, u, std::nullopt, std::nullopt, S, std::nullopt, std::move(offset), causal, "none", 0);
  return {out.to(q.scalar_type()), after};
}

}  // namespace foveate::ops
