#include <foveate/set_transformer_model.h>

namespace foveate {

void SetTransformer::check(const Options& o) {
  detail::check_set_transformer("set_transformer", o);
  TORCH_CHECK_VALUE(o.num_seeds > 0 && o.num_inducing > 0, "set_transformer: num_seeds and num_inducing must be positive, got ", o.num_seeds, " and ",
                    o.num_inducing);
  TORCH_CHECK_VALUE(o.encoder_depth > 0 && o.decoder_depth >= 0,
                    "set_transformer: encoder_depth must be positive, and decoder_depth not negative, got ", o.encoder_depth, " and ",
                    o.decoder_depth);
}

SetTransformer::Parameters SetTransformer::shape(const Options& o) {
  Parameters p;
  p.encoder.resize(static_cast<std::size_t>(o.encoder_depth));
  p.decoder.resize(static_cast<std::size_t>(o.decoder_depth));
  return p;
}

SetTransformer::Parameters SetTransformer::init(const Options& o) {
  Parameters p;
  for (int64_t i = 0; i < o.encoder_depth; ++i) {
    p.encoder.push_back(ISAB::Parameters::init(i == 0 ? o.in_dim : o.dim, o.dim, o.num_inducing, o.layer_norm));
  }
  p.pooling = PMA::Parameters::init(o.dim, o.num_seeds, o.layer_norm);
  for (int64_t i = 0; i < o.decoder_depth; ++i) p.decoder.push_back(SetAttention::init(o.dim, o.dim, o.dim, o.layer_norm));
  p.out = layers::Linear::init(o.dim, o.out_dim);
  return p;
}

Tensor SetTransformer::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const auto how = SetAttention::How::of(o);
  Tensor x = in.x;
  for (const auto& isab : p.encoder) x = isab(x, in.key_mask, how);
  x = p.pooling.mab(p.pooling.seeds, x, in.key_mask, how);  // [B,K,dim]
  for (const auto& sab : p.decoder) x = sab(x, x, std::nullopt, how);
  return p.out(x);
}

FOVEATE_MECHANISM(SetTransformer)

}  // namespace foveate
