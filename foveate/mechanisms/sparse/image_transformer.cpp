#include <foveate/dropout.h>
#include <foveate/image_transformer.h>
#include <foveate/sparse_attention.h>

namespace foveate {
namespace {

using State = ImageTransformerState;

/// The state with new keys and values [B,H,n,D] behind those kept.
State with(const State& past, const Tensor& k, const Tensor& v) {
  if (!past.k.defined()) return {.k = k, .v = v, .first = at::zeros({1}, k.options().dtype(at::kLong))};
  return {.k = at::cat({past.k, k}, 2), .v = at::cat({past.v, v}, 2), .first = past.first};
}

/// The state without so many of its first keys.
State without(const State& s, const Size& count) {
  return {.k = s.k.slice_symint(2, count), .v = s.v.slice_symint(2, count), .first = s.first + count};
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// --- blocks of a sequence ----------------------------------------------------------------------------------------------------

namespace {

/// S_i of block_length b: from the memory before the block to i, or the block with so many positions on each side.
patterns::Pattern block_memory(const ImageTransformerAttention::Options& o) {
  const int64_t b = o.block_length, f = o.filter_width;
  if (o.causal) return patterns::block_window(b, o.memory_length.value_or(b), 0) & patterns::causal();
  const int64_t shift = o.shift_whole_blocks && f % b == 0 ? b : 0;
  return patterns::block_window(b, f + shift, f - shift);
}

}  // namespace

void ImageTransformerAttention::check(const Options& o) {
  TORCH_CHECK_VALUE(o.block_length > 0, "image_transformer_attention: block_length must be positive, got ", o.block_length);
  TORCH_CHECK_VALUE(o.memory_length.value_or(0) >= 0, "image_transformer_attention: memory_length must not be negative, got ", *o.memory_length);
  TORCH_CHECK_VALUE(o.filter_width >= 0, "image_transformer_attention: filter_width must not be negative, got ", o.filter_width);
}

Tensor ImageTransformerAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  return ops::sparse_attention(in.q, in.k, in.v, block_memory(o), {.key_mask = in.key_mask, .scale = o.scale}).out;
}

std::pair<Tensor, State> ImageTransformerAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  TORCH_CHECK_VALUE(o.causal, "image_transformer_attention_step: causal must be True for the form to stream, got False");
  State next = with(past, in.k, in.v);  // its first key begins a block
  const Size length = extent(next.k, 2);
  optional<Tensor> key_mask = in.key_mask;
  if (key_mask) key_mask = key_mask->slice_symint(1, extent(*key_mask, 1) - length);  // of the keys that are kept
  Tensor out = ops::sparse_attention(in.q, next.k, next.v, block_memory(o), {.key_mask = key_mask, .scale = o.scale}).out;
  const int64_t b = o.block_length, memory = ceil_divide(o.memory_length.value_or(b), b) * b;
  return {std::move(out), without(next, (length / b * b - memory).max(0))};
}

FOVEATE_MECHANISM(ImageTransformerAttention)

// --- blocks of an image ------------------------------------------------------------------------------------------------------

namespace {

using GridOptions = ImageTransformerGridAttention::Options;

/// Rows and columns of an image, counted from where a block begins.
struct Window {
  int64_t y, rows, x, columns;
};

/// An image [B,H,Y,X,D] cut into T blocks of height x width, row by row; the last of a row or column may stand out.
struct Grid {
  int64_t height, width;
  Size Y, X, by, bx;
  Tensor block_y, block_x;  // [T,1,1] where the blocks begin

  Grid(const GridOptions& o, const Tensor& x)
      : height(o.query_shape[0]),
        width(o.query_shape[1]),
        Y(extent(x, 2)),
        X(extent(x, 3)),
        by((Y + (height - 1)) / height),
        bx((X + (width - 1)) / width) {
    const Tensor block = at::arange(by * bx, x.options().dtype(at::kLong)).unsqueeze(1).unsqueeze(1);
    block_y = block.floor_divide(bx) * height;
    block_x = block.remainder(bx) * width;
  }

  Tensor rows(const Window& w) const { return block_y + w.y + at::arange(w.rows, block_y.options()).unsqueeze(1); }  // [T,rows,1]
  Tensor columns(const Window& w) const { return block_x + w.x + at::arange(w.columns, block_x.options()); }         // [T,1,columns]

