#include <ATen/OpMathType.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/product_key_lookup.h>
#include <foveate/product_key_memory.h>
#include <torch/library.h>

#include <numeric>

namespace foveate {
namespace {

using Lookup = ProductKeyLookup;

Lookup::Options lookup_options(const auto& o) {
  return {.topk = o.topk,
          .flat = o.flat,
          .normalize_query = o.normalize_query,
          .temperature = o.temperature,
          .gate = o.gate,
          .score_subtract = o.score_subtract,
          .score_normalize = o.score_normalize,
          .modulo_size = o.modulo_size,
          .sparse = o.sparse};
}

void check_lookup(const char* form, const Lookup::Options& o) {
  TORCH_CHECK_VALUE(o.topk > 0, form, ": topk must be positive, got ", o.topk);
  TORCH_CHECK_VALUE(o.temperature > 0, form, ": temperature must be positive, got ", o.temperature);
  TORCH_CHECK_VALUE(o.modulo_size.value_or(1) > 0, form, ": modulo_size must be positive, got ", *o.modulo_size);
  TORCH_CHECK_VALUE(!o.score_normalize || o.gate != ScoreGate::softmax || o.score_subtract != ScoreSubtract::none, form,
                    ": score_normalize changes nothing after a softmax without score_subtract");
}

/// Where a divisor is 0, 1.
Tensor divisible(const Tensor& x) { return x.masked_fill(x == 0, 1); }

/// x times its mask, zeros where a token [B,N] does not count.
Tensor counted(const Tensor& x, const optional<Tensor>& mask) { return mask ? x * mask->to(x.scalar_type()).unsqueeze(-1) : x; }

/// Falling scores [T,H,k] to weights.
Tensor weigh(const Lookup::Options& o, const Tensor& scores) {
  const int64_t k = o.topk;
  Tensor w = scores / o.temperature;
  if (o.gate == ScoreGate::softmax) w = w.softmax(-1);
  if (o.gate == ScoreGate::relu) w = w.relu();
  switch (o.score_subtract) {
    case ScoreSubtract::none: break;
    case ScoreSubtract::min: w = w - w.narrow(-1, k - 1, 1); break;
    case ScoreSubtract::mean: w = w - w.mean(-1, true); break;
    case ScoreSubtract::median: w = w - w.narrow(-1, k / 2, 1); break;  // of an even number the lower one
  }
  return o.score_normalize ? w / divisible(w.abs().sum(-1, true)) : w;
}

/// The best slots of queries [T,H,D], by keys [H or 1,2 or 1,n,D/2 or D].
ops::ProductKeys choose(const Lookup::Options& o, const Tensor& q, const Tensor& keys) {
  const auto unit = [&](const Tensor& x) { return o.normalize_query ? x / divisible(x.norm(2, {-1}, /*keepdim=*/true)) : x; };
  if (!o.flat) return ops::product_keys(unit(q.unflatten(-1, {2, plain_extent(keys, 3)})), keys, o.topk);
  const auto type = at::toOpMathType(q.scalar_type());
  const Tensor by_head = at::matmul(unit(q).to(type).transpose(0, 1), keys.squeeze(1).to(type).transpose(-1, -2));  // [H,T,n]
  const auto [scores, slots] = by_head.transpose(0, 1).topk(o.topk, -1);
  return {.scores = scores, .slots = slots};
}

/// What is read, from T = B N tokens.
struct Read {
  Tensor rows;     // [T,Dv], or [T,H Dv] where heads stand side by side
  Tensor indices;  // int [T,H,k]
  Tensor weights;  // [T,H,k]
};

Lookup::Outputs by_token(const Read& read, const Tensor& out, const Tensor& like) {  // like [B,N,*]
  const auto split = [&](const Tensor& x) { return x.unflatten_symint(0, {extent(like, 0), extent(like, 1)}); };
  return {.out = out, .indices = split(read.indices), .scores = split(read.weights.to(like.scalar_type()))};
}

void check_values(const char* form, const Lookup::Options& o, const Tensor& keys, const Tensor& values) {
  const int64_t n = plain_extent(keys, -2), slots = o.modulo_size.value_or(o.flat ? n : n * n);
  TORCH_CHECK_VALUE(o.topk <= n, form, ": topk must not be more than the keys, ", n, ", got ", o.topk);
  TORCH_CHECK_VALUE(extent(values, 0) >= slots, form, ": values must have a row for each of the ", slots, " slots, got ", values.sym_sizes());
}

/// The memory: queries [T,H,D], keys [H or 1,2 or 1,n,*], permutations [H,slots].
Read read_memory(const Lookup::Options& o, const Tensor& q, const Tensor& keys, const Tensor& values, const optional<Tensor>& permutations) {
  const auto [scores, slots] = choose(o, q, keys);
  Tensor index = slots;
  if (permutations) {
    index = permutations->to(at::kLong).unsqueeze(0).expand_symint({extent(q, 0), -1, -1}).gather(2, index);
  }
  if (o.modulo_size) index = index.remainder(*o.modulo_size);
  const Tensor w = weigh(o, scores);
  return {.rows = ops::weighted_rows(values, w.flatten(1), index.flatten(1), o.sparse), .indices = index, .weights = w};
}

}  // namespace

void Lookup::check(const Options& o) { check_lookup("product_key_lookup", o); }

Lookup::Outputs Lookup::forward(const Options& o, const Parameters&, const Inputs& in) {
  const Size D = extent(in.q, 3), H = extent(in.q, 1);
  const auto fits = [&](int64_t d, const Size& one, const Size& other) { return extent(in.keys, d) == one || extent(in.keys, d) == other; };
  TORCH_CHECK_VALUE(fits(0, 1, H) && fits(1, 1, o.flat ? 1 : 2) && extent(in.keys, 3) * (o.flat ? 1 : 2) == D, "product_key_lookup: keys must be ",
                    o.flat ? "[H or 1,1,n,D]" : "[H or 1,2 or 1,n,D/2]", " beside q ", in.q.sym_sizes(), ", got ", in.keys.sym_sizes());
  check_values("product_key_lookup", o, in.keys, in.values);
  const Tensor q = in.q.transpose(1, 2);  // [B,N,H,D]
  const Read read = read_memory(o, q.flatten(0, 1), in.keys, in.values, in.permutations);
  return by_token(read, counted(read.rows.unflatten_symint(0, {extent(q, 0), extent(q, 1)}), in.query_mask), q);
}

FOVEATE_MECHANISM(ProductKeyLookup)

namespace {

/// Batch normalisation of y [T,C], in training by the statistics of the tokens [T] that count.
Tensor normalised(const layers::BatchNorm& norm, const Tensor& y, const optional<Tensor>& mask, bool training) {
  if (!training || !mask) return norm(y, training);
  constexpr double momentum = 0.1, eps = 1e-5;
  const Tensor w = mask->to(y.scalar_type()).unsqueeze(-1), count = w.sum().clamp_min(1);
  const Tensor mean = (y * w).sum(0) / count, centred = y - mean, var = (centred.square() * w).sum(0) / count;
  const Tensor unbiased = var * (count / (count - 1).clamp_min(1));
  norm.running_mean.mul_(1 - momentum).add_(mean.detach() * momentum);
  norm.running_var.mul_(1 - momentum).add_(unbiased.detach() * momentum);
  return centred * (var + eps).rsqrt() * norm.weight + norm.bias;
}

layers::Linear frozen(const layers::Linear& linear) {
  return {.weight = linear.weight.detach(), .bias = linear.bias ? optional(linear.bias->detach()) : std::nullopt};
}

/// x [T,E] -> [T,*]
Tensor query(const ProductKeyMemory::Options& o, const ProductKeyMemory::QueryNet& net, const Tensor& x, const optional<Tensor>& mask,
             bool training) {
  Tensor y = x;
  for (const auto& layer : net.layers) {
    y = (o.query_net_learn ? layer.linear : frozen(layer.linear))(y);
    if (layer.norm) {
      layers::BatchNorm norm = *layer.norm;
      if (!o.query_net_learn) {
        norm.weight = norm.weight.detach();
        norm.bias = norm.bias.detach();
      }
      y = normalised(norm, y, mask, training);
    }
    if (&layer != &net.layers.back()) y = y.relu();
  }
  return y;
}

optional<Tensor> flat_mask(const optional<Tensor>& mask) { return mask ? optional(mask->flatten()) : std::nullopt; }

int64_t slots_of(const ProductKeyMemory::Options& o) { return o.flat ? o.n_keys : o.n_keys * o.n_keys; }

}  // namespace

void ProductKeyMemory::check(const Options& o) {
  constexpr auto who = "product_key_memory";
  check_lookup(who, lookup_options(o));
  const auto positive = [&](const char* name, int64_t value) { TORCH_CHECK_VALUE(value > 0, who, ": ", name, " must be positive, got ", value); };
  positive("input_dim", o.input_dim);
  positive("output_dim", o.output_dim.value_or(1));
  positive("heads", o.heads);
  positive("n_keys", o.n_keys);
  for (const int64_t width : o.query_hidden) positive("query_hidden", width);
  TORCH_CHECK_VALUE(o.key_dim > 0 && o.key_dim % 2 == 0, who, ": key_dim must be even, got ", o.key_dim);
  TORCH_CHECK_VALUE(o.topk <= o.n_keys, who, ": topk must not be more than n_keys, ", o.n_keys, ", got ", o.topk);
  TORCH_CHECK_VALUE(!o.query_identity || o.input_dim == o.key_dim, who, ": query_identity needs input_dim equal to key_dim, ", o.key_dim, ", got ",
                    o.input_dim);
  TORCH_CHECK_VALUE(!o.query_identity || o.different_keys || o.heads == 1, who, ": query_identity needs different_keys, or all heads read alike");
  TORCH_CHECK_VALUE(!o.query_identity || (!o.multi_query_net && o.query_hidden.empty()), who,
                    ": multi_query_net and query_hidden are for a query network, query_identity has none");
  layers::check_dropout(who, "input_dropout", o.input_dropout);
  layers::check_dropout(who, "query_dropout", o.query_dropout);
  layers::check_dropout(who, "value_dropout", o.value_dropout);
}

ProductKeyMemory::Parameters ProductKeyMemory::shape(const Options& o) {
  QueryLayer layer;
  if (o.query_batchnorm) layer.norm.emplace();
  Parameters p;
  if (o.query_identity) return p;
  p.queries.resize(static_cast<std::size_t>(o.multi_query_net ? 2 * o.heads : 1));
  for (auto& net : p.queries) net.layers.resize(o.query_hidden.size() + 1, layer);
  return p;
}

ProductKeyMemory::Parameters ProductKeyMemory::init(const Options& o) {
  Parameters p = shape(o);
  std::vector<int64_t> size{o.n_keys, o.flat ? o.key_dim : o.key_dim / 2};
  if (o.different_keys && !o.flat) size.insert(size.begin(), 2);
  if (o.different_keys) size.insert(size.begin(), o.heads);
  switch (o.keys_init) {
    case KeyInit::uniform: p.keys = layers::uniform(size, 1 / std::sqrt(static_cast<double>(size.back()))); break;
    case KeyInit::gaussian: p.keys = layers::normal(size, 1); break;
    case KeyInit::binary:
      p.keys = at::where(at::rand(size) < 0.5, -1., 1.).to(layers::zeros({0}).options()) / std::sqrt(static_cast<double>(o.key_dim));
      break;
  }
  if (o.keys_normalized) p.keys = p.keys / p.keys.norm(2, {-1}, /*keepdim=*/true);
  const int64_t width = o.output_dim.value_or(o.input_dim), rows = o.modulo_size.value_or(slots_of(o));
  p.values = o.value_zero_init ? layers::zeros({rows, width}) : layers::normal({rows, width}, 1 / std::sqrt(static_cast<double>(width)));
  for (auto& net : p.queries) {
    int64_t in = o.input_dim;
    for (std::size_t i = 0; i < net.layers.size(); ++i) {
      const bool last = i == o.query_hidden.size();
      const int64_t out = !last ? o.query_hidden[i] : o.multi_query_net ? o.key_dim / 2 : o.heads * o.key_dim;
      net.layers[i].linear = layers::Linear::init(in, out);
      if (o.query_batchnorm) net.layers[i].norm = layers::BatchNorm::init(out);
      in = out;
    }
  }
  if (o.shuffle_indices) {
    std::vector<Tensor> orders;
    for (int64_t h = 0; h < o.heads; ++h) orders.push_back(at::randperm(slots_of(o), at::kLong));
    p.drawn.permutations = at::stack(orders);
  }
  return p;
}

ProductKeyMemory::Outputs ProductKeyMemory::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto options = lookup_options(o);
  check_values("product_key_memory", options, p.keys, p.values);
  TORCH_CHECK_VALUE(!o.shuffle_indices || p.drawn.permutations, "product_key_memory: drawn.permutations is needed with shuffle_indices");
  TORCH_CHECK_VALUE(extent(in.x, 2) == o.input_dim, "product_key_memory: x must be [B,N,E] with E = input_dim = ", o.input_dim, ", got ",
                    in.x.sym_sizes());
  const Tensor x = layers::dropout(in.x, o.input_dropout, in.input_keep, training).flatten(0, 1);  // [T,E]
  Tensor q = o.query_identity ? x.unsqueeze(1).expand_symint({-1, o.heads, -1}).flatten(1) : Tensor();
  if (!o.query_identity) {
    std::vector<Tensor> parts;
    for (const auto& net : p.queries) parts.push_back(query(o, net, x, flat_mask(in.query_mask), training));
    q = parts.size() == 1 ? parts[0] : at::cat(parts, 1);
  }
  const auto query_keep = in.query_keep ? optional(in.query_keep->flatten(0, 1)) : std::nullopt;
  q = layers::dropout(q, o.query_dropout, query_keep, training).unflatten(1, {o.heads, o.key_dim});  // [T,H,D]

