#include <foveate/init.h>
#include <foveate/merge_attention.h>
#include <foveate/multi_scale.h>
#include <foveate/sparse_attention.h>

namespace foveate {

MultiScaleLayer MultiScaleLayer::init(int64_t width, int64_t inner) {
  const auto linear = [](int64_t in, int64_t out) { return layers::Linear{.weight = layers::normal({out, in}, 0.02), .bias = layers::zeros({out})}; };
  return {.attention_norm = layers::LayerNorm::init(width),
          .qkv = linear(width, 3 * width),
          .out = linear(width, width),
          .feed_forward_norm = layers::LayerNorm::init(width),
          .feed_forward = {.up = linear(width, inner), .down = linear(inner, width)}};
}

void check_multi_scales(const char* form, const std::vector<int64_t>& scales) {
  bool fits = !scales.empty() && scales[0] == 1;
  for (std::size_t k = 1; fits && k < scales.size(); ++k) fits = scales[k] > scales[k - 1] && scales[k] % scales[k - 1] == 0;
  TORCH_CHECK_VALUE(fits, form, ": scales must begin with 1, grow, and each divide the next, got ", c10::ArrayRef(scales));
}

namespace {

using Options = RetinaAttention::Options;

/// Scale k of a retina.
struct Scale {
  int64_t size;    // s_k
  int64_t beyond;  // c_k: so many positions belong to finer scales at least
  int64_t ratio;   // s_{k+1} / s_k; 0 for the coarsest scale
  int64_t window;  // w_k

  /// How many of its slots are complete and in nobody's finer scale, p positions being there: floor((p - c_k) / s_k).
  Size reach(const Size& p) const {
    const Size past = p - beyond;
    return (past - (past % size + size) % size) / size;  // division rounds towards 0: make it exact
  }
  /// The first slot that is still seen, p positions being there: floor((p - c_{k+1}) / s_{k+1}) s_{k+1} / s_k.
  Size first(const Size& p) const { return ratio == 0 ? Size(0) : ((p - beyond).max(0) / (size * ratio) - window).max(0) * ratio; }
};

std::vector<Scale> scales_of(const Options& o) {
  std::vector<Scale> all;
  int64_t beyond = 0;
  for (std::size_t k = 0; k < o.scales.size(); ++k) {
    const bool coarsest = k + 1 == o.scales.size();
    all.push_back(
        {.size = o.scales[k], .beyond = beyond, .ratio = coarsest ? 0 : o.scales[k + 1] / o.scales[k], .window = coarsest ? 0 : o.windows[k]});
    if (!coarsest) beyond += o.windows[k] * o.scales[k + 1];
  }
  return all;
}

/// Queries q [B,H,N,D], the first of which is position t, before the slots of one scale from number `first` on. What is seen changes
/// only every s_k positions: so many queries stand side by side as heads, and one in s_k of them makes a row.
ops::Attended attend(const Scale& s, const Tensor& q, const Tensor& k, const Tensor& v, const Size& t, const Size& first, optional<double> scale) {
  using namespace patterns;
  const Size reach = s.reach(t + 1), ahead = t + 1 - s.beyond - reach * s.size;  // of query 0, and how far it stands in its row
  const Size N = extent(q, 2), rows = (N + ahead + (s.size - 1)) / s.size;
  const auto whole = q.options().dtype(at::kLong);
  const Tensor query = at::arange(rows, whole) * s.size + at::arange(s.size, whole).unsqueeze(1) - ahead;             // [s,rows]
  const Tensor beside = s.size == 1 ? q : at::index(q, {{}, {}, query.clamp_min(0).clamp_max(N - 1)}).flatten(1, 2);  // [B,H s,rows,D]

  // Row a sees the slots u < a, from floor(a / r) r - w r on.
  const Pattern seen = s.ratio == 0 ? sliding_window(int64_t{1} << 31, -1)
                                    : block_window(s.ratio, s.window * s.ratio, 0) & sliding_window((s.window + 1) * s.ratio, -1);
  const auto [out, lse] = ops::sparse_attention(beside, k, v, seen, {.scale = scale, .offset = reach - first});
  if (s.size == 1) return {.out = out, .lse = lse};
  const Tensor place = at::arange(N, whole) + ahead;
  const auto apart = [&](const Tensor& x) {
    return at::index(x.unflatten(1, {-1, s.size}), {{}, {}, place.remainder(s.size), place.floor_divide(s.size)});
  };
  return {.out = apart(out), .lse = apart(lse)};
}

/// Keys and values of each scale, from slot first[k] on, seen by q.
Tensor retina(const Options& o, const std::vector<Scale>& scales, const Tensor& q, const std::vector<Tensor>& keys_and_values, const Size& t) {
  std::vector<ops::Attended> parts;
  for (std::size_t k = 0; k < scales.size(); ++k) {
    parts.push_back(attend(scales[k], q, keys_and_values[2 * k], keys_and_values[2 * k + 1], t, scales[k].first(t + 1), o.scale));
    if (o.log_count) parts.back().lse = parts.back().lse + std::log(static_cast<double>(scales[k].size));
  }
  return ops::merge_attention(parts).out;
}

/// Means of r rows each of x [B,H,N,D]; the last one may be of fewer, and is seen by nobody.
Tensor pooled(const Tensor& x, int64_t r) {
  const Size slots = (extent(x, 2) + (r - 1)) / r;
  return at::constant_pad_nd_symint(x, {0, 0, 0, slots * r - extent(x, 2)}).unflatten_symint(2, {slots, r}).mean(3);
}

}  // namespace

void RetinaAttention::check(const Options& o) {
  check_multi_scales("retina_attention", o.scales);
  TORCH_CHECK_VALUE(o.windows.size() + 1 == o.scales.size() && std::all_of(o.windows.begin(), o.windows.end(), [](int64_t w) { return w > 0; }),
                    "retina_attention: windows must be positive, one fewer than scales, got ", c10::ArrayRef(o.windows), " and ",
                    c10::ArrayRef(o.scales));
}

Tensor RetinaAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const auto scales = scales_of(o);
  std::vector<Tensor> keys_and_values{in.k, in.v};
  for (std::size_t k = 1; k < scales.size(); ++k) {
    for (int kv = 0; kv < 2; ++kv)
      keys_and_values.push_back(pooled(keys_and_values[2 * (k - 1) + static_cast<std::size_t>(kv)], scales[k - 1].ratio));
  }
  return retina(o, scales, in.q, keys_and_values, 0);
}

