#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/transformer_on_a_diet_model.h>

namespace foveate {
namespace {

DietEncoder::Inputs embedded(const DietLanguageModel::Parameters& p, const DietLanguageModel::Inputs& in) {
  return {.x = at::embedding(p.embedding, in.ids), .valid_length = in.valid_length, .key_mask = in.key_mask, .weight_keep = in.weight_keep};
}

}  // namespace

void DietLanguageModel::check(const Options& o) {
  TORCH_CHECK_VALUE(o.vocab_size > 0, "diet_language_model: vocab_size must be positive, got ", o.vocab_size);
  layers::check_dropout("diet_language_model", "output_dropout", o.output_dropout);
  DietEncoder::check(o.encoder());
}

DietLanguageModel::Parameters DietLanguageModel::shape(const Options& o) {
  return {.embedding = {}, .encoder = DietEncoder::shape(o.encoder()), .output_bias = {}};
}

DietLanguageModel::Parameters DietLanguageModel::init(const Options& o) {
  return {.embedding = layers::uniform({o.vocab_size, o.embed_dim}, 0.1),
          .encoder = DietEncoder::init(o.encoder()),
          .output_bias = layers::zeros({o.vocab_size})};
}

Tensor DietLanguageModel::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor encoded = DietEncoder::forward(o.encoder(), p.encoder, embedded(p, in), training);
  return at::linear(at::dropout(encoded, o.output_dropout, training), p.embedding, p.output_bias);
}

std::pair<Tensor, DietLanguageModel::State> DietLanguageModel::step(const Options& o, const Parameters& p, const Inputs& in, State&& past) {
  auto [encoded, next] = DietEncoder::step(o.encoder(), p.encoder, embedded(p, in), std::move(past));
  return {at::linear(encoded, p.embedding, p.output_bias), std::move(next)};
}

FOVEATE_MECHANISM(DietLanguageModel)

}  // namespace foveate