  Tensor keys = o.keys_learn ? p.keys : p.keys.detach();
  if (!o.different_keys) keys = keys.unsqueeze(0);
  if (!o.different_keys || o.flat) keys = keys.unsqueeze(1);  // [H or 1,2 or 1,n,*]
  const Read read = read_memory(options, q, keys, p.values, o.shuffle_indices ? p.drawn.permutations : std::nullopt);
  const Tensor out = layers::dropout(read.rows.unflatten_symint(0, {extent(in.x, 0), extent(in.x, 1)}), o.value_dropout, in.value_keep, training);
  return by_token(read, counted(out, in.query_mask), in.x);
}

std::pair<ProductKeyMemory::Outputs, None> ProductKeyMemory::step(const Options& o, const Parameters& p, const Inputs& in, State&&, bool training) {
  return {forward(o, p, in, training), {}};
}

FOVEATE_MECHANISM(ProductKeyMemory)

namespace {

/// A soft choice of k of the n scores s [...,n]: exp((s + a + b) / eps), where steps in turn choose a, so that the whole is k, and b, so that
/// none is more than 1.   arXiv 2303.09752
Tensor soft_choice(const Tensor& s, double k) {
  constexpr double eps = 0.1;
  constexpr int steps = 20;
  Tensor a, b = -s;
  for (int i = 0; i < steps; ++i) {
    a = eps * (std::log(k) - ((s + b) / eps).logsumexp(-1, true));
    b = -(s + a).relu();
  }
  return ((s + a + b) / eps).exp();
}

constexpr double chosen_softly = 9. / 8;  // times k

/// The best slots where half scores are changed before the choice. Half queries [T,H,2,d], keys [H,2,n,d], noise [T,H,2,n].
ops::ProductKeys choose_densely(const PKM::Options& o, const Tensor& q, const Tensor& keys, const optional<Tensor>& gumbel) {
  const auto type = at::toOpMathType(q.scalar_type());
  Tensor s = at::matmul(q.to(type).permute({1, 2, 0, 3}), keys.to(type).transpose(-1, -2)).permute({2, 0, 1, 3});  // [T,H,2,n]
  if (gumbel) s = s + o.gumbel_noise_scale * gumbel->to(type);
  if (o.differentiable_topk) {
    const Tensor chosen = soft_choice(s, std::min(chosen_softly * static_cast<double>(o.topk), static_cast<double>(o.num_keys)));
    s = s * (1 + (chosen - chosen.detach()));
  }
  return ops::best_products(s, o.topk);
}

/// -log(-log u), u uniform.
Tensor draw_gumbel(c10::SymIntArrayRef shape, const at::TensorOptions& options) {
  constexpr double tiny = 1e-20;
  const auto log = [](const Tensor& t) { return t.clamp_min(tiny).log(); };
  return -log(-log(at::rand_symint(shape, options)));
}

}  // namespace

