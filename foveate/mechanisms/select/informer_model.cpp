#include <foveate/dropout.h>
#include <foveate/informer_model.h>
#include <foveate/init.h>

namespace foveate {
namespace {

using Table = optional<Tensor> InformerEmbedding::*;
constexpr std::array<std::pair<Table, int64_t>, 5> calendar{{{&InformerEmbedding::month, 13},  // months and days count from 1
                                                             {&InformerEmbedding::day, 32},
                                                             {&InformerEmbedding::weekday, 7},
                                                             {&InformerEmbedding::hour, 24},
                                                             {&InformerEmbedding::quarter, 4}}};

/// place [...] -> [...,E]: sines and cosines side by side
Tensor sinusoids(const Tensor& place, int64_t width) {
  const Tensor rate = at::exp(at::arange(0, width, 2, place.options()) * (-std::log(10000.0) / static_cast<double>(width)));
  const Tensor angle = place.unsqueeze(-1) * rate;
  return at::stack({angle.sin(), angle.cos()}, -1).flatten(-2);
}

/// Row by row: values [B,N,C] and time [B,N,*] -> [B,N,E]
Tensor embedded(const Informer::Options& o, const InformerEmbedding& p, const Tensor& values, const Tensor& time, bool training) {
  const auto exact = values.options().dtype(at::kDouble);
  TORCH_CHECK_VALUE(p.month.has_value() == (o.time_kind == InformerTime::learned),
                    "informer: month is needed by a learned calendar, and by it alone");
  Tensor x = detail::circular(p.values, values).transpose(1, 2);
  x = x + sinusoids(at::arange(extent(values, 1), exact), o.d_model).to(x.scalar_type());
  if (o.time_kind == InformerTime::features) {
    TORCH_CHECK_VALUE(p.time, "informer: time is needed by time features");
    x = x + (*p.time)(time);
  } else {
    for (int64_t i = 0; i < o.time_columns; ++i) {
      const Tensor column = time.select(2, i).detach().round();
      const auto& table = p.*calendar[static_cast<std::size_t>(i)].first;
      x = x + (table ? at::embedding(*table, column.to(at::kLong)) : sinusoids(column.to(at::kDouble), o.d_model).to(x.scalar_type()));
    }
  }
  return layers::dropout(x, o.dropout, std::nullopt, training);
}

InformerEmbedding embedding_of(const Informer::Options& o, int64_t columns) {
  const std::vector<int64_t> taps{3};
  InformerEmbedding p{.values = layers::Convolution::init(columns, o.d_model, taps)};
  const double leak = 1 + 0.01 * 0.01;  // of the leaky ReLU that the authors initialise for
  p.values.weight = layers::normal({o.d_model, columns, 3}, std::sqrt(2 / (leak * 3 * static_cast<double>(columns))));
  if (o.time_kind == InformerTime::features) p.time = layers::Linear::init(o.time_columns, o.d_model);
  if (o.time_kind == InformerTime::learned) {
    for (int64_t i = 0; i < o.time_columns; ++i) {
      const auto& [table, rows] = calendar[static_cast<std::size_t>(i)];
      p.*table = layers::normal({rows, o.d_model}, 1);
    }
  }
  return p;
}

}  // namespace

InformerStack::Options Informer::Options::encoders() const {
  return {.d_model = d_model,
          .num_heads = num_heads,
          .d_ff = d_ff,
          .num_layers = encoder_layers,
          .factor = factor,
          .distil = distil,
          .activation = activation,
          .dropout = dropout,
          .layer_norm_eps = layer_norm_eps,
          .batch_norm_eps = batch_norm_eps,
          .batch_norm_momentum = batch_norm_momentum};
}

InformerDecoderLayer::Options Informer::Options::decoder() const {
  return {.d_model = d_model,
          .num_heads = num_heads,
          .d_ff = d_ff,
          .factor = factor,
          .mix = mix,
          .activation = activation,
          .dropout = dropout,
          .layer_norm_eps = layer_norm_eps};
}

void Informer::check(const Options& o) {
  InformerStack::check(o.encoders());
  InformerDecoderLayer::check(o.decoder());
  TORCH_CHECK_VALUE(o.enc_in > 0 && o.dec_in > 0 && o.c_out > 0, "informer: enc_in, dec_in and c_out must be positive, got ", o.enc_in, ", ",
                    o.dec_in, " and ", o.c_out);
  TORCH_CHECK_VALUE(o.decoder_layers > 0, "informer: decoder_layers must be positive, got ", o.decoder_layers);
  TORCH_CHECK_VALUE(o.d_model % 2 == 0, "informer: d_model must be even, got ", o.d_model);
  const bool calendar = o.time_kind != InformerTime::features;
  TORCH_CHECK_VALUE(o.time_columns > 0 && (!calendar || o.time_columns == 4 || o.time_columns == 5), "informer: time_columns must be ",
                    calendar ? "4 or 5" : "positive", ", got ", o.time_columns);
}

Informer::Parameters Informer::shape(const Options& o) {
  Parameters p;
  p.encoders = InformerStack::shape(o.encoders()).encoders;
  p.decoder.resize(static_cast<std::size_t>(o.decoder_layers));
  return p;
}

Informer::Parameters Informer::init(const Options& o) {
  Parameters p{.embedding = embedding_of(o, o.enc_in),
               .target_embedding = embedding_of(o, o.dec_in),
               .encoders = InformerStack::init(o.encoders()).encoders,
               .decoder = {},
               .norm = layers::LayerNorm::init(o.d_model),
               .head = layers::Linear::init(o.d_model, o.c_out)};
  for (int64_t l = 0; l < o.decoder_layers; ++l) p.decoder.push_back(InformerDecoderLayer::init(o.decoder()));
  return p;
}

Tensor Informer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Size L = extent(in.start, 1), T = extent(in.target_time, 1);
  TORCH_CHECK_VALUE(T >= L, "informer: target_time must have a row for each of the ", L, " of start, and for those to be predicted, got ", T);
  const Tensor x = embedded(o, p.embedding, in.x, in.time, training);
  const Tensor cross = InformerStack::forward(o.encoders(), {.encoders = p.encoders}, {.x = x, .index_sample = in.index_sample}, training);
  const Tensor rows = at::cat({in.start, in.start.new_zeros_symint({extent(in.start, 0), T - L, extent(in.start, 2)})}, 1);
  Tensor y = embedded(o, p.target_embedding, rows, in.target_time, training);
  for (std::size_t l = 0; l < p.decoder.size(); ++l) {
    const auto sample = in.decoder_sample ? optional(in.decoder_sample->select(0, static_cast<int64_t>(l))) : std::nullopt;
    y = InformerDecoderLayer::forward(o.decoder(), p.decoder[l], {.x = y, .cross = cross, .index_sample = sample}, training);
  }
  return p.head(p.norm(y, o.layer_norm_eps)).narrow_symint(1, L, T - L);
}

FOVEATE_MECHANISM(Informer)

}  // namespace foveate