  /// The window of each block: [T,B H,rows columns,D]. What stands out of the image is anything.
  Tensor cut(const Tensor& x, const Window& w) const {
    if (!Y.maybe_as_int() || !X.maybe_as_int()) {  // in a form that any size fits
      const Tensor cells = at::index(x, {{}, {}, clamped(rows(w), Y), clamped(columns(w), X)});
      return cells.movedim(2, 0).flatten(3, 4).flatten(1, 2);
    }
    const Size below = (by - 1) * height + w.y + w.rows - Y, right = (bx - 1) * width + w.x + w.columns - X;
    return at::constant_pad_nd_symint(x, {0, 0, -w.x, right, -w.y, below})
        .unfold(2, w.rows, height)
        .unfold(3, w.columns, width)  // [B,H,by,bx,D,rows,columns]
        .permute({2, 3, 0, 1, 5, 6, 4})
        .flatten(4, 5)
        .flatten(2, 3)
        .flatten(0, 1);
  }

  /// Which cells of a window lie in the image and take part: [T,B or 1,1,rows columns]
  Tensor seen(const optional<Tensor>& key_mask, const Window& w) const {
    const Tensor y = rows(w), x = columns(w);
    Tensor inside = ((y >= 0) & (y < Y) & (x >= 0) & (x < X)).unsqueeze(0);  // [1,T,rows,columns]
    if (key_mask) inside = inside & at::index(*key_mask, {{}, clamped(y, Y), clamped(x, X)});
    return inside.flatten(2).transpose(0, 1).unsqueeze(2);
  }

  /// [T,B H,height width,D] -> [B,H,Y,X,D]
  Tensor image(const Tensor& blocks, const Size& batch, const Size& heads) const {
    const Tensor y = at::arange(Y, block_y.options()).unsqueeze(1), x = at::arange(X, block_x.options());
    const Tensor block = y.floor_divide(height) * bx + x.floor_divide(width), place = y.remainder(height) * width + x.remainder(width);
    return at::index(blocks, {block, {}, place}).movedim(2, 0).unflatten_symint(0, {batch, heads});
  }

 private:
  static Tensor clamped(const Tensor& x, const Size& length) { return x.clamp_min(0).clamp_max(length - 1); }
};

/// The attention out, with score 0 and value 0 added `missing` times to its keys.
Tensor with_zeros(const ops::Attended& attended, const Tensor& missing) {
  const Tensor count = missing.to(attended.lse.scalar_type());
  const Tensor all = at::logaddexp(attended.lse, count.clamp_min(1).log());  // never -inf, whose gradient would be NaN
  const Tensor share = at::where(count > 0, (attended.lse - all).exp(), at::ones({}, all.options()));
  return attended.out * share.unsqueeze(-1).to(attended.out.scalar_type());
}

/// Where positions p, counted block by block, stand in the image: y and x, and those where their block begins.
struct Place {
  Tensor y, x, block_y, block_x;