void PKM::check(const Options& o) {
  const auto positive = [](const char* name, int64_t value) { TORCH_CHECK_VALUE(value > 0, "pkm: ", name, " must be positive, got ", value); };
  positive("dim", o.dim);
  positive("heads", o.heads);
  positive("num_keys", o.num_keys);
  positive("topk", o.topk);
  positive("dim_head", o.dim_head);
  TORCH_CHECK_VALUE(o.topk <= o.num_keys, "pkm: topk must not be more than num_keys, ", o.num_keys, ", got ", o.topk);
  TORCH_CHECK_VALUE(o.gumbel_noise_scale >= 0, "pkm: gumbel_noise_scale must not be negative, got ", o.gumbel_noise_scale);
  layers::check_dropout("pkm", "input_dropout", o.input_dropout);
  layers::check_dropout("pkm", "query_dropout", o.query_dropout);
  layers::check_dropout("pkm", "value_dropout", o.value_dropout);
  layers::check_dropout("pkm", "attn_dropout", o.attn_dropout);
}

PKM::Parameters PKM::init(const Options& o) {
  const auto normal = [](at::IntArrayRef size) { return layers::normal(size, 1 / std::sqrt(static_cast<double>(size.back()))); };
  Parameters p{.to_queries = layers::Linear::init(o.dim, 2 * o.heads * o.dim_head, /*bias=*/false),
               .keys = normal({o.heads, o.num_keys, 2, o.dim_head}),
               .values = normal({o.num_keys * o.num_keys, o.concat_values_and_combine ? o.dim_head : o.dim})};
  if (o.pre_layernorm) p.pre_norm = layers::LayerNorm::init(o.dim);
  if (o.use_layernorm) p.norm = layers::LayerNorm::init(o.dim_head);
  else p.batch_norm = layers::BatchNorm::init(o.dim_head);
  if (o.concat_values_and_combine) p.combine = layers::Linear::init(o.heads * o.dim_head, o.dim, /*bias=*/false);
  if (o.norm_output) p.output_norm = layers::LayerNorm::init(o.dim);
  return p;
}

