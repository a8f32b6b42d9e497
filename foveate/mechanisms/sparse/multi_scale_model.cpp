#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/multi_scale_model.h>
#include <foveate/sparse_attention.h>

#include <iterator>

namespace foveate {
namespace {

using layers::Convolution;
using layers::Linear;

// --- what the models share ---------------------------------------------------------------------------------------------------

template <class Options> void check_model(const char* form, const Options& o) {
  layers::check_heads(form, o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.ff_dim.value_or(1) > 0, form, ": ff_dim must be positive, got ", *o.ff_dim);
  check_multi_scales(form, o.scales);
  if constexpr (requires { o.layers; }) {
    TORCH_CHECK_VALUE(o.layers.size() == o.scales.size() && std::all_of(o.layers.begin(), o.layers.end(), [](int64_t count) { return count >= 0; }),
                      form, ": layers must be a count for each of the ", o.scales.size(), " scales, got ", c10::ArrayRef(o.layers));
  }
}

template <class Options> std::vector<MultiScaleStage> stages(const Options& o) {
  std::vector<MultiScaleStage> all(o.scales.size());
  for (std::size_t k = 0; k < all.size(); ++k) all[k].layers.resize(static_cast<std::size_t>(o.layers[k]));
  return all;
}

template <class Options> void init_layers(const Options& o, std::vector<MultiScaleLayer>& all) {
  for (auto& layer : all) layer = MultiScaleLayer::init(o.embed_dim, o.ff_dim.value_or(4 * o.embed_dim));
}

/// A way up starts at zero: training starts from the plain model of the finest scale.
Linear silent(int64_t width) { return {.weight = layers::zeros({width, width}), .bias = layers::zeros({width})}; }

// Sequences are [N,B,E] here, see MultiScaleLayer.

/// How many slots of r rows n rows need; one at least, which torch.export would not know.
Size slots_of(const Size& n, int64_t r) { return ((n + (r - 1)) / r).max(1); }

/// Slots of r rows each of x [n,B,E]; where the last one is of fewer, the rest is zeros.
Tensor pooled(const Tensor& x, int64_t r, const Size& slots, const optional<Convolution>& conv) {
  const Tensor blocks = at::constant_pad_nd_symint(x, {0, 0, 0, 0, 0, slots * r - extent(x, 0)}).unflatten_symint(0, {slots, r});  // [slots,r,B,E]
  if (!conv) return blocks.mean(1);
  return at::linear(blocks.transpose(1, 2).flatten(2), conv->weight.transpose(1, 2).flatten(1), conv->bias);  // kernel and stride r: one product
}

/// What n rows take from slots [1+m,B,E] of r rows each, of which the first is the one before: row t takes slot (ahead + t + 1) / r.
Tensor spread(const Tensor& slots, int64_t r, const Size& ahead, const Size& n) {
  const Tensor row = at::arange(n, slots.options().dtype(at::kLong)) + (ahead + 1);
  return slots.index_select(0, row.floor_divide(r));
}

/// The same of W h, a zero vector before it, and the bias. (Slots with the zero vector would be a number that torch.export cannot fold.)
Tensor from_slots(const Linear& up, const Tensor& h, int64_t r, const Size& n) {
  return spread(at::constant_pad_nd(at::linear(h, up.weight), {0, 0, 0, 0, 1, 0}), r, 0, n) + *up.bias;
}

/// Attention of q to keys so far: all, or those of its own block.
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, optional<int64_t> block) {
  if (!block) return ops::attention(q, k, v, {.causal = true}).out;
  return ops::sparse_attention(q, k, v, patterns::block_diagonal(*block) & patterns::causal()).out;
}

Tensor run(const std::vector<MultiScaleLayer>& all, Tensor x, int64_t heads, optional<int64_t> block = {}) {
  for (const auto& layer : all) {
    x = layer(x, heads, [&](const Tensor& q, const Tensor& k, const Tensor& v) { return attend(q, k, v, block); });
  }
  return x;
}

/// What a stream kept, taken and put back in the same order.
class Kept {
 public:
  explicit Kept(std::vector<Tensor> past) : past_(std::move(past)) {}

  bool starts() const { return past_.empty(); }
  Tensor take(const Tensor& at_start) { return starts() ? at_start : past_[at_++]; }
  /// What was kept of a sequence, and x behind it.
  Tensor before(const Tensor& x, int64_t dim) { return starts() ? x : at::cat({past_[at_++], x}, dim); }
  std::vector<Tensor> take_several(std::size_t count) {
    if (starts()) return {};
    at_ += count;
    return {past_.begin() + static_cast<std::ptrdiff_t>(at_ - count), past_.begin() + static_cast<std::ptrdiff_t>(at_)};
  }
  void keep(Tensor t) { next_.push_back(std::move(t)); }
  MultiScaleState state() && { return {.kept = std::move(next_)}; }

