#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/set_transformer.h>

namespace foveate {
namespace {

using How = SetAttention::How;

/// points [m,E] -> [B,m,E], B of y
Tensor for_each_set(const Tensor& points, const Tensor& y) { return points.unsqueeze(0).expand_symint({extent(y, 0), -1, -1}); }

/// Points [count,width], as the authors draw them: Xavier-uniform of a tensor [1,count,width].
Tensor draw_points(int64_t count, int64_t width) { return layers::xavier_uniform({1, count, width}).squeeze(0); }

}  // namespace

SetAttention SetAttention::init(int64_t query_dim, int64_t key_dim, int64_t dim, bool layer_norm) {
  using layers::LayerNorm, layers::Linear;
  const auto norm = [&] { return layer_norm ? optional(LayerNorm::init(dim)) : std::nullopt; };
  return {.query = Linear::init(query_dim, dim),
          .key = Linear::init(key_dim, dim),
          .value = Linear::init(key_dim, dim),
          .out = Linear::init(dim, dim),
          .norm0 = norm(),
          .norm1 = norm()};
}

Tensor SetAttention::operator()(const Tensor& x, const Tensor& y, const optional<Tensor>& key_mask, const How& how) const {
  const Tensor q = ask(x, y);
  return finish(q, find(q, y, key_mask, how).out, how.eps);
}

Tensor SetAttention::ask(const Tensor& x, const Tensor& y) const { return x.dim() == 2 ? for_each_set(query(x), y) : query(x); }

ops::Attended SetAttention::find(const Tensor& q, const Tensor& y, const optional<Tensor>& key_mask, const How& how) const {
  return ops::attention(split_heads(q, how.heads), split_heads(key(y), how.heads), split_heads(value(y), how.heads),
                        {.key_mask = key_mask, .scale = how.scale});
}

Tensor SetAttention::finish(const Tensor& q, const Tensor& attended, double eps) const {
  const auto normalise = [&](const optional<layers::LayerNorm>& norm, const Tensor& t) { return norm ? (*norm)(t, eps) : t; };
  const Tensor o = normalise(norm0, q + merge_heads(attended));  // the residual is the projected query
  return normalise(norm1, o + out(o).relu());
}

// --- MAB, SAB ----------------------------------------------------------------------------------------------------------------

void MAB::check(const Options& o) { detail::check_set_transformer("mab", o); }
MAB::Parameters MAB::init(const Options& o) { return SetAttention::init(o.query_dim, o.key_dim, o.dim, o.layer_norm); }
Tensor MAB::forward(const Options& o, const Parameters& p, const Inputs& in) { return p(in.x, in.y, in.key_mask, How::of(o)); }

FOVEATE_MECHANISM(MAB)

void SAB::check(const Options& o) { detail::check_set_transformer("sab", o); }
SAB::Parameters SAB::init(const Options& o) { return SetAttention::init(o.in_dim, o.in_dim, o.dim, o.layer_norm); }
Tensor SAB::forward(const Options& o, const Parameters& p, const Inputs& in) { return p(in.x, in.x, in.key_mask, How::of(o)); }

FOVEATE_MECHANISM(SAB)

// --- ISAB --------------------------------------------------------------------------------------------------------------------

ISAB::Parameters ISAB::Parameters::init(int64_t in_dim, int64_t dim, int64_t num_inducing, bool layer_norm) {
  return {.inducing = draw_points(num_inducing, dim),
          .mab0 = SetAttention::init(dim, in_dim, dim, layer_norm),
          .mab1 = SetAttention::init(in_dim, dim, dim, layer_norm)};
}

void ISAB::check(const Options& o) {
  detail::check_set_transformer("isab", o);
  TORCH_CHECK_VALUE(o.num_inducing > 0, "isab: num_inducing must be positive, got ", o.num_inducing);
}
ISAB::Parameters ISAB::init(const Options& o) { return Parameters::init(o.in_dim, o.dim, o.num_inducing, o.layer_norm); }
Tensor ISAB::forward(const Options& o, const Parameters& p, const Inputs& in) { return p(in.x, in.key_mask, How::of(o)); }

FOVEATE_MECHANISM(ISAB)

// --- PMA ---------------------------------------------------------------------------------------------------------------------

PMA::Parameters PMA::Parameters::init(int64_t dim, int64_t num_seeds, bool layer_norm) {
  return {.seeds = draw_points(num_seeds, dim), .mab = SetAttention::init(dim, dim, dim, layer_norm)};
}

void PMA::check(const Options& o) {
  detail::check_set_transformer("pma", o);
  TORCH_CHECK_VALUE(o.num_seeds > 0, "pma: num_seeds must be positive, got ", o.num_seeds);
}
PMA::Parameters PMA::init(const Options& o) { return Parameters::init(o.dim, o.num_seeds, o.layer_norm); }
Tensor PMA::forward(const Options& o, const Parameters& p, const Inputs& in) { return p.mab(p.seeds, in.x, in.key_mask, How::of(o)); }

std::pair<Tensor, PMA::State> PMA::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  const Tensor q = p.mab.ask(p.seeds, in.x);
  const auto [out, lse] = p.mab.find(q, in.x, in.key_mask, How::of(o));
  State next{.out = out.to(lse.scalar_type()), .lse = lse};  // half precision accumulates in float32
  if (past.out.defined()) {
    const auto merged = ops::merge_attention(std::array<ops::Attended, 2>{{{past.out, past.lse}, {next.out, next.lse}}});
    next = {.out = merged.out, .lse = merged.lse};
  }
  return {p.mab.finish(q, next.out.to(q.scalar_type()), o.eps), std::move(next)};
}