PKM::Outputs PKM::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto present = [](const char* name, const char* option, bool there, bool wanted) {
    TORCH_CHECK_VALUE(there || !wanted, "pkm: ", name, " is needed by ", option);
  };
  present("pre_norm", "pre_layernorm", p.pre_norm.has_value(), o.pre_layernorm);
  present("norm", "use_layernorm", p.norm.has_value(), o.use_layernorm);
  present("batch_norm", "use_layernorm = False", p.batch_norm.has_value(), !o.use_layernorm);
  present("combine", "concat_values_and_combine", p.combine.has_value(), o.concat_values_and_combine);
  present("output_norm", "norm_output", p.output_norm.has_value(), o.norm_output);
  TORCH_CHECK_VALUE(extent(p.values, 0) >= o.num_keys * o.num_keys, "pkm: values must have a row for each of the ", o.num_keys * o.num_keys,
                    " slots, got ", p.values.sym_sizes());
  const Size B = extent(in.x, 0), N = extent(in.x, 1);
  Tensor x = o.pre_layernorm ? (*p.pre_norm)(in.x) : in.x;
  x = layers::dropout(x, o.input_dropout, in.input_keep, training);
  Tensor q = p.to_queries(x).unflatten(-1, {2, o.heads, o.dim_head});  // [B,N,2,H,d]
  if (o.use_layernorm) {
    q = (*p.norm)(q);
  } else {
    const auto rows = in.query_mask ? optional(in.query_mask->unsqueeze(2).expand_symint({-1, -1, 2 * o.heads}).flatten()) : std::nullopt;
    q = normalised(*p.batch_norm, q.flatten(0, 3), rows, training).reshape_symint(q.sym_sizes());
  }
  q = layers::dropout(q.flatten(2), o.query_dropout, in.query_keep, training).unflatten(-1, {2, o.heads, o.dim_head});
  q = q.flatten(0, 1).transpose(1, 2);         // [T,H,2,d]
  const Tensor keys = p.keys.transpose(1, 2);  // [H,2,n,d]

  optional<Tensor> gumbel = in.gumbel;
  if (!gumbel && o.gumbel_noise_scale > 0) gumbel = draw_gumbel({B, N, o.heads, 2, o.num_keys}, q.options());
  if (gumbel) gumbel = gumbel->flatten(0, 1);
  const auto [scores, slots] = gumbel || o.differentiable_topk ? choose_densely(o, q, keys, gumbel) : ops::product_keys(q, keys, o.topk);
  const Tensor gates = o.non_competitive_gates ? scores.relu() : scores.softmax(-1);
  const auto weight_keep = in.weight_keep ? optional(in.weight_keep->flatten(0, 1)) : std::nullopt;
  const Tensor w = layers::dropout(gates, o.attn_dropout, weight_keep, training);  // [T,H,k]

  // Heads are summed in one reading; side by side, each reads by itself.
  const int64_t before = o.concat_values_and_combine ? 0 : 1;
  const auto rows = [&](const Tensor& values, const Tensor& weights) {
    return ops::weighted_rows(values, weights.flatten(before, before + 1), slots.flatten(before, before + 1), o.sparse);
  };
  Tensor out;
  if (in.trainable_slots) {
    const Tensor trained = in.trainable_slots->index_select(0, slots.flatten()).view_symint(slots.sym_sizes()).to(w.scalar_type());
    out = rows(p.values, w * trained) + rows(p.values.detach(), w * (1 - trained));
  } else {
    out = rows(p.values, w);
  }
  if (o.concat_values_and_combine) out = (*p.combine)(out.unflatten_symint(0, {B * N, Size(o.heads)}).flatten(1));
  out = layers::dropout(out.unflatten_symint(0, {B, N}), o.value_dropout, in.value_keep, training);
  if (o.norm_output) out = (*p.output_norm)(out);
  return by_token({.rows = {}, .indices = slots, .weights = w}, counted(out, in.query_mask), in.x);
}

