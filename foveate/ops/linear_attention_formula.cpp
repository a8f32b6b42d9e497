// linear_attention, plainly. Keys that every query sees, and keys that none sees, are summed at once; the square where queries meet
// keys goes by chunks: within a chunk the C x C scores, before it the sums of all earlier chunks.
#include <foveate/linear_attention_formula.h>

#include <foveate/attention_formula.h>
#include <foveate/linear_attention.h>

#include <algorithm>
#include <limits>

namespace foveate::ops {
namespace {

constexpr int64_t chunk_length = 64;

/// Keys, their values and log decays, one after another; heads of queries that share a key head stand in a dimension of their own.
struct Keys {
  Tensor k;                // [B,Hk,M,F]
  Tensor v;                // [B,Hk,M,Dv]
  optional<Tensor> decay;  // [B,Hk,M]

  int64_t length() const { return k.size(2); }
  Keys part(int64_t begin, int64_t end) const {
    const auto cut = [&](const Tensor& t) { return t.slice(2, begin, end); };
    return {.k = cut(k), .v = cut(v), .decay = decay ? optional(cut(*decay)) : std::nullopt};
  }
};

/// q S and q . z, before they are divided.
struct Sums {
  Tensor numerator;    // [B,Hk,G,N,Dv]
  Tensor denominator;  // [B,Hk,G,N]
};

/// How much of each key is left at the end of its row, and of what came before the row: d [...,M] -> [...,M], [...].
std::pair<Tensor, Tensor> remains(const Tensor& d) {
  const Tensor after = at::constant_pad_nd(d.narrow(-1, 1, d.size(-1) - 1), {0, 1});  // sums from the next key on: -inf never meets -inf
  return {after.flip(-1).cumsum(-1).flip(-1).exp(), d.sum(-1).exp()};
}

LinearState absorb(const LinearState& past, const Keys& keys) {
  if (keys.length() == 0) return {.S = past.S.clone(), .z = past.z.clone()};
  if (!keys.decay) return {.S = past.S + at::matmul(keys.k.transpose(-1, -2), keys.v), .z = past.z + keys.k.sum(-2)};
  const auto [left, before] = remains(*keys.decay);
  const Tensor k = keys.k * left.unsqueeze(-1);
  return {.S = past.S * before.unsqueeze(-1).unsqueeze(-1) + at::matmul(k.transpose(-1, -2), keys.v), .z = past.z * before.unsqueeze(-1) + k.sum(-2)};
}

/// q [...,G,N,F], S [...,F,Dv], z [...,F]
Sums read(const Tensor& q, const LinearState& state) {
  return {.numerator = at::matmul(q, state.S.unsqueeze(-3)), .denominator = at::matmul(q, state.z.unsqueeze(-2).unsqueeze(-1)).squeeze(-1)};
}

/// log of what is left at query i of key j <= i in its chunk, -inf above the diagonal: d [...,C] -> [...,C,C]. Each entry is a sum of its
/// own, since differences of running sums lose digits.
Tensor segments(const Tensor& d) {
  const int64_t C = d.size(-1);
  const Tensor below = at::ones({C, C}, d.options().dtype(at::kBool)).tril(-1);
  const Tensor sums = at::where(below, d.unsqueeze(-1), d.new_zeros({})).cumsum(-2);  // [...,C,C]: row i adds d_i
  return sums.masked_fill(below.logical_or(at::eye(C, below.options())).logical_not(), -std::numeric_limits<double>::infinity());
}

/// States before each chunk, and after the last: k [B,Hk,n,C,F], v [B,Hk,n,C,Dv] -> S [B,Hk,n+1,F,Dv], z [B,Hk,n+1,F].
LinearState chunk_states(const LinearState& past, const Keys& chunks) {
  if (!chunks.decay) {
    const auto running = [](const Tensor& first, const Tensor& added) { return at::cat({first.unsqueeze(2), added}, 2).cumsum(2); };
    return {.S = running(past.S, at::matmul(chunks.k.transpose(-1, -2), chunks.v)), .z = running(past.z, chunks.k.sum(-2))};
  }
  std::vector<Tensor> S{past.S}, z{past.z};
  for (int64_t c = 0; c < chunks.k.size(2); ++c) {
    auto next = absorb({.S = S.back(), .z = z.back()}, {.k = chunks.k.select(2, c), .v = chunks.v.select(2, c), .decay = chunks.decay->select(2, c)});
    S.push_back(std::move(next.S));
    z.push_back(std::move(next.z));
  }
  return {.S = at::stack(S, 2), .z = at::stack(z, 2)};
}

/// Queries and keys that meet: query i sees keys up to i. q [B,Hk,G,L,F], keys of length L; the sums of all queries and the state after.
std::pair<Sums, LinearState> square(const Tensor& q, const Keys& keys, const LinearState& past) {
  const int64_t L = keys.length(), C = std::min(chunk_length, L), n = (L + C - 1) / C, tail = n * C - L;
  const auto chunks = [&](const Tensor& t, int64_t dim) {  // a ragged end is filled with zeros, which add nothing
    const Tensor whole = tail == 0 ? t : at::cat({t, at::zeros_like(t.narrow(dim, 0, tail))}, dim);
    return whole.unflatten(dim, {n, C});
  };
  const Tensor queries = chunks(q, 3);  // [B,Hk,G,n,C,F]
  const Keys parts{.k = chunks(keys.k, 2), .v = chunks(keys.v, 2), .decay = keys.decay ? optional(chunks(*keys.decay, 2)) : std::nullopt};
  const auto states = chunk_states(past, parts);

  Tensor scores = at::matmul(queries, parts.k.unsqueeze(2).transpose(-1, -2));  // [B,Hk,G,n,C,C]
  Tensor seen = queries;                                                        // what a query takes from before its chunk
  if (parts.decay) {
    scores = scores.tril() * segments(*parts.decay).exp().unsqueeze(2);
    seen = queries * parts.decay->cumsum(-1).exp().unsqueeze(-1).unsqueeze(2);
  } else {
    scores = scores.tril();
  }
  const Tensor S = states.S.narrow(2, 0, n).unsqueeze(2), z = states.z.narrow(2, 0, n).unsqueeze(2);  // [B,Hk,1,n,...]
  const Tensor numerator = at::matmul(scores, parts.v.unsqueeze(2)) + at::matmul(seen, S);
  const Tensor denominator = scores.sum(-1) + at::matmul(seen, z.unsqueeze(-1)).squeeze(-1);
  return {{.numerator = numerator.flatten(3, 4).narrow(3, 0, L), .denominator = denominator.flatten(3, 4).narrow(3, 0, L)},
          {.S = states.S.select(2, n), .z = states.z.select(2, n)}};
}

Tensor divisor(const Tensor& z, Normalizer normalizer, double eps) {
  const Tensor d = normalizer == Normalizer::add         ? z + eps
                   : normalizer == Normalizer::clamp     ? z.clamp_min(eps)
                   : normalizer == Normalizer::clamp_abs ? z.abs().clamp_min(eps)
                                                         : at::where(z.abs() <= eps, z + 2 * eps, z);
  return at::where(d == 0, d.new_ones({}), d);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> linear_attention_formula(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                                            const optional<Tensor>& key_mask, const optional<Tensor>& log_decay,
                                                            const optional<Tensor>& S, const optional<Tensor>& z, Size offset_given, bool causal,
                                                            std::string_view normalizer_name, double eps) {
  const auto type = accumulation_type(q_given.scalar_type());
  const int64_t B = k_given.size(0), Hk = k_given.size(1), M = k_given.size(2), F = k_given.size(3), Dv = v_given.size(3), N = q_given.size(2);
  const auto normalizer = static_cast<Normalizer>(
      registry::find_choice("linear_attention: normalizer", normalizer_name, names<Normalizer>.data(), names<Normalizer>.size()));
  const Tensor q = q_given.to(type).unflatten(1, {Hk, Hk > 0 ? q_given.size(1) / Hk : 1});  // [B,Hk,G,N,F]

  Keys keys{.k = k_given.to(type), .v = v_given.to(type), .decay = log_decay ? optional(log_decay->to(type)) : std::nullopt};
  if (key_mask) {  // values too: a hidden key may hold anything
    const Tensor hidden = key_mask->logical_not().unsqueeze(1);
    keys.k = keys.k.masked_fill(hidden.unsqueeze(-1), 0);
    keys.v = keys.v.masked_fill(hidden.unsqueeze(-1), 0);
    if (keys.decay) keys.decay = keys.decay->masked_fill(hidden, 0);
  }
  LinearState state{.S = S ? *S : keys.k.new_zeros({B, Hk, F, Dv}), .z = z ? *z : keys.k.new_zeros({B, Hk, F})};

  // Queries before the first key see the start; keys before the first query are seen by all; then queries and keys meet; keys or
  // queries may be left over.
  const int64_t offset = causal ? offset_given.guard_int(__FILE__, __LINE__) : M;
  const int64_t early = std::clamp<int64_t>(-offset, 0, N), prefix = std::clamp<int64_t>(offset, 0, M);
  const int64_t met = std::min(N - early, M - prefix);
  std::vector<Sums> parts;
  if (early > 0) parts.push_back(read(q.narrow(3, 0, early), state));
  if (prefix > 0) state = absorb(state, keys.part(0, prefix));
  if (met > 0) {
    auto [sums, after] = square(q.narrow(3, early, met), keys.part(prefix, prefix + met), state);
    parts.push_back(std::move(sums));
    state = std::move(after);
  }
  if (early + met < N || N == 0) parts.push_back(read(q.narrow(3, early + met, N - early - met), state));
  state = absorb(state, keys.part(prefix + met, M));

  std::vector<Tensor> numerators, denominators;
  for (const auto& part : parts) {
    numerators.push_back(part.numerator);
    denominators.push_back(part.denominator);
  }
  Tensor out = at::cat(numerators, 3);
  if (normalizer != Normalizer::none) out = out / divisor(at::cat(denominators, 3), normalizer, eps).unsqueeze(-1);
  return {out.flatten(1, 2).to(q_given.scalar_type()).contiguous(), state.S.contiguous(), state.z.contiguous()};
}

}  // namespace foveate::ops
