#include <foveate/axial_model.h>
#include <foveate/dropout.h>
#include <foveate/init.h>

#include <algorithm>

namespace foveate {
namespace {

using Model = AxialTransformer;
constexpr int64_t down = 1, across = 2;  // the axes of [B,H,W,E]

/// Keys and values of earlier positions on the axis, to which those of new ones are added.
struct Kept {
  Tensor k, v;  // [B,*,*,heads,D]
};

Tensor through(const auto& o, const AxialBlock& p, const Tensor& x, int64_t axis, bool causal, bool training, Kept* kept = nullptr) {
  const Tensor normed = p.norm_attention(x, o.ln_eps);
  const auto split = [&](const layers::Linear& map) { return map(normed).unflatten(-1, {o.num_heads, -1}); };
  Tensor k = split(p.heads.key), v = split(p.heads.value);
  if (kept) {
    if (kept->k.defined()) {
      k = at::cat({kept->k, k}, axis);
      v = at::cat({kept->v, v}, axis);
    }
    *kept = {.k = k, .v = v};
  }
  const Tensor read = p.heads.out(detail::attend_along(axis, split(p.heads.query), k, v, causal).flatten(-2));
  const Tensor y = x + layers::dropout(read, o.dropout, std::nullopt, training);
  return y + layers::dropout(p.mlp(p.norm_mlp(y, o.ln_eps), layers::Activation::quick_gelu), o.dropout, std::nullopt, training);
}

/// Blocks along rows and down columns in turn; `above` keeps what columns have read, one for each pair.
Tensor through_pairs(const auto& o, const std::vector<AxialBlock>& rows, const std::vector<AxialBlock>& columns, Tensor x, bool causal, bool training,
                     std::vector<Kept>* above = nullptr) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    x = through(o, rows[i], x, across, false, training);
    x = through(o, columns[i], x, down, causal, training, above ? &(*above)[i] : nullptr);
  }
  return x;
}

/// Blocks along the row; `left` keeps what they have read.
Tensor within_rows(const auto& o, const std::vector<AxialBlock>& blocks, Tensor x, bool training, std::vector<Kept>* left = nullptr) {
  for (std::size_t i = 0; i < blocks.size(); ++i) x = through(o, blocks[i], x, across, true, training, left ? &(*left)[i] : nullptr);
  return x;
}

/// x moved by one along the axis; zeros come in.
Tensor shifted(const Tensor& x, int64_t axis) {
  const Tensor first = at::zeros_like(x.narrow(axis, 0, 1));
  return at::cat({first, x.narrow_symint(axis, 0, extent(x, axis) - 1)}, axis);
}

/// [B or 1,H,W,E]: positions, and what else is known.
Tensor places(const Tensor& rows, const Tensor& columns, const optional<Tensor>& condition) {
  const Tensor at = (rows.unsqueeze(1) + columns.unsqueeze(0)).unsqueeze(0);
  return condition ? at + *condition : at;
}

Tensor logits_of(const auto& o, const Model::Parameters& p, const Tensor& x) { return p.head(p.final_norm(x, o.ln_eps)); }

Model::Outputs logits_of_image(const auto& o, const Model::Parameters& p, const Tensor& ids, const optional<Tensor>& condition, bool training) {
  const Tensor h = at::embedding(p.embedding, ids);  // [B,H,W,E]
  const Tensor place = places(p.rows, p.columns, condition);
  const Tensor above = shifted(through_pairs(o, p.outer_rows, p.outer_columns, h + place, true, training), down);
  const Tensor r = within_rows(o, p.inner_rows, shifted(h, across) + above + place, training);
  return {.logits = logits_of(o, p, r), .upper_context = above};
}

