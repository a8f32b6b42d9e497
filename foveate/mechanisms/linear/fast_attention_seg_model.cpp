#include <foveate/fast_attention_seg_model.h>
#include <foveate/init.h>

namespace foveate {
namespace {

/// BN(W x), as every part of the network has it.
struct Normed {
  const FANet::Options& options;
  bool training;

  Tensor operator()(const FastAttentionConvolution& p, const Tensor& x, const layers::Convolution::Steps& steps) const {
    return p.norm(p.conv(x, steps), training, options.bn_momentum, options.bn_eps);
  }
  Tensor active(const FastAttentionConvolution& p, const Tensor& x, const layers::Convolution::Steps& steps) const {
    return at::leaky_relu((*this)(p, x, steps), options.leaky_slope);
  }
  Tensor residual(const FANet::Residual& p, const Tensor& x, int64_t stride) const {
    const Tensor inside = (*this)(p.second, active(p.first, x, {.stride = stride, .padding = 1}), {.padding = 1});
    return ((p.shortcut ? (*this)(*p.shortcut, x, {.stride = stride}) : x) + inside).relu();
  }
  Tensor classes(const FANet::Classifier& p, const Tensor& x) const { return p.out(active(p.inner, x, {.padding = 1})); }
};

Tensor resized(const Tensor& map, const Tensor& like) {
  return at::upsample_bilinear2d_symint(map, {extent(like, 2), extent(like, 3)}, /*align_corners=*/true);
}

constexpr int64_t level_count = 4;

}  // namespace

FastAttentionFusion::Options FANet::Options::level(int64_t l) const {
  return {.in_chan = width << l,
          .out_chan = out_chan,
          .up_flag = l > 0,
          .smf_flag = l != 1,
          .qk_dim = qk_dim,
          .frames = frames,
          .normalize_by_n = normalize_by_n,
          .leaky_slope = leaky_slope,
          .bn_eps = bn_eps,
          .bn_momentum = bn_momentum,
          .l2_eps = l2_eps};
}

void FANet::check(const Options& o) {
  TORCH_CHECK_VALUE(o.nclass > 0, "fa_net: nclass must be positive, got ", o.nclass);
  TORCH_CHECK_VALUE(o.blocks.size() == level_count, "fa_net: blocks must be four numbers, got ", c10::IntArrayRef(o.blocks));
  for (const int64_t count : o.blocks) TORCH_CHECK_VALUE(count > 0, "fa_net: blocks must be positive, got ", c10::IntArrayRef(o.blocks));
  TORCH_CHECK_VALUE(o.width > 1, "fa_net: width must be 2 or more, got ", o.width);
  TORCH_CHECK_VALUE(o.out_chan > 0, "fa_net: out_chan must be positive, got ", o.out_chan);
  TORCH_CHECK_VALUE(o.head_chan > 0, "fa_net: head_chan must be positive, got ", o.head_chan);
  TORCH_CHECK_VALUE(o.aux_chan > 0, "fa_net: aux_chan must be positive, got ", o.aux_chan);
  TORCH_CHECK_VALUE(o.qk_dim > 0, "fa_net: qk_dim must be positive, got ", o.qk_dim);
  TORCH_CHECK_VALUE(o.frames > 0, "fa_net: frames must be positive, got ", o.frames);
  TORCH_CHECK_VALUE(o.l2_eps > 0, "fa_net: l2_eps must be positive, got ", o.l2_eps);
}

FANet::Parameters FANet::shape(const Options& o) {
  Parameters p;
  for (const int64_t count : o.blocks) p.stages.push_back({.blocks = std::vector<Residual>(static_cast<std::size_t>(count))});
  p.levels.resize(level_count);
  return p;
}

FANet::Parameters FANet::init(const Options& o) {
  const auto convolution = FastAttentionConvolution::init;
  Parameters p = shape(o);
  p.stem = convolution(3, o.width, /*taps=*/7);
  int64_t in = o.width;
  for (int64_t l = 0; l < level_count; ++l) {
    const int64_t out = o.width << l;
    for (auto& block : p.stages[static_cast<std::size_t>(l)].blocks) {
      const bool first = &block == &p.stages[static_cast<std::size_t>(l)].blocks.front();
      block = {.first = convolution(in, out, 3), .second = convolution(out, out, 3)};
      if (first) block.shortcut = convolution(in, out, 1);  // every stage strides
      in = out;
    }
    p.levels[static_cast<std::size_t>(l)] = FastAttentionFusion::init(o.level(l));
  }
  const auto classifier = [&](int64_t from, int64_t inner) {
    const double deviation = 1 / std::sqrt(static_cast<double>(inner));
    return Classifier{.inner = convolution(from, inner, 3), .out = {.weight = layers::normal({o.nclass, inner, 1, 1}, deviation)}};
  };
  p.classifier = classifier(2 * o.out_chan, o.head_chan);
  p.coarsest = classifier(o.out_chan, o.aux_chan);
  p.coarse = classifier(o.out_chan, o.aux_chan);
  return p;
}

std::pair<FANet::Outputs, FANet::State> FANet::step(const Options& o, const Parameters& p, const Inputs& in, State&& past, bool training) {
  const Normed normed{.options = o, .training = training};
  Tensor x = at::max_pool2d(normed.active(p.stem, in.x, {.stride = 2, .padding = 3}), {3, 3}, {2, 2}, {1, 1});
  std::vector<Tensor> features;  // of the four stages
  for (const auto& stage : p.stages) {
    for (const auto& block : stage.blocks) x = normed.residual(block, x, &block == &stage.blocks.front() ? 2 : 1);
    features.push_back(x);
  }

  State next;
  optional<Tensor> up;
  const auto fuse = [&](int64_t l, FastAttentionVideo::State& before, FastAttentionVideo::State& after) {
    auto options = o.level(l);
    options.smf_flag = options.smf_flag && (training || l < level_count - 1);  // in training alone the coarsest map is classified
    const auto i = static_cast<std::size_t>(l);
    auto [maps, state] = FastAttentionFusion::step(options, p.levels[i], {.x = features[i], .up = up}, std::move(before), training);
    up = maps.up_feat;
    after = std::move(state);
    return maps.smooth;
  };
  const Tensor smooth_4 = fuse(3, past.level_4, next.level_4), smooth_3 = fuse(2, past.level_3, next.level_3);
  fuse(1, past.level_2, next.level_2);
  const Tensor smooth_1 = fuse(0, past.level_1, next.level_1);

  const Tensor none = in.x.narrow(1, 0, 0).clone();
  const Tensor scores = normed.classes(p.classifier, at::cat({resized(smooth_3, smooth_1), smooth_1}, 1));
  Outputs out{.out = resized(scores, in.x),
              .coarsest = training ? resized(normed.classes(p.coarsest, smooth_4), in.x) : none,
              .coarse = training ? resized(normed.classes(p.coarse, smooth_3), in.x) : none.clone()};
  return {std::move(out), std::move(next)};
}

FANet::Outputs FANet::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) { return step(o, p, in, {}, training).first; }

FOVEATE_MECHANISM(FANet)

}  // namespace foveate
