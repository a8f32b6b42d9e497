#include <foveate/attention.h>
#include <foveate/dropout.h>
#include <foveate/interlaced_sparse.h>

namespace foveate {
namespace {

using Self = InterlacedSelfAttention;
using Block = InterlacedSparseBlock;

const std::vector<int64_t> one{1, 1};

Self::Parameters transforms(int64_t in, int64_t keys, int64_t values, int64_t out) {
  return {.query1 = layers::ConvNormRelu::init(in, keys),
          .query2 = layers::ConvNormRelu::init(keys, keys),
          .key1 = layers::ConvNormRelu::init(in, keys),
          .key2 = layers::ConvNormRelu::init(keys, keys),
          .value = layers::Convolution::init(in, values, one, /*bias=*/false),
          .out = layers::ConvNormRelu::init(values, out)};
}

/// Groups of positions that attend to each other: a map [B,C,H,W] in lines [.,groups,tokens,C], and back.
struct Groups {
  std::function<Tensor(const Tensor&)> gather;
  std::function<Tensor(const Tensor&, const Tensor&)> scatter;  // attended values, and a map of the shape that they take
  bool causal = false;
  optional<Tensor> mask = {};  // [B,1,H,W], where only some positions are keys
};

/// A 1x1 convolution commutes with any grouping, and normalisation sees all positions: so only q, k, v and the result are grouped.
Tensor attend(const Self::Parameters& p, const Tensor& x, const Groups& groups, const layers::ConvNormRelu::Steps& s) {
  const Tensor q = p.query2(p.query1(x, s), s), k = p.key2(p.key1(x, s), s), v = p.value(x);
  ops::Attention how{.causal = groups.causal};
  if (groups.mask) how.mask = groups.gather(*groups.mask).squeeze(3).unsqueeze(2);  // [B,groups,1,tokens]
  return p.out(groups.scatter(ops::attention(groups.gather(q), groups.gather(k), groups.gather(v), how).out, v), s);
}

Groups all_positions() {
  return {.gather = [](const Tensor& map) { return map.flatten(2).transpose(1, 2).unsqueeze(1); },
          .scatter = [](const Tensor& read, const Tensor& map) { return read.squeeze(1).transpose(1, 2).reshape_symint(map.sym_sizes()); }};
}

/// Maps of a by b tiles of dh by dw positions.
struct Tiles {
  Size a, b;
  int64_t dh, dw;
  Tensor open(const Tensor& map) const { return map.unflatten_symint(3, {b, dw}).unflatten_symint(2, {a, dh}); }  // [B,C,a,dh,b,dw]
};

/// The same map with the channels of a position side by side: then positions are gathered and scattered row by row.
Tensor channels_last(const Tensor& map) { return map.movedim(1, -1).contiguous().movedim(-1, 1); }

/// Positions with the same place in their tiles: dh dw groups of a b.
Groups far_apart(const Tiles& t) {
  return {.gather = [t](const Tensor& map) { return t.open(map).permute({0, 3, 5, 2, 4, 1}).flatten(3, 4).flatten(1, 2); },
          .scatter =
              [t](const Tensor& read, const Tensor&) {
                const Tensor tiles = read.unflatten(1, {t.dh, t.dw}).unflatten_symint(3, {t.a, t.b});  // [B,dh,dw,a,b,C]
                return tiles.permute({0, 3, 1, 4, 2, 5}).flatten(1, 2).flatten(2, 3).movedim(-1, 1);
              }};
}

/// Tiles: B a b groups of dh dw positions.
Groups neighbours(const Tiles& t) {
  return {.gather = [t](const Tensor& map) { return t.open(map).permute({0, 2, 4, 3, 5, 1}).flatten(3, 4).flatten(0, 2).unsqueeze(1); },
          .scatter =
              [t](const Tensor& read, const Tensor& map) {
                const Tensor tiles = read.squeeze(1).unflatten(1, {t.dh, t.dw}).unflatten_symint(0, {extent(map, 0), t.a, t.b});  // [B,a,b,dh,dw,C]
                return tiles.permute({0, 1, 3, 2, 4, 5}).flatten(1, 2).flatten(2, 3).movedim(-1, 1);
              }};
}

Tensor interlaced(const auto& o, const Block::Parameters& p, const Self::Inputs& in, int64_t dh, int64_t dw, bool causal, bool mask_padding,
                  bool training) {
  const Tensor& x = in.x;
  const Size H = extent(x, 2), W = extent(x, 3);
  const Tiles tiles{.a = (H + (dh - 1)) / dh, .b = (W + (dw - 1)) / dw, .dh = dh, .dw = dw};
  const Size tall = tiles.a * dh - H, wide = tiles.b * dw - W, top = tall / 2, left = wide / 2;
  const bool fits = tall.maybe_as_int() == 0 && wide.maybe_as_int() == 0;
  const auto padded = [&](const Tensor& t, double with = 0) {
    return fits ? t : at::constant_pad_nd_symint(t, {left, wide - left, top, tall - top}, with);
  };
  Groups far = far_apart(tiles), near = neighbours(tiles);
  far.causal = near.causal = causal;
  if (mask_padding || in.mask) {
    const Tensor seen = in.mask ? in.mask->unsqueeze(1) : at::ones_symint({extent(x, 0), 1, H, W}, x.options().dtype(at::kBool));
    far.mask = near.mask = padded(seen, mask_padding ? 0 : 1);
  }
  const auto s = layers::steps_of(o, training);
  const Tensor out = attend(p.short_range, attend(p.long_range, channels_last(padded(x)), far, s), near, s);
  return fits ? out : out.narrow_symint(2, top, H).narrow_symint(3, left, W);
}

void check_widths(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.in_channels > 0 && o.key_channels > 0 && o.value_channels > 0 && o.out_channels > 0, form,
                    ": in_channels, key_channels, value_channels and out_channels must be positive, got ", o.in_channels, ", ", o.key_channels, ", ",
                    o.value_channels, " and ", o.out_channels);
}

void check_map(const char* form, const Tensor& x, int64_t width) {
  TORCH_CHECK_VALUE(extent(x, 1) == width, form, ": x must have in_channels = ", width, " channels, got ", x.sym_sizes());
}

Block::Parameters stages(const auto& o) {
  return {.long_range = transforms(o.in_channels, o.key_channels, o.value_channels, o.out_channels),
          .short_range = transforms(o.out_channels, o.key_channels, o.value_channels, o.out_channels)};
}

}  // namespace