  Place(const GridOptions& o, const Tensor& p) {
    const int64_t height = o.query_shape[0], width = o.query_shape[1], Y = o.image_shape[0], X = o.image_shape[1];
    block_y = p.floor_divide(height * X) * height;
    const Tensor rows = (Y - block_y).clamp(1, height), in_band = p.remainder(height * X);  // a band of blocks, the last perhaps lower
    block_x = in_band.floor_divide(rows * width) * width;
    const Tensor columns = (X - block_x).clamp(1, width), in_block = in_band - block_x * rows;
    y = block_y + in_block.floor_divide(columns);
    x = block_x + in_block.remainder(columns);
  }
};

}  // namespace

void ImageTransformerGridAttention::check(const Options& o) {
  const auto two = [](const std::vector<int64_t>& shape, int64_t least) { return shape.size() == 2 && shape[0] >= least && shape[1] >= least; };
  constexpr const char* name = "image_transformer_grid_attention";
  TORCH_CHECK_VALUE(two(o.query_shape, 1), name, ": query_shape must be a positive height and width, got ", c10::ArrayRef(o.query_shape));
  TORCH_CHECK_VALUE(two(o.memory_flange, 0), name, ": memory_flange must be a height and width, got ", c10::ArrayRef(o.memory_flange));
  TORCH_CHECK_VALUE(o.image_shape.empty() || two(o.image_shape, 1), name, ": image_shape must be a positive height and width, got ",
                    c10::ArrayRef(o.image_shape));
}

Tensor ImageTransformerGridAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const Grid grid(o, in.q);
  const int64_t height = grid.height, width = grid.width, mh = o.memory_flange[0], mw = o.memory_flange[1];
  const Window own{0, height, 0, width}, above{-mh, mh, -mw, width + 2 * mw}, left{0, height, -mw, mw};
  const Window around{-mh, height + 2 * mh, -mw, width + 2 * mw};
  // Where causal, a block's own keys come last, in the order of its queries: the last query meets the last key.
  const auto memory = o.causal ? std::vector{above, left, own} : std::vector{around};
  const auto joined = [&](const auto& part, int64_t dim) {
    std::vector<Tensor> parts;
    for (const Window& w : memory) parts.push_back(part(w));
    return at::cat(parts, dim);
  };
  const auto keys = [&](const Tensor& x) { return joined([&](const Window& w) { return grid.cut(x, w); }, 2); };
  const Size batch = extent(in.q, 0), heads = extent(in.q, 1);
  Tensor mask = joined([&](const Window& w) { return grid.seen(in.key_mask, w); }, 3);  // [T,B or 1,1,M]
  if (in.key_mask) mask = mask.unsqueeze(2).expand_symint({-1, batch, heads, -1, -1}).flatten(1, 2);

  const auto attended = ops::attention(grid.cut(in.q, own), keys(in.k), keys(in.v), {.mask = mask, .causal = o.causal, .scale = o.scale});
  if (!o.causal || !o.padding_takes_part) return grid.image(attended.out, batch, heads);
  // In a block that stands out at the right, so many cells of each row above the query's are missing.
  const Tensor row = at::arange(height, grid.block_y.options()).unsqueeze(1).expand({height, width}).flatten();
  const Tensor missing = row * (grid.block_x + width - grid.X).clamp_min(0);  // [T,1,height width]
  return grid.image(with_zeros(attended, missing), batch, heads);
}

std::pair<Tensor, State> ImageTransformerGridAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  constexpr const char* name = "image_transformer_grid_attention_step";
  TORCH_CHECK_VALUE(o.causal, name, ": causal must be True for the form to stream, got False");
  TORCH_CHECK_VALUE(!o.image_shape.empty(), name, ": image_shape must be given");
  TORCH_CHECK_VALUE(extent(in.q, 2) == 1, name, ": q must be [B,H,1,X,D], positions in one row, got ", in.q.sym_sizes());
  TORCH_CHECK_VALUE(!in.key_mask, name, ": key_mask is not given step by step");
  State next = with(past, in.k.squeeze(2), in.v.squeeze(2));  // its first key begins a band of blocks
  const Size length = extent(next.k, 2), count = extent(in.q, 3);
  const Tensor position = next.first + at::arange(length, next.first.options());
  const Place query(o, position.slice_symint(0, length - count).unsqueeze(1)), key(o, position);
  const int64_t height = o.query_shape[0], width = o.query_shape[1], mh = o.memory_flange[0], mw = o.memory_flange[1];

  const auto between = [](const Tensor& x, const Tensor& first, const Tensor& end) { return (x >= first) & (x < end); };
  const Tensor above = between(key.y, query.block_y - mh, query.block_y) & between(key.x, query.block_x - mw, query.block_x + (width + mw));
  const Tensor left = between(key.y, query.block_y, query.block_y + height) & between(key.x, query.block_x - mw, query.block_x);
  const Tensor own =
      (key.block_y == query.block_y) & (key.block_x == query.block_x) & (position <= position.slice_symint(0, length - count).unsqueeze(1));
  const auto attended = ops::attention(in.q.squeeze(2), next.k, next.v, {.mask = above | left | own, .scale = o.scale});
  Tensor out = attended.out;
  if (o.padding_takes_part) {
    out = with_zeros(attended, ((query.y - query.block_y) * (query.block_x + width - o.image_shape[1]).clamp_min(0)).squeeze(1));
  }
  const int64_t band = height * o.image_shape[1];
  return {out.unsqueeze(2), without(next, (length / band - ceil_divide(mh, height)).max(0) * band)};
}