/// One channel of an image, pixel after pixel; the first o.known are given.
AxialSampler::Outputs drawn(const auto& o, const Model::Parameters& p, const Tensor& given, const optional<Tensor>& condition, const Tensor& noise) {
  const Tensor place = places(p.rows, p.columns, condition);
  const Tensor nothing = p.embedding.new_zeros_symint({extent(given, 0), 1, 1, Size(o.embed_dim)});
  std::vector<Kept> above(p.outer_columns.size());
  std::vector<Tensor> ids, logits;                                // of each row
  Tensor u = nothing.expand_symint({-1, -1, Size(o.width), -1});  // [B,1,W,E], what is above
  for (int64_t y = 0; y < o.height; ++y) {
    const Tensor here = place.narrow(down, y, 1) + u;  // [B,1,W,E]
    const int64_t known = std::clamp<int64_t>(o.known - y * o.width, 0, o.width);
    std::vector<Kept> left(p.inner_rows.size());
    std::vector<Tensor> row_ids, row_logits, embedded;  // of pixels, those that are known in one piece
    const auto read = [&](const Tensor& before, int64_t x, int64_t count) {
      const Tensor r = within_rows(o, p.inner_rows, before + here.narrow(across, x, count), false, &left);
      row_logits.push_back(logits_of(o, p, r));
    };
    const auto show = [&](const Tensor& chosen) {
      row_ids.push_back(chosen);
      embedded.push_back(at::embedding(p.embedding, chosen));
    };
    if (known > 0) {
      show(given.narrow(down, y, 1).narrow(across, 0, known));
      read(shifted(embedded.back(), across), 0, known);
    }
    for (int64_t x = known; x < o.width; ++x) {
      read(x == 0 ? nothing : embedded.back().narrow(across, -1, 1), x, 1);
      show((row_logits.back() + o.temperature * noise.narrow(down, y, 1).narrow(across, x, 1)).argmax(-1));
    }
    ids.push_back(at::cat(row_ids, across));
    logits.push_back(at::cat(row_logits, across));
    u = through_pairs(o, p.outer_rows, p.outer_columns, at::cat(embedded, across) + place.narrow(down, y, 1), false, false, &above);
  }
  return {.logits = at::cat(logits, down), .ids = at::cat(ids, down)};
}

/// The given noise, or fresh.
Tensor gumbel(const char* form, const auto& o, const auto& in, const Tensor& like) {
  if (!in.noise) {
    auto shape = in.ids.sym_sizes().vec();
    shape.emplace_back(o.num_embs);
    return -at::empty_symint(shape, like.options()).exponential_().log();
  }
  TORCH_CHECK_VALUE(extent(*in.noise, -1) == o.num_embs, form, ": noise must be of num_embs = ", o.num_embs, " values, got ", in.noise->sym_sizes());
  return *in.noise;
}

void check_image(const char* form, const auto& o, const Tensor& ids, const optional<Tensor>& condition) {
  TORCH_CHECK_VALUE(extent(ids, 1) == o.height && extent(ids, 2) == o.width, form, ": ids must be of height = ", o.height, " by width = ", o.width,
                    ", got ", ids.sym_sizes());
  TORCH_CHECK_VALUE(!condition || extent(*condition, 3) == o.embed_dim, form, ": condition must have embed_dim = ", o.embed_dim, " features, got ",
                    condition.value_or(ids).sym_sizes());
}

void check_layers(const char* form, const char* option, int64_t count) {
  TORCH_CHECK_VALUE(count >= 0 && count % 2 == 0, form, ": ", option, " must be even, half of them rows and half columns, got ", count);
}

void check_model(const char* form, const auto& o) {
  layers::check_heads(form, o.embed_dim, o.num_heads);
  layers::check_dropout(form, "dropout", o.dropout);
  TORCH_CHECK_VALUE(o.height > 0 && o.width > 0 && o.num_embs > 0 && o.hdim_factor > 0, form,
                    ": height, width, num_embs and hdim_factor must be positive, got ", o.height, ", ", o.width, ", ", o.num_embs, " and ",
                    o.hdim_factor);
  check_layers(form, "num_outer_layers", o.num_outer_layers);
  TORCH_CHECK_VALUE(o.num_inner_layers >= 0, form, ": num_inner_layers must not be negative, got ", o.num_inner_layers);
}

void check_channels(const char* form, const auto& o) {
  check_model(form, o);
  check_layers(form, "num_exterior_layers", o.num_exterior_layers);
  TORCH_CHECK_VALUE(o.channels > 0, form, ": channels must be positive, got ", o.channels);
}

