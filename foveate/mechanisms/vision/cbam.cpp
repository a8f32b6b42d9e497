#include <foveate/cbam.h>
#include <foveate/init.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <string_view>

namespace foveate {
namespace {

using layers::BatchNorm;
using layers::Convolution;
using layers::Linear;

/// As the authors' ResNet starts: Kaiming-normal over what leaves, biases 0.
Convolution kaiming(int64_t in, int64_t out, int64_t taps, bool bias) {
  const auto fan_out = static_cast<double>(out * taps * taps);
  return {.weight = layers::normal({out, in, taps, taps}, std::sqrt(2 / fan_out)), .bias = bias ? optional(layers::zeros({out})) : std::nullopt};
}

Linear linear(int64_t in, int64_t out) {
  Linear made = Linear::init(in, out);
  made.bias->zero_();
  return made;
}

/// [B,C,H,W] with zeros where a position takes no part
Tensor cleared(const Tensor& x, const optional<Tensor>& mask) { return mask ? x.masked_fill(mask->logical_not().unsqueeze(1), 0) : x; }

struct Pool {
  std::string_view name;
  Tensor (*of)(const Tensor& positions);  // [B,C,N] -> [B,C]
  double hidden;                          // what a position that takes no part holds

  /// x [B,C,H,W]; of no position at all 0
  Tensor operator()(const Tensor& x, const optional<Tensor>& mask) const {
    if (!mask) return of(x.flatten(2));
    const Tensor seen = mask->flatten(1).unsqueeze(1);                         // [B,1,N]
    const Tensor count = seen.sum(-1).to(x.scalar_type());                     // [B,1]
    Tensor pooled = of(x.flatten(2).masked_fill(seen.logical_not(), hidden));  // [B,C]
    if (name == "avg") pooled = pooled * (seen.new_ones_symint(seen.sym_sizes()).sum(-1) / count.clamp_min(1));
    return pooled.masked_fill(count == 0, 0);
  }
};
constexpr double lowest = -std::numeric_limits<double>::infinity();
constexpr std::array<Pool, 4> kinds{{
    {"avg", [](const Tensor& x) { return x.mean(-1); }, 0},
    {"max", [](const Tensor& x) { return std::get<0>(x.max(-1)); }, lowest},
    {"lp", [](const Tensor& x) { return at::linalg_vector_norm(x, 2, at::OptionalIntArrayRef({-1})); }, 0},  // no gradient where all is 0
    {"lse", [](const Tensor& x) { return x.logsumexp(-1); }, lowest},
}};
constexpr const Pool& average = kinds[0];

/// "avg+max" as kinds of pools.
std::vector<Pool> parse(std::string_view pools) {
  std::vector<Pool> found;
  for (std::string_view rest = pools;;) {
    const auto name = rest.substr(0, rest.find('+'));
    const auto* const pool = std::find_if(kinds.begin(), kinds.end(), [&](const Pool& p) { return p.name == name; });
    TORCH_CHECK_VALUE(pool != kinds.end(), "cbam: pools must join avg, max, lp, lse with +, got '", pools, "'");
    found.push_back(*pool);
    if (name.size() == rest.size()) return found;
    rest.remove_prefix(name.size() + 1);
  }
}

void check_widths(const char* form, int64_t channels, int64_t ratio) {
  TORCH_CHECK_VALUE(channels > 0, form, ": gate_channels must be positive, got ", channels);
  TORCH_CHECK_VALUE(ratio > 0 && ratio <= channels, form, ": reduction_ratio must lie between 1 and gate_channels = ", channels, ", got ", ratio);
}

void check_map(const char* form, const Tensor& x, int64_t channels) {
  TORCH_CHECK_VALUE(extent(x, 1) == channels, form, ": x must be [B,C,H,W] with C = gate_channels = ", channels, ", got ", x.sym_sizes());
  TORCH_CHECK_VALUE(extent(x, 2) > 0 && extent(x, 3) > 0, form, ": x must have positions to pool over, got ", x.sym_sizes());
}

}  // namespace

void CBAM::check(const Options& o) {
  check_widths("cbam", o.gate_channels, o.reduction_ratio);
  TORCH_CHECK_VALUE(o.kernel_size > 0 && o.kernel_size % 2 == 1, "cbam: kernel_size must be odd and positive, got ", o.kernel_size);
  parse(o.pools);
}

CBAM::Parameters CBAM::init(const Options& o) {
  const int64_t C = o.gate_channels, hidden = C / o.reduction_ratio;
  Parameters p{.channel = {.reduce = linear(C, hidden), .restore = linear(hidden, C)}};
  if (!o.no_spatial) p.spatial = SpatialGate{.conv = kaiming(2, 1, o.kernel_size, /*bias=*/false), .norm = BatchNorm::init(1, /*gain=*/0)};
  return p;
}

Tensor CBAM::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_map("cbam", in.x, o.gate_channels);
  std::vector<Tensor> pooled;
  for (const auto& pool : parse(o.pools)) pooled.push_back(pool(in.x, in.mask));
  const Tensor channel_gate = p.channel(at::stack(pooled)).sum(0).sigmoid();  // [B,C]
  Tensor y = in.x * channel_gate.unsqueeze(-1).unsqueeze(-1);
  if (o.no_spatial) return y;