FOVEATE_MECHANISM(ImageTransformerGridAttention)

// --- the layer ---------------------------------------------------------------------------------------------------------------

void ImageTransformerLayer::check(const Options& o) {
  layers::check_heads("image_transformer_layer", o.embed_dim, o.num_heads);
  TORCH_CHECK_VALUE(o.ff_dim > 0, "image_transformer_layer: ff_dim must be positive, got ", o.ff_dim);
  layers::check_dropout("image_transformer_layer", "dropout", o.dropout);
  ImageTransformerAttention::check(o.line());
  ImageTransformerGridAttention::check(o.grid());
}

ImageTransformerLayer::Parameters ImageTransformerLayer::init(const Options& o) {
  return {.attention = layers::Heads::init({.width = o.embed_dim, .bias = false}),
          .norm1 = layers::LayerNorm::init(o.embed_dim),
          .feed_forward = layers::FeedForward::init(o.embed_dim, o.ff_dim),
          .norm2 = layers::LayerNorm::init(o.embed_dim)};
}

namespace {

using LayerOptions = ImageTransformerLayer::Options;

/// Attention over the image whose raster q, k and v are. A last row that is not full is filled up.
Tensor attend_in_image(const LayerOptions& o, const layers::Heads::Projected& p, const optional<Tensor>& key_mask) {
  const int64_t X = o.image_shape[1];
  const Size N = extent(p.q, 2), Y = (N + (X - 1)) / X;
  const Tensor position = at::arange(N, p.q.options().dtype(at::kLong));
  const Tensor cell = at::arange(Y, position.options()).unsqueeze(1) * X + at::arange(X, position.options()),
               filled = cell.clamp_max(N - 1);  // [Y,X]
  const auto image = [&](const Tensor& x) { return at::index(x, {{}, {}, filled}); };
  optional<Tensor> seen;
  if (key_mask || (Y * X - N).maybe_as_int() != 0) {
    seen = (cell < N).unsqueeze(0);
    if (key_mask) seen = *seen & at::index(*key_mask, {{}, filled});
  }
  const Tensor out = ImageTransformerGridAttention::forward(o.grid(), {}, {.q = image(p.q), .k = image(p.k), .v = image(p.v), .key_mask = seen});
  return at::index(out, {{}, {}, position.floor_divide(X), position.remainder(X)});
}

/// From attended values to the layer's result.
Tensor finish(const LayerOptions& o, const ImageTransformerLayer::Parameters& p, const Tensor& x, const Tensor& attended, bool training) {
  const Tensor a = p.norm1(x + at::dropout(p.attention.join(attended), o.dropout, training), o.layer_norm_eps);
  return p.norm2(a + at::dropout(p.feed_forward(a), o.dropout, training), o.layer_norm_eps);
}

}  // namespace

Tensor ImageTransformerLayer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto heads = p.attention.project(in.x, in.x, o.num_heads);
  const Tensor attended = o.image_shape.empty()
                              ? ImageTransformerAttention::forward(o.line(), {}, {.q = heads.q, .k = heads.k, .v = heads.v, .key_mask = in.key_mask})
                              : attend_in_image(o, heads, in.key_mask);
  return finish(o, p, in.x, attended, training);
}

std::pair<Tensor, State> ImageTransformerLayer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  const auto [q, k, v] = p.attention.project(in.x, in.x, o.num_heads);
  if (o.image_shape.empty()) {
    auto [out, next] = ImageTransformerAttention::step(o.line(), {}, {.q = q, .k = k, .v = v, .key_mask = in.key_mask}, std::move(past));
    return {finish(o, p, in.x, out, false), std::move(next)};
  }
  auto [out, next] = ImageTransformerGridAttention::step(
      o.grid(), {}, {.q = q.unsqueeze(2), .k = k.unsqueeze(2), .v = v.unsqueeze(2), .key_mask = in.key_mask}, std::move(past));
  return {finish(o, p, in.x, out.squeeze(2), false), std::move(next)};
}

FOVEATE_MECHANISM(ImageTransformerLayer)

}  // namespace foveate