void InterlacedSelfAttention::check(const Options& o) { check_widths("interlaced_self_attention", o); }

Self::Parameters InterlacedSelfAttention::init(const Options& o) {
  return transforms(o.in_channels, o.key_channels, o.value_channels, o.out_channels);
}

Tensor InterlacedSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_map("interlaced_self_attention", in.x, o.in_channels);
  Groups groups = all_positions();
  if (in.mask) groups.mask = in.mask->unsqueeze(1);
  return attend(p, in.x, groups, layers::steps_of(o, training));
}

FOVEATE_MECHANISM(InterlacedSelfAttention)

void InterlacedSparseBlock::check(const Options& o) {
  check_widths("interlaced_sparse_block", o);
  TORCH_CHECK_VALUE(o.dh > 0 && o.dw > 0, "interlaced_sparse_block: dh and dw must be positive, got ", o.dh, " and ", o.dw);
}

Block::Parameters InterlacedSparseBlock::init(const Options& o) { return stages(o); }

Tensor InterlacedSparseBlock::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_map("interlaced_sparse_block", in.x, o.in_channels);
  return interlaced(o, p, in, o.dh, o.dw, o.causal, o.mask_padding, training);
}

FOVEATE_MECHANISM(InterlacedSparseBlock)

void InterlacedSparseModule::check(const Options& o) {
  check_widths("interlaced_sparse_module", o);
  TORCH_CHECK_VALUE(!o.factors.empty() && o.factors.size() % 2 == 0, "interlaced_sparse_module: factors must be pairs, got ", o.factors.size(),
                    " numbers");
  for (const int64_t d : o.factors) TORCH_CHECK_VALUE(d > 0, "interlaced_sparse_module: factors must be positive, got ", d);
  layers::check_dropout("interlaced_sparse_module", "dropout", o.dropout);
}

InterlacedSparseModule::Parameters InterlacedSparseModule::shape(const Options& o) {
  Parameters p;
  p.stages.resize(o.factors.size() / 2);
  return p;
}

InterlacedSparseModule::Parameters InterlacedSparseModule::init(const Options& o) {
  Parameters p;
  const auto count = static_cast<int64_t>(o.factors.size() / 2);
  for (int64_t i = 0; i < count; ++i) p.stages.push_back(stages(o));
  if (count > 1) p.up = layers::ConvNormRelu::init(o.in_channels, count * o.out_channels);
  p.fuse = layers::ConvNormRelu::init((count > 1 ? count * o.out_channels : o.in_channels) + count * o.out_channels, o.out_channels);
  return p;
}

Tensor InterlacedSparseModule::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_map("interlaced_sparse_module", in.x, o.in_channels);
  std::vector<Tensor> parts{p.up ? (*p.up)(in.x, layers::steps_of(o, training)) : in.x};
  for (std::size_t i = 0; i < p.stages.size(); ++i) {
    parts.push_back(interlaced(o, p.stages[i], in, o.factors[2 * i], o.factors[2 * i + 1], false, false, training));
  }
  const Tensor out = p.fuse(at::cat(parts, 1), layers::steps_of(o, training));
  return training && o.dropout > 0 ? at::feature_dropout(out, o.dropout, true) : out;
}

FOVEATE_MECHANISM(InterlacedSparseModule)

}  // namespace foveate
