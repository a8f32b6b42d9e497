#include <foveate/attention_formula.h>
#include <foveate/conv_norm_relu.h>
#include <foveate/fast_attention_seg.h>
#include <foveate/init.h>
#include <foveate/linear_attention.h>

namespace foveate {
namespace {

/// Rows of unit length, in the type that sums are kept in; rows shorter than eps are divided by eps. x [...,D] -> [...,D]
Tensor unit(const Tensor& x, double eps) {
  const Tensor row = x.to(ops::accumulation_type(x.scalar_type()));
  return row * row.square().sum(-1, true).clamp_min(eps * eps).rsqrt();  // without a root at zero every derivative is finite
}

/// One for each key that takes part: [...,M]
Tensor taking_part(const Tensor& k, const optional<Tensor>& key_mask, at::SymIntArrayRef shape) {
  const auto type = ops::accumulation_type(k.scalar_type());
  return key_mask ? key_mask->to(type) : k.new_ones_symint(shape, k.options().dtype(type));
}

void check_attention(const char* form, double l2_eps, int64_t frames = 1) {
  TORCH_CHECK_VALUE(l2_eps > 0, form, ": l2_eps must be positive, got ", l2_eps);
  TORCH_CHECK_VALUE(frames > 0, form, ": frames must be positive, got ", frames);
}

}  // namespace

void FastAttention::check(const Options& o) { check_attention("fast_attention", o.l2_eps); }

std::pair<Tensor, FastAttention::State> FastAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  const Tensor q = unit(in.q, o.l2_eps), k = unit(in.k, o.l2_eps), v = in.v.to(q.scalar_type());
  ops::LinearState state;
  if (past.S.defined()) state = {.S = past.S, .z = past.S.select(-1, 0)};  // nothing reads z
  auto sums = ops::linear_attention(
      q, k, v, {.causal = o.causal, .key_mask = in.key_mask, .state = state, .normalizer = ops::Normalizer::none, .offset = Size(0)});

  const Tensor ones = taking_part(in.k, in.key_mask, {extent(in.k, 0), extent(in.k, 2)});  // [B,M]
  Tensor count = ones.sum(-1);                                                             // [B]
  if (past.count.defined()) count = count + past.count;
  Tensor out = sums.out;  // [B,H,N,Dv]
  if (o.normalize_by_n && !o.causal) out = out / count.clamp_min(1).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1);
  if (o.normalize_by_n && o.causal) {
    TORCH_CHECK_VALUE(extent(q, 2) == extent(k, 2), "fast_attention: causal with normalize_by_n needs as many queries as keys, got ", extent(q, 2),
                      " and ", extent(k, 2));
    const Tensor before = (count - ones.sum(-1)).unsqueeze(-1);  // [B,1]
    out = out / (before + ones.cumsum(-1)).clamp_min(1).unsqueeze(1).unsqueeze(-1);
  }
  return {out.to(in.q.scalar_type()), State{.S = std::move(sums.state.S), .count = count}};
}

Tensor FastAttention::forward(const Options& o, const Parameters& p, const Inputs& in) { return step(o, p, in, {}).first; }

FOVEATE_MECHANISM(FastAttention)

void FastAttentionVideo::check(const Options& o) { check_attention("fast_attention_video", o.l2_eps, o.frames); }

std::pair<Tensor, FastAttentionVideo::State> FastAttentionVideo::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  const auto all = [](const Tensor& x) { return x.flatten(0, 1); };  // [B,N,H,P,...] -> [B N,H,P,...]
  const auto none = [](const Tensor& x) { return x.narrow_symint(2, 0, 0); };
  const Size B = extent(in.q, 0), N = extent(in.q, 1);
  const Tensor q = all(unit(in.q, o.l2_eps)), k = all(unit(in.k, o.l2_eps)), v = all(in.v.to(q.scalar_type()));
  const auto mask = in.key_mask ? optional(all(*in.key_mask)) : std::nullopt;
  const auto own = ops::linear_attention(none(q), k, v, {.key_mask = mask, .normalizer = ops::Normalizer::none}).state;  // of each frame

  // The sums of all frames in sight, the oldest first: frames - 1 past ones, zeros before the first, then the N new ones.
  const Tensor S = own.S.unflatten_symint(0, {B, N});                                    // [B,N,H,D,Dv]
  const Tensor count = taking_part(in.k, in.key_mask, {B, N, extent(in.k, 3)}).sum(-1);  // [B,N]
  const auto old = [&](const Tensor& kept, const Tensor& like) {                         // [B,frames-1,...]
    if (kept.defined()) return kept;
    auto shape = like.sym_sizes().vec();
    shape[1] = o.frames - 1;
    return like.new_zeros_symint(shape);
  };
  const Tensor sums = at::cat({old(past.S, S), S}, 1), counts = at::cat({old(past.count, count), count}, 1);
  const auto in_sight = [&](const Tensor& x) {  // [B,frames-1+N,...] -> [B,N,...]
    Tensor sum = x.narrow_symint(1, 0, N);
    for (int64_t later = 1; later < o.frames; ++later) sum = sum + x.narrow_symint(1, later, N);
    return sum;
  };
  const Tensor seen = all(in_sight(sums));  // [B N,H,D,Dv]
  Tensor out = ops::linear_attention(q, none(k), none(v), {.state = {.S = seen, .z = seen.select(-1, 0)}, .normalizer = ops::Normalizer::none}).out;
  out = out.unflatten_symint(0, {B, N});
  if (o.normalize_by_n) out = out / in_sight(counts).clamp_min(1).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1);
  return {out.to(in.q.scalar_type()), State{.S = sums.narrow_symint(1, N, o.frames - 1), .count = counts.narrow_symint(1, N, o.frames - 1)}};
}