 private:
  std::vector<Tensor> past_, next_;
  std::size_t at_ = 0;
};

/// The layers on new rows x, with keys and values of earlier ones: all, or those of the block that is not full.
Tensor run_on(Kept& kept, const std::vector<MultiScaleLayer>& all, Tensor x, int64_t heads, optional<int64_t> block = {}) {
  for (const auto& layer : all) {
    x = layer(x, heads, [&](const Tensor& q, const Tensor& more_k, const Tensor& more_v) {
      const Tensor k = kept.before(more_k, 2), v = kept.before(more_v, 2);
      const Size done = block ? extent(k, 2) / *block * *block : Size(0);
      kept.keep(k.slice_symint(2, done));
      kept.keep(v.slice_symint(2, done));
      return attend(q, k, v, block);
    });
  }
  return x;
}

/// The slot that was complete before [1,B,E], a zero vector if none was, and those that are now.
Tensor grown(Kept& kept, const Tensor& slots) {
  const Tensor all = at::cat({kept.take(slots.new_zeros_symint({1, extent(slots, 1), extent(slots, 2)})), slots}, 0);
  kept.keep(all.slice(0, -1));
  return all;
}

}  // namespace

// --- from coarse to fine -----------------------------------------------------------------------------------------------------

void MultiScaleTopDown::check(const Options& o) { check_model("multi_scale_top_down", o); }

MultiScaleTopDown::Parameters MultiScaleTopDown::shape(const Options& o) {
  Parameters p;
  p.scales = stages(o);
  return p;
}

MultiScaleTopDown::Parameters MultiScaleTopDown::init(const Options& o) {
  Parameters p = shape(o);
  for (std::size_t k = 0; k < p.scales.size(); ++k) {
    init_layers(o, p.scales[k].layers);
    if (k + 1 < p.scales.size()) p.scales[k].up = silent(o.embed_dim);
    if (k > 0 && o.aggregation == MultiScaleAggregation::conv) p.scales[k].pool = Convolution::init(o.embed_dim, o.embed_dim, {o.scales[k]});
  }
  p.norm = layers::LayerNorm::init(o.embed_dim);
  return p;
}

Tensor MultiScaleTopDown::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const Tensor x = in.x.transpose(0, 1);
  Tensor h;
  for (std::size_t k = p.scales.size(); k-- > 0;) {
    Tensor u = k == 0 ? x : pooled(x, o.scales[k], slots_of(extent(x, 0), o.scales[k]), p.scales[k].pool);
    if (h.defined()) u = u + from_slots(*p.scales[k].up, h, o.scales[k + 1] / o.scales[k], extent(u, 0));
    h = run(p.scales[k].layers, u, o.num_heads);
  }
  return p.norm(h.transpose(0, 1));
}

std::pair<Tensor, MultiScaleTopDown::State> MultiScaleTopDown::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  Kept kept(std::move(past.kept));
  const Tensor x = in.x.transpose(0, 1), rows = kept.before(x, 0);  // since the last multiple of the coarsest scale
  const Size now = extent(rows, 0), before = now - extent(x, 0), coarsest = o.scales.back();
  kept.keep(rows.slice_symint(0, now / coarsest * coarsest));
  Tensor h;
  for (std::size_t k = p.scales.size(); k-- > 0;) {
    const int64_t s = o.scales[k];
    const Size first = before / s, end = now / s;  // slots that become complete
    Tensor u = k == 0 ? x : pooled(rows.slice_symint(0, first * s, end * s), s, end - first, p.scales[k].pool);
    if (h.defined()) {
      const int64_t r = o.scales[k + 1] / s;
      u = u + spread((*p.scales[k].up)(grown(kept, h)), r, first % r, end - first);
    }
    h = run_on(kept, p.scales[k].layers, u, o.num_heads);
  }
  return {p.norm(h.transpose(0, 1)), std::move(kept).state()};
}

FOVEATE_MECHANISM(MultiScaleTopDown)

// --- from fine to coarse -----------------------------------------------------------------------------------------------------

void MultiScaleBottomUp::check(const Options& o) {
  check_model("multi_scale_bottom_up", o);
  TORCH_CHECK_VALUE(o.local_window > 0, "multi_scale_bottom_up: local_window must be positive, got ", o.local_window);
  TORCH_CHECK_VALUE(o.top_layers >= 0, "multi_scale_bottom_up: top_layers must not be negative, got ", o.top_layers);
}

MultiScaleBottomUp::Parameters MultiScaleBottomUp::shape(const Options& o) {
  Parameters p;
  p.scales = stages(o);
  p.top.resize(static_cast<std::size_t>(o.top_layers));
  return p;
}