  TORCH_CHECK_VALUE(p.spatial, "cbam: spatial is needed without no_spatial");
  const Tensor summary = at::stack({std::get<0>(y.max(1)), y.mean(1)}, 1);  // [B,2,H,W]
  const Tensor map = p.spatial->conv(cleared(summary, in.mask), {.padding = o.kernel_size / 2});
  return y * p.spatial->norm(map, training, o.bn_momentum, o.bn_eps).sigmoid();
}

FOVEATE_MECHANISM(CBAM)

void BAM::check(const Options& o) {
  check_widths("bam", o.gate_channels, o.reduction_ratio);
  TORCH_CHECK_VALUE(o.num_layers >= 0, "bam: num_layers must not be negative, got ", o.num_layers);
  TORCH_CHECK_VALUE(o.dilation_conv_num >= 0, "bam: dilation_conv_num must not be negative, got ", o.dilation_conv_num);
  TORCH_CHECK_VALUE(o.dilation_val > 0, "bam: dilation_val must be positive, got ", o.dilation_val);
}

BAM::Parameters BAM::shape(const Options& o) {
  Parameters p;
  p.channel.hidden.resize(static_cast<std::size_t>(o.num_layers));
  p.spatial.hidden.resize(static_cast<std::size_t>(1 + o.dilation_conv_num));
  return p;
}

BAM::Parameters BAM::init(const Options& o) {
  const int64_t hidden = o.gate_channels / o.reduction_ratio;
  Parameters p = shape(o);
  int64_t width = o.gate_channels;
  for (auto& layer : p.channel.hidden) {
    layer = {.linear = linear(width, hidden), .norm = BatchNorm::init(hidden)};
    width = hidden;
  }
  p.channel.out = linear(width, o.gate_channels);
  width = o.gate_channels;
  for (auto& layer : p.spatial.hidden) {
    const bool first = &layer == &p.spatial.hidden.front();
    layer = {.conv = kaiming(width, hidden, /*taps=*/first ? 1 : 3, /*bias=*/true), .norm = BatchNorm::init(hidden)};
    width = hidden;
  }
  p.spatial.out = kaiming(hidden, 1, 1, /*bias=*/true);
  return p;
}

Tensor BAM::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_map("bam", in.x, o.gate_channels);
  const auto activate = [&](const BatchNorm& norm, const Tensor& x) { return norm(x, training, o.bn_momentum, o.bn_eps).relu(); };

  Tensor z = average(in.x, in.mask);  // [B,C]
  for (const auto& layer : p.channel.hidden) z = activate(layer.norm, layer.linear(z));
  z = p.channel.out(z);

  Tensor t = in.x;
  for (const auto& layer : p.spatial.hidden) {
    const bool first = &layer == &p.spatial.hidden.front();
    t = activate(layer.norm, first ? layer.conv(t) : layer.conv(cleared(t, in.mask), {.padding = o.dilation_val, .dilation = o.dilation_val}));
  }
  t = p.spatial.out(t);  // [B,1,H,W]

  return in.x * (1 + (z.unsqueeze(-1).unsqueeze(-1) * t).sigmoid());
}

FOVEATE_MECHANISM(BAM)

}  // namespace foveate