Tensor FastAttentionVideo::forward(const Options& o, const Parameters& p, const Inputs& in) { return step(o, p, in, {}).first; }

FOVEATE_MECHANISM(FastAttentionVideo)

FastAttentionConvolution FastAttentionConvolution::init(int64_t in, int64_t out, int64_t taps) {
  // Kaiming-normal for a leaky slope of 1, as the authors draw it: deviation 1/sqrt(fan in).
  return {.conv = {.weight = layers::normal({out, in, taps, taps}, 1 / std::sqrt(static_cast<double>(in * taps * taps)))},
          .norm = layers::BatchNorm::init(out)};
}

namespace {

/// BN(W x), as every part of the module has it.
struct Normed {
  const FastAttentionBlock::Options& options;
  bool training;

  Tensor operator()(const FastAttentionConvolution& p, const Tensor& x, int64_t padding = 0) const {
    return layers::normalised(p.conv, p.norm, x, training, options.bn_momentum, options.bn_eps, {.padding = padding});
  }
  Tensor active(const FastAttentionConvolution& p, const Tensor& x, int64_t padding = 0) const {
    return at::leaky_relu((*this)(p, x, padding), options.leaky_slope);
  }
};

void check_block(const char* form, const FastAttentionBlock::Options& o) {
  TORCH_CHECK_VALUE(o.in_chan > 0, form, ": in_chan must be positive, got ", o.in_chan);
  TORCH_CHECK_VALUE(o.qk_dim > 0, form, ": qk_dim must be positive, got ", o.qk_dim);
  check_attention(form, o.l2_eps, o.frames);
}

}  // namespace

void FastAttentionBlock::check(const Options& o) { check_block("fast_attention_block", o); }

FastAttentionBlock::Parameters FastAttentionBlock::init(const Options& o) {
  const auto pointwise = [&](int64_t out) { return FastAttentionConvolution::init(o.in_chan, out, /*taps=*/1); };
  return {.query = pointwise(o.qk_dim), .key = pointwise(o.qk_dim), .value = pointwise(o.in_chan), .out = pointwise(o.in_chan)};
}

std::pair<Tensor, FastAttentionBlock::State> FastAttentionBlock::step(const Options& o, const Parameters& p, const Inputs& in, State&& past,
                                                                      bool training) {
  const Normed normed{.options = o, .training = training};
  const auto frame = [](const Tensor& map) { return map.flatten(2).transpose(1, 2).unsqueeze(1).unsqueeze(1); };  // [B,C,H,W] -> [B,1,1,P,C]
  auto [attended, state] = FastAttentionVideo::step(
      {.frames = o.frames, .normalize_by_n = o.normalize_by_n, .l2_eps = o.l2_eps}, {},
      {.q = frame(normed(p.query, in.x)), .k = frame(normed(p.key, in.x)), .v = frame(normed.active(p.value, in.x))}, std::move(past));
  const Tensor map = attended.squeeze(1).squeeze(1).transpose(1, 2).unflatten_symint(-1, {extent(in.x, 2), extent(in.x, 3)});
  return {normed.active(p.out, map) + in.x, std::move(state)};
}

Tensor FastAttentionBlock::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return step(o, p, in, {}, training).first;
}

FOVEATE_MECHANISM(FastAttentionBlock)

FastAttentionBlock::Options FastAttentionFusion::Options::attention() const {
  return {.in_chan = in_chan,
          .qk_dim = qk_dim,
          .frames = frames,
          .normalize_by_n = normalize_by_n,
          .leaky_slope = leaky_slope,
          .bn_eps = bn_eps,
          .bn_momentum = bn_momentum,
          .l2_eps = l2_eps};
}

void FastAttentionFusion::check(const Options& o) {
  check_block("fast_attention_fusion", o.attention());
  TORCH_CHECK_VALUE(o.in_chan > 1, "fast_attention_fusion: in_chan must be 2 or more, as up_feat has half of it, got ", o.in_chan);
  TORCH_CHECK_VALUE(o.out_chan > 0, "fast_attention_fusion: out_chan must be positive, got ", o.out_chan);
  TORCH_CHECK_VALUE(o.up_flag || o.smf_flag, "fast_attention_fusion: up_flag or smf_flag must be on, got neither");
}

FastAttentionFusion::Parameters FastAttentionFusion::init(const Options& o) {
  return {.attention = FastAttentionBlock::init(o.attention()),
          .up = FastAttentionConvolution::init(o.in_chan, o.in_chan / 2, /*taps=*/1),
          .smooth = FastAttentionConvolution::init(o.in_chan, o.out_chan, /*taps=*/3)};
}

std::pair<FastAttentionFusion::Outputs, FastAttentionFusion::State> FastAttentionFusion::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                              State&& past, bool training) {
  const auto options = o.attention();
  const Normed normed{.options = options, .training = training};
  auto [y, state] = FastAttentionBlock::step(options, p.attention, {.x = in.x}, std::move(past), training);
  if (in.up) y = y + at::upsample_bilinear2d_symint(*in.up, {extent(y, 2), extent(y, 3)}, /*align_corners=*/true);
  // A branch that is off is not run: its statistics stay.
  const auto none = [&] { return y.narrow(1, 0, 0).clone(); };
  Outputs out{.smooth = o.smf_flag ? normed.active(p.smooth, y, /*padding=*/1) : none(),
              .up_feat = o.up_flag ? normed.active(p.up, y, /*padding=*/1) : none()};
  return {std::move(out), std::move(state)};
}

FastAttentionFusion::Outputs FastAttentionFusion::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return step(o, p, in, {}, training).first;
}

FOVEATE_MECHANISM(FastAttentionFusion)

}  // namespace foveate