MultiScaleBottomUp::Parameters MultiScaleBottomUp::init(const Options& o) {
  Parameters p = shape(o);
  for (std::size_t k = 0; k < p.scales.size(); ++k) {
    init_layers(o, p.scales[k].layers);
    if (k == 0) continue;
    p.scales[k].up = silent(o.embed_dim);
    if (o.aggregation == MultiScaleAggregation::conv) p.scales[k].pool = Convolution::init(o.embed_dim, o.embed_dim, {o.scales[k] / o.scales[k - 1]});
  }
  init_layers(o, p.top);
  p.norm = layers::LayerNorm::init(o.embed_dim);
  return p;
}

Tensor MultiScaleBottomUp::forward(const Options& o, const Parameters& p, const Inputs& in) {
  Tensor h = run(p.scales[0].layers, in.x.transpose(0, 1), o.num_heads, o.local_window), y = h;
  for (std::size_t k = 1; k < p.scales.size(); ++k) {
    const int64_t r = o.scales[k] / o.scales[k - 1];
    h = run(p.scales[k].layers, pooled(h, r, slots_of(extent(h, 0), r), p.scales[k].pool), o.num_heads);
    y = y + from_slots(*p.scales[k].up, h, o.scales[k], extent(y, 0));
  }
  return p.norm(run(p.top, y, o.num_heads, o.local_window).transpose(0, 1));
}

std::pair<Tensor, MultiScaleBottomUp::State> MultiScaleBottomUp::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  Kept kept(std::move(past.kept));
  Tensor h = run_on(kept, p.scales[0].layers, in.x.transpose(0, 1), o.num_heads, o.local_window), y = h;
  Size ahead = 0;  // positions since the last multiple of the scale
  for (std::size_t k = 1; k < p.scales.size(); ++k) {
    const int64_t r = o.scales[k] / o.scales[k - 1];
    const Tensor rows = kept.before(h, 0);  // slots of the finer scale that are not pooled yet
    const Size slots = extent(rows, 0) / r;
    ahead = ahead + (extent(rows, 0) - extent(h, 0)) * o.scales[k - 1];
    kept.keep(rows.slice_symint(0, slots * r));
    h = run_on(kept, p.scales[k].layers, pooled(rows.slice_symint(0, 0, slots * r), r, slots, p.scales[k].pool), o.num_heads);
    y = y + spread((*p.scales[k].up)(grown(kept, h)), o.scales[k], ahead, extent(y, 0));
  }
  y = run_on(kept, p.top, y, o.num_heads, o.local_window);
  return {p.norm(y.transpose(0, 1)), std::move(kept).state()};
}

FOVEATE_MECHANISM(MultiScaleBottomUp)

// --- retina ------------------------------------------------------------------------------------------------------------------

namespace {

RetinaAttention::Options retina(const MultiScaleRetina::Options& o) {
  return {.scales = o.scales, .windows = o.windows, .log_count = o.log_count, .scale = {}};
}

}  // namespace

void MultiScaleRetina::check(const Options& o) {
  check_model("multi_scale_retina", o);
  RetinaAttention::check(retina(o));
  TORCH_CHECK_VALUE(o.num_layers > 0, "multi_scale_retina: num_layers must be positive, got ", o.num_layers);
}

MultiScaleRetina::Parameters MultiScaleRetina::shape(const Options& o) {
  Parameters p;
  p.layers.resize(static_cast<std::size_t>(o.num_layers));
  return p;
}

MultiScaleRetina::Parameters MultiScaleRetina::init(const Options& o) {
  Parameters p = shape(o);
  init_layers(o, p.layers);
  p.norm = layers::LayerNorm::init(o.embed_dim);
  return p;
}

Tensor MultiScaleRetina::forward(const Options& o, const Parameters& p, const Inputs& in) {
  Tensor x = in.x.transpose(0, 1);
  for (const auto& layer : p.layers) {
    x = layer(x, o.num_heads,
              [&](const Tensor& q, const Tensor& k, const Tensor& v) { return RetinaAttention::forward(retina(o), {}, {.q = q, .k = k, .v = v}); });
  }
  return p.norm(x.transpose(0, 1));
}

std::pair<Tensor, MultiScaleRetina::State> MultiScaleRetina::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  Kept kept(std::move(past.kept));
  Tensor x = in.x.transpose(0, 1);
  for (const auto& layer : p.layers) {
    x = layer(x, o.num_heads, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
      auto [out, next] = RetinaAttention::step(retina(o), {}, {.q = q, .k = k, .v = v}, {.keys_and_values = kept.take_several(2 * o.scales.size())});
      for (auto& t : next.keys_and_values) kept.keep(std::move(t));
      return out;
    });
  }
  return {p.norm(x.transpose(0, 1)), std::move(kept).state()};
}

FOVEATE_MECHANISM(MultiScaleRetina)

}  // namespace foveate