std::pair<PKM::Outputs, None> PKM::step(const Options& o, const Parameters& p, const Inputs& in, State&&, bool training) {
  return {forward(o, p, in, training), {}};
}

FOVEATE_MECHANISM(PKM)

ProductKeyUsage product_key_usage(const Tensor& indices, const optional<Tensor>& weights, int64_t slots) {
  TORCH_CHECK_VALUE(slots > 0, "product_key_usage: slots must be positive, got ", slots);
  TORCH_CHECK_TYPE(at::isIntegralType(indices.scalar_type(), /*includeBool=*/false), "product_key_usage: indices must be an integer tensor, got ",
                   indices.scalar_type());
  TORCH_CHECK_VALUE(!weights || weights->sym_sizes() == indices.sym_sizes(), "product_key_usage: weights must be of the shape of indices, ",
                    indices.sym_sizes(), ", got ", weights->sym_sizes());
  const Tensor index = indices.detach().flatten().to(at::kLong);
  const auto counted_as = index.options().dtype(at::kDouble);
  const Tensor ones = at::ones_like(index, counted_as);
  const auto mass = [&](const Tensor& by) { return at::zeros({slots}, counted_as).scatter_add(0, index, by); };
  const Tensor reads = mass(ones), sums = weights ? mass(weights->detach().flatten().to(at::kDouble).abs()) : reads;
  const Tensor p = sums / divisible(sums.sum());
  const auto S = static_cast<double>(slots);
  const Tensor rising = std::get<0>(p.sort()).cumsum(0), falling = std::get<0>(p.sort(0, /*descending=*/true)).cumsum(0);
  constexpr double rounding = 1e-9;
  const Tensor shares = at::tensor({0.5, 0.9, 0.99}, counted_as) - rounding;
  return {.used = (reads > 0).to(at::kDouble).mean(),
          .kl = std::log(S) + (p * divisible(p).log()).sum(),
          .gini = 1 + 1 / S - 2 * rising.mean(),
          .holding = (at::searchsorted(falling, shares) + 1).clamp_max(slots)};
}

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("product_key_usage(Tensor indices, Tensor? weights, int slots) -> (Tensor used, Tensor kl, Tensor gini, Tensor holding)",
        [](const Tensor& indices, const optional<Tensor>& weights, int64_t slots) {
          auto usage = product_key_usage(indices, weights, slots);
          return std::tuple(std::move(usage.used), std::move(usage.kl), std::move(usage.gini), std::move(usage.holding));
        });
}

}  // namespace foveate