void check_draw(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.known >= 0 && o.known <= o.height * o.width, form, ": known must be 0 to height * width = ", o.height * o.width, ", got ",
                    o.known);
  TORCH_CHECK_VALUE(o.temperature >= 0, form, ": temperature must not be negative, got ", o.temperature);
}

// --- parameters ------------------------------------------------------------------------------------------------------------

/// Weights normal, their variance `scale` over what comes in.
layers::Linear dense(int64_t in, int64_t out, double scale = 1) {
  return {.weight = layers::normal({out, in}, std::sqrt(scale / static_cast<double>(in))), .bias = layers::zeros({out})};
}

constexpr double nearly_nothing = 1e-10;  // the variance of what adds to the stream, at first

std::vector<AxialBlock> blocks(const auto& o, std::size_t count) {
  std::vector<AxialBlock> made(count);
  const int64_t E = o.embed_dim, inner = E * o.hdim_factor;
  for (auto& each : made) {
    each = {.norm_attention = layers::LayerNorm::init(E),
            .heads = {.query = dense(E, E), .key = dense(E, E), .value = dense(E, E), .out = dense(E, E, nearly_nothing)},
            .norm_mlp = layers::LayerNorm::init(E),
            .mlp = {.up = dense(E, inner), .down = dense(inner, E, nearly_nothing)}};
  }
  return made;
}

Tensor embeddings(const auto& o, int64_t count) {
  return layers::normal({count, o.embed_dim}, o.emb_init_scale / std::sqrt(static_cast<double>(o.embed_dim)));
}

Model::Parameters shape_of(const auto& o) {
  Model::Parameters p;
  p.outer_rows.resize(static_cast<std::size_t>(o.num_outer_layers / 2));
  p.outer_columns.resize(p.outer_rows.size());
  p.inner_rows.resize(static_cast<std::size_t>(o.num_inner_layers));
  return p;
}

Model::Parameters made(const auto& o) {
  const auto empty = shape_of(o);
  return {.embedding = embeddings(o, o.num_embs),
          .rows = embeddings(o, o.height),
          .columns = embeddings(o, o.width),
          .outer_rows = blocks(o, empty.outer_rows.size()),
          .outer_columns = blocks(o, empty.outer_columns.size()),
          .inner_rows = blocks(o, empty.inner_rows.size()),
          .final_norm = layers::LayerNorm::init(o.embed_dim),
          .head = dense(o.embed_dim, o.num_embs, nearly_nothing)};
}

AxialTransformer3d::Parameters shape_of_3d(const auto& o) {
  AxialTransformer3d::Parameters p{.image = shape_of(o)};
  p.exterior_rows.resize(static_cast<std::size_t>(o.num_exterior_layers / 2));
  p.exterior_columns.resize(p.exterior_rows.size());
  return p;
}

AxialTransformer3d::Parameters made_3d(const auto& o) {
  const auto empty = shape_of_3d(o);
  const double deviation = 1 / std::sqrt(18 * static_cast<double>(o.channels));
  return {.exterior_input = {.weight = layers::normal({o.embed_dim, 2 * o.channels, 3, 3}, deviation), .bias = layers::zeros({o.embed_dim})},
          .rows = embeddings(o, o.height),
          .columns = embeddings(o, o.width),
          .exterior_rows = blocks(o, empty.exterior_rows.size()),
          .exterior_columns = blocks(o, empty.exterior_columns.size()),
          .image = made(o)};
}

// --- several channels --------------------------------------------------------------------------------------------------------

/// What channel s knows of the channels before it, planes [B,H,W] of ids: [B,H,W,E].
Tensor context_of(const auto& o, const AxialTransformer3d::Parameters& p, const std::vector<Tensor>& before, const Tensor& ids, int64_t s,
                  const optional<Tensor>& condition, bool training) {
  const auto type = p.rows.scalar_type();
  std::vector<Tensor> planes;
  for (int64_t c = 0; c < o.channels; ++c) {
    planes.push_back(c < s ? before[static_cast<std::size_t>(c)].to(type) / 255 : at::zeros_like(ids.select(3, c), type));
  }
  for (int64_t c = 0; c < o.channels; ++c) planes.push_back(c == s ? at::ones_like(planes[0]) : at::zeros_like(planes[0]));
  const Tensor c = p.exterior_input(at::stack(planes, 1), {.padding = 1}).movedim(1, 3) + places(p.rows, p.columns, condition);
  return through_pairs(o, p.exterior_rows, p.exterior_columns, c, false, training);
}