FOVEATE_MECHANISM(PMA)

// --- LatentISAB --------------------------------------------------------------------------------------------------------------

namespace {

/// Each key shares itself out among the queries, A = softmax over queries, and a query takes the mean of its shares, A / max(sum A, 1e-8).
/// With l_j the log-sum-exp of key j's scores that is softmax over keys of s_ij - l_j; only the guard remains to be applied.
Tensor inverted_attention(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& key_mask) {
  const Tensor shares = ops::attention(k, q, q.narrow(-1, 0, 1)).lse;                                     // l [B,H,M]
  const auto [out, lse] = ops::attention(q, k, v, {.key_mask = key_mask, .bias = -shares.unsqueeze(2)});  // lse: log of sum A
  return out * (lse.exp() / 1e-8).clamp_max(1).to(out.scalar_type()).unsqueeze(-1);
}

}  // namespace

void LatentISAB::check(const Options& o) {
  TORCH_CHECK_VALUE(o.dim > 0 && o.num_heads > 0 && o.head_dim > 0 && o.num_latents > 0,
                    "latent_isab: dim, num_heads, head_dim and num_latents must be positive, got ", o.dim, ", ", o.num_heads, ", ", o.head_dim,
                    " and ", o.num_latents);
}

LatentISAB::Parameters LatentISAB::init(const Options& o) {
  const int64_t inner = o.num_heads * o.head_dim;
  const layers::Heads::Sizes sizes{.width = o.dim, .keys = inner, .values = inner, .bias = false};
  return {.latents = layers::normal({o.num_latents, o.dim}, 1), .attn1 = layers::Heads::init(sizes), .attn2 = layers::Heads::init(sizes)};
}

LatentISAB::Outputs LatentISAB::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor asking = for_each_set(p.latents, in.x);  // [B,m,E]
  Tensor set = in.x;
  auto mask = in.key_mask;
  if (o.latent_self_attend) {
    set = at::cat({asking, set}, 1);
    if (mask) mask = at::cat({mask->new_ones_symint({extent(*mask, 0), extent(asking, 1)}), *mask}, 1);
  }
  const auto [q, k, v] = p.attn1.project(asking, set, o.num_heads);
  const Tensor latents = p.attn1.join(o.inverted_attention ? inverted_attention(q, k, v, mask) : ops::attention(q, k, v, {.key_mask = mask}).out);
  const auto [q2, k2, v2] = p.attn2.project(in.x, latents, o.num_heads);
  return {.out = p.attn2.join(ops::attention(q2, k2, v2).out), .latents = latents};
}

FOVEATE_MECHANISM(LatentISAB)

}  // namespace foveate