std::pair<Tensor, RetinaAttention::State> RetinaAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  const auto scales = scales_of(o);
  auto& kept = past.keys_and_values;
  if (kept.empty()) {
    for (std::size_t k = 0; k < scales.size(); ++k) kept.insert(kept.end(), {in.k.slice(2, 0, 0), in.v.slice(2, 0, 0)});
  }
  // How many positions were there before: the lengths of what is kept are its digits.
  Size t = 0;
  for (std::size_t k = 0; k < scales.size(); ++k) {
    const Size slots = extent(kept[2 * k], 2);
    t = t + (scales[k].ratio == 0 ? slots : slots % scales[k].ratio) * scales[k].size;
  }
  const Size now = t + extent(in.q, 2);
  std::vector<Tensor> grown;
  for (std::size_t k = 0; k < scales.size(); ++k) {
    for (std::size_t kv = 0; kv < 2; ++kv) {
      Tensor more = kv == 0 ? in.k : in.v;
      if (k > 0) {  // slots that became complete, from those one scale finer
        const auto& finer = scales[k - 1];
        const Size begin = t / scales[k].size * finer.ratio - finer.first(t + 1), end = now / scales[k].size * finer.ratio - finer.first(t + 1);
        more = pooled(grown[2 * (k - 1) + kv].slice_symint(2, begin, end), finer.ratio);
      }
      grown.push_back(at::cat({kept[2 * k + kv], more}, 2));
    }
  }
  Tensor out = retina(o, scales, in.q, grown, t);
  for (std::size_t k = 0; k < scales.size(); ++k) {
    const Size drop = scales[k].first(now + 1) - scales[k].first(t + 1);
    for (std::size_t kv = 0; kv < 2; ++kv) grown[2 * k + kv] = grown[2 * k + kv].slice_symint(2, drop);
  }
  State next{.keys_and_values = std::move(grown)};
  return {std::move(out), std::move(next)};
}

FOVEATE_MECHANISM(RetinaAttention)

}  // namespace foveate