void check_image_3d(const char* form, const auto& o, const Tensor& ids, const optional<Tensor>& condition) {
  check_image(form, o, ids, condition);
  TORCH_CHECK_VALUE(extent(ids, 3) == o.channels, form, ": ids must have channels = ", o.channels, " channels, got ", ids.sym_sizes());
}

}  // namespace

void AxialTransformer::check(const Options& o) { check_model("axial_transformer", o); }
Model::Parameters AxialTransformer::shape(const Options& o) { return shape_of(o); }
Model::Parameters AxialTransformer::init(const Options& o) { return made(o); }

Model::Outputs AxialTransformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_image("axial_transformer", o, in.ids, in.condition);
  return logits_of_image(o, p, in.ids, in.condition, training);
}

FOVEATE_MECHANISM(AxialTransformer)

void AxialSampler::check(const Options& o) {
  check_model("axial_sampler", o);
  check_draw("axial_sampler", o);
}
Model::Parameters AxialSampler::shape(const Options& o) { return shape_of(o); }
Model::Parameters AxialSampler::init(const Options& o) { return made(o); }

AxialSampler::Outputs AxialSampler::forward(const Options& o, const Parameters& p, const Inputs& in) {
  check_image("axial_sampler", o, in.ids, in.condition);
  return drawn(o, p, in.ids, in.condition, gumbel("axial_sampler", o, in, p.embedding));
}

FOVEATE_MECHANISM(AxialSampler)

void AxialTransformer3d::check(const Options& o) {
  check_channels("axial_transformer3d", o);
  TORCH_CHECK_VALUE(!o.channel || (*o.channel >= 0 && *o.channel < o.channels), "axial_transformer3d: channel must be 0 to ", o.channels - 1,
                    ", got ", o.channel.value_or(0));
}
AxialTransformer3d::Parameters AxialTransformer3d::shape(const Options& o) { return shape_of_3d(o); }
AxialTransformer3d::Parameters AxialTransformer3d::init(const Options& o) { return made_3d(o); }

Tensor AxialTransformer3d::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  check_image_3d("axial_transformer3d", o, in.ids, in.condition);
  const auto planes = in.ids.unbind(3);
  std::vector<Tensor> logits;
  for (int64_t s = o.channel.value_or(0); s < (o.channel ? *o.channel + 1 : o.channels); ++s) {
    const Tensor context = context_of(o, p, planes, in.ids, s, in.condition, training);
    logits.push_back(logits_of_image(o, p.image, planes[static_cast<std::size_t>(s)], context, training).logits);
  }
  return at::stack(logits, 3);
}

FOVEATE_MECHANISM(AxialTransformer3d)

void AxialSampler3d::check(const Options& o) {
  check_channels("axial_sampler3d", o);
  check_draw("axial_sampler3d", o);
}
AxialTransformer3d::Parameters AxialSampler3d::shape(const Options& o) { return shape_of_3d(o); }
AxialTransformer3d::Parameters AxialSampler3d::init(const Options& o) { return made_3d(o); }

AxialSampler3d::Outputs AxialSampler3d::forward(const Options& o, const Parameters& p, const Inputs& in) {
  check_image_3d("axial_sampler3d", o, in.ids, in.condition);
  const Tensor noise = gumbel("axial_sampler3d", o, in, p.rows);  // [B,H,W,S,K]
  std::vector<Tensor> planes, logits;
  for (int64_t s = 0; s < o.channels; ++s) {
    const Tensor context = context_of(o, p, planes, in.ids, s, in.condition, false);
    const auto plane = drawn(o, p.image, in.ids.select(3, s), context, noise.select(3, s));
    planes.push_back(plane.ids);
    logits.push_back(plane.logits);
  }
  return {.logits = at::stack(logits, 3), .ids = at::stack(planes, 3)};
}

FOVEATE_MECHANISM(AxialSampler3d)

}  // namespace foveate
