#include <foveate/attention_formula.h>
#include <foveate/dropout.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/op.h>
#include <foveate/reformer_model.h>
#include <foveate/reversible.h>

namespace foveate {
namespace {

using Kind = ReformerLayerKind;

/// [N,E]: the row's position beside the column's.
Tensor axial_positions(const Reformer::Parameters& p, const Size& N) {
  const Tensor &rows = *p.row_positions, &columns = *p.column_positions;
  const int64_t n1 = plain_extent(rows, 0), n2 = plain_extent(columns, 1);
  TORCH_CHECK_VALUE(N <= n1 * n2, "reformer: x must have no more tokens than axial_shape has places, ", n1 * n2, ", got ", N);
  const Tensor grid = at::cat({rows.expand_symint({-1, n2, -1}), columns.expand_symint({n1, -1, -1})}, 2);
  return grid.flatten(0, 1).narrow_symint(0, 0, N);
}

/// One call of the primitive foveate::_reformer: the layers between positions and the last normalisation.
struct Stack {
  Tensor x;
  std::vector<Tensor> parameters;  // of every layer 7 of the attention and 6 of the network; those of length 0 are not there
  optional<Tensor> rotations, mask, seed;
  std::vector<int64_t> kinds, num_buckets;
  int64_t num_heads = 1, head_dim = 1, chunk_length = 1, num_hashes = 1, chunks_before = 0, chunks_after = 0;
  int64_t local_chunk_length = 1, local_chunks_before = 0, local_chunks_after = 0, ff_chunk = 0, activation = 0;
  bool causal = false;
  double layer_norm_eps = 0, dropout = 0, lsh_dropout = 0, local_dropout = 0;

  void fields(auto&& f) {
    f("x", x, "sequence");
    f("parameters", parameters, "of the layers");
    f("rotations", rotations, "draws");
    f("mask", mask, "bool");
    f("seed", seed, "int");
    f("kinds", kinds, "of the layers");
    f("num_buckets", num_buckets, "factors");
    f("num_heads", num_heads, "heads");
    f("head_dim", head_dim, "width of a head");
    f("chunk_length", chunk_length, "of LSH layers");
    f("num_hashes", num_hashes, "rounds");
    f("chunks_before", chunks_before, "of LSH layers");
    f("chunks_after", chunks_after, "of LSH layers");
    f("local_chunk_length", local_chunk_length, "of local layers");
    f("local_chunks_before", local_chunks_before, "of local layers");
    f("local_chunks_after", local_chunks_after, "of local layers");
    f("ff_chunk", ff_chunk, "tokens at a time");
    f("activation", activation, "of the networks");
    f("causal", causal, "whether queries see no later keys");
    f("layer_norm_eps", layer_norm_eps, "of the normalisations");
    f("dropout", dropout, "of what is added; 0 unless in training");
    f("lsh_dropout", lsh_dropout, "of weights");
    f("local_dropout", local_dropout, "of weights");
  }
};

constexpr std::size_t of_attention = 7, of_network = 6;

using Given = std::span<const Tensor>;
optional<Tensor> present(const Tensor& t) { return t.dim() == 1 && t.size(0) == 0 ? std::nullopt : optional(t); }

/// The stack's layers as functions that give the same again, whatever they draw: draws depend on the seed, and buckets, once `found`,
/// stay what they were.
class Layers {
 public:
  explicit Layers(const Stack& call) : call_(call) {}

  std::vector<ops::ReversibleLayer> functions() {
    std::vector<ops::ReversibleLayer> layers;
    std::size_t at = 0;
    const auto take = [&](std::size_t count) {
      const auto first = call_.parameters.begin() + static_cast<std::ptrdiff_t>(at);
      at += count;
      return std::vector<Tensor>(first, first + static_cast<std::ptrdiff_t>(count));
    };
    int64_t hashing = 0;
    for (std::size_t l = 0; l < call_.kinds.size(); ++l) {
      const auto index = static_cast<int64_t>(l);
      const int64_t which = static_cast<ReformerLayerKind>(call_.kinds[l]) == ReformerLayerKind::lsh ? hashing++ : -1;
      ops::Sublayer f{.parameters = take(of_attention),
                      .add = [this, index, which](const Tensor& x, Given p) { return attention(index, which, x, p); }};
      ops::Sublayer g{.parameters = take(of_network), .add = [this, index](const Tensor& x, Given p) { return network(index, x, p); }};
      layers.push_back({.f = std::move(f), .g = std::move(g)});
    }
    return layers;
  }

  /// [hashing layers,B,H,R,N]
  Tensor buckets() const {
    if (!found_.empty()) return at::stack(found_);
    return at::zeros({0, call_.x.size(0), call_.num_heads, call_.num_hashes, call_.x.size(1)}, call_.x.options().dtype(at::kLong));
  }
  void find(const Tensor& buckets) { found_ = buckets.unbind(0); }

 private:
  Tensor drop(const Tensor& x, int64_t part) const {
    if (call_.dropout == 0 || !call_.seed) return x;
    const auto whole = x.options().dtype(at::kLong);
    const Tensor row = at::arange(x.size(0) * x.size(1), whole).view({x.size(0), x.size(1), 1}), column = at::arange(x.size(2), whole);
    return layers::dropout(x, call_.dropout, ops::kept_by_seed(row, column, layers::seed_of_part(*call_.seed, part), call_.dropout), true);
  }
  ops::Attention drop_weights(double probability, int64_t part) const {
    if (probability == 0 || !call_.seed) return {};
    return {.dropout = probability, .dropout_seed = layers::seed_of_part(*call_.seed, part)};
  }

  /// p: norm, query_key or none, query and key or none, value, out.
  Tensor attention(int64_t layer, int64_t which, const Tensor& x, Given p) {
    const Tensor y = at::layer_norm(x, {x.size(2)}, p[0], p[1], call_.layer_norm_eps);
    const auto heads = [&](const Tensor& weight) { return split_heads(at::linear(y, weight), call_.num_heads); };
    Tensor read;
    if (which >= 0) {
      const LSHAttention::Options o = ReformerLSHSelfAttention::Options{.chunk_length = call_.chunk_length,
                                                                        .num_hashes = call_.num_hashes,
                                                                        .num_buckets = call_.num_buckets,
                                                                        .chunks_before = call_.chunks_before,
                                                                        .chunks_after = call_.chunks_after,
                                                                        .causal = call_.causal}
                                          .hashed();
      detail::ReformerCall c{
          .qk = heads(p[2]), .v = heads(p[5]), .mask = call_.mask, .queries = x.size(1), .dropout = drop_weights(call_.lsh_dropout, 4 * layer + 2)};
      if (call_.rotations) c.rotations = call_.rotations->select(0, which);
      else if (call_.seed) c.seed = layers::seed_of_part(*call_.seed, 4 * layer + 3);
      const auto place = static_cast<std::size_t>(which);
      if (place >= found_.size()) found_.push_back(detail::reformer_buckets(o, c));
      read = detail::reformer_by_buckets(o, c, found_[place]);
    } else {
      read = detail::reformer_locally({.chunk_length = call_.local_chunk_length,
                                       .chunks_before = call_.local_chunks_before,
                                       .chunks_after = call_.local_chunks_after,
                                       .causal = call_.causal},
                                      heads(p[3]), heads(p[4]), heads(p[5]), call_.mask, drop_weights(call_.local_dropout, 4 * layer + 2));
    }
    return drop(at::linear(merge_heads(read), p[6]), 4 * layer);
  }

  /// p: norm, up, down. A run of tokens at a time: what is inside is wider than x.
  Tensor network(int64_t layer, const Tensor& x, Given p) const {
    const layers::FeedForward f{.up = {.weight = p[2], .bias = present(p[3])}, .down = {.weight = p[4], .bias = present(p[5])}};
    const auto run = [&](const Tensor& part) {
      return f(at::layer_norm(part, {part.size(2)}, p[0], p[1], call_.layer_norm_eps), static_cast<layers::Activation>(call_.activation));
    };
    Tensor y;
    if (call_.ff_chunk == 0) {
      y = run(x);
    } else {
      std::vector<Tensor> parts;
      for (const Tensor& part : x.split(call_.ff_chunk, 1)) parts.push_back(run(part));
      y = at::cat(parts, 1);
    }
    return drop(y, 4 * layer + 1);
  }

  const Stack& call_;
  std::vector<Tensor> found_;
};

using StackResult = std::tuple<Tensor, Tensor, Tensor>;

StackResult stack_formula(const Stack& call) {
  Layers layers(call);
  const auto functions = layers.functions();
  auto [one, two] = ops::run_reversible(functions, {.one = call.x, .two = call.x});
  if (functions.empty()) return {one.clone(), two.clone(), layers.buckets()};
  return {one.contiguous(), two.contiguous(), layers.buckets()};
}

StackResult stack_meta(const Stack& call) {
  const auto& x = call.x;
  const int64_t hashing = std::count(call.kinds.begin(), call.kinds.end(), static_cast<int64_t>(ReformerLayerKind::lsh));
  return {x.new_empty_symint(x.sym_sizes()), x.new_empty_symint(x.sym_sizes()),
          x.new_empty_symint({hashing, extent(x, 0), call.num_heads, call.num_hashes, extent(x, 1)}, x.options().dtype(at::kLong))};
}

ops::Gradients stack_backward(const ops::Backward& call, const Stack& arguments) {
  Layers layers(arguments);
  layers.find(call.results[2]);
  const auto gradient = [&](std::size_t i) { return call.gradients[i].defined() ? call.gradients[i] : at::zeros_like(arguments.x); };
  const auto found =
      ops::reversible_gradients(layers.functions(), {.one = call.results[0], .two = call.results[1]}, {.one = gradient(0), .two = gradient(1)});
  std::vector<Tensor> wanted_ones;
  ops::Wanted wanted(call);
  ops::give(wanted_ones, wanted(arguments.x), arguments.x, [&] { return found.x.one + found.x.two; });
  for (std::size_t i = 0; i < arguments.parameters.size(); ++i) {
    ops::give(wanted_ones, wanted(arguments.parameters[i]), arguments.parameters[i], [&] { return found.parameters[i]; });
  }
  return wanted_ones;
}

FOVEATE_OP(reformer_stack, ops::schema_of<Stack>("_reformer_stack") + " -> (Tensor one, Tensor two, Tensor buckets)",
           {.formula = ops::structured<&stack_formula>(),
            .meta = ops::structured<&stack_meta>(),
            .cpu = ops::structured<&stack_formula>(),
            .cpu_backward = &stack_backward,
            .any_device = true})

/// The parameters of the layers, in the order in which the primitive takes them.
std::vector<Tensor> listed(const std::vector<ReformerLayer>& layers) {
  std::vector<Tensor> all;
  for (const ReformerLayer& layer : layers) {
    TORCH_CHECK_VALUE(layer.query_key || (layer.query && layer.key), "reformer: layers need query_key, or query and key");
    const auto or_none = [&](const optional<Tensor>& t) { return t ? *t : at::empty({0}, layer.value.weight.options()); };
    const auto weight = [&](const optional<layers::Linear>& map) { return or_none(map ? optional(map->weight) : std::nullopt); };
    const auto& [up, down] = layer.network;
    for (const Tensor& t :
         {layer.attention_norm.weight, layer.attention_norm.bias, weight(layer.query_key), weight(layer.query), weight(layer.key), layer.value.weight,
          layer.out.weight, layer.network_norm.weight, layer.network_norm.bias, up.weight, or_none(up.bias), down.weight, or_none(down.bias)}) {
      all.push_back(t);
    }
  }
  return all;
}

}  // namespace

ReformerLSHSelfAttention::Options Reformer::Options::hashed() const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .head_dim = head_dim,
          .chunk_length = chunk_length,
          .num_hashes = num_hashes,
          .num_buckets = num_buckets,
          .chunks_before = chunks_before,
          .chunks_after = chunks_after,
          .causal = causal};
}

ReformerLocalSelfAttention::Options Reformer::Options::local() const {
  return {.embed_dim = embed_dim,
          .num_heads = num_heads,
          .head_dim = head_dim,
          .chunk_length = local_chunk_length.value_or(chunk_length),
          .chunks_before = local_chunks_before.value_or(chunks_before),
          .chunks_after = local_chunks_after.value_or(chunks_after),
          .causal = causal};
}

std::vector<Kind> Reformer::Options::kinds() const { return layers.value_or(std::vector{Kind::local, Kind::lsh}); }

void Reformer::check(const Options& o) {
  ReformerLSHSelfAttention::check(o.hashed());
  ReformerLocalSelfAttention::check(o.local());
  layers::check_dropout("reformer", "dropout", o.dropout);
  layers::check_dropout("reformer", "lsh_dropout", o.lsh_dropout);
  layers::check_dropout("reformer", "local_dropout", o.local_dropout);
  TORCH_CHECK_VALUE(!o.kinds().empty() && o.inner_dim > 0 && o.ff_chunk >= 0,
                    "reformer: layers must name some, inner_dim must be positive and ff_chunk not negative, got ", o.kinds().size(), " layers, ",
                    o.inner_dim, " and ", o.ff_chunk);
  TORCH_CHECK_VALUE(
      o.axial_shape.empty() || (o.axial_shape.size() == 2 && o.axial_dims.size() == 2 && o.axial_dims[0] + o.axial_dims[1] == o.embed_dim),
      "reformer: axial_shape and axial_dims must be two numbers each, axial_dims embed_dim = ", o.embed_dim, " together");
}

Reformer::Parameters Reformer::shape(const Options& o) {
  Parameters p;
  for (const Kind kind : o.kinds()) {
    ReformerLayer layer;
    if (kind == Kind::lsh) layer.query_key = layers::Linear{};
    else layer.query = layer.key = layers::Linear{};
    layer.network.up.bias = Tensor();
    layer.network.down.bias = Tensor();
    p.layers.push_back(std::move(layer));
  }
  return p;
}

Reformer::Parameters Reformer::init(const Options& o) {
  const int64_t E = o.embed_dim, inner = o.num_heads * o.head_dim;
  const auto biased = [](int64_t in, int64_t out) { return layers::Linear{.weight = layers::normal({out, in}, 0.02), .bias = layers::zeros({out})}; };
  Parameters p = shape(o);
  for (auto& layer : p.layers) {
    if (layer.query_key) {
      layer.query_key = detail::reformer_projection(E, inner);
    } else {
      layer.query = detail::reformer_projection(E, inner);
      layer.key = detail::reformer_projection(E, inner);
    }
    layer.attention_norm = layers::LayerNorm::init(E);
    layer.value = detail::reformer_projection(E, inner);
    layer.out = detail::reformer_projection(inner, E);
    layer.network_norm = layers::LayerNorm::init(E);
    layer.network = {.up = biased(E, o.inner_dim), .down = biased(o.inner_dim, E)};
  }
  if (!o.axial_shape.empty()) {
    p.row_positions = layers::normal({o.axial_shape[0], 1, o.axial_dims[0]}, 1);
    p.column_positions = layers::normal({1, o.axial_shape[1], o.axial_dims[1]}, 1);
  }
  p.norm = layers::LayerNorm::init(2 * E);
  return p;
}

Tensor Reformer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const auto local = o.local();
  const auto kinds = o.kinds();
  Stack call{.x = p.row_positions && p.column_positions ? in.x + axial_positions(p, extent(in.x, 1)) : in.x,
             .parameters = listed(p.layers),
             .rotations = in.rotations ? optional(in.rotations->detach()) : std::nullopt,
             .mask = in.mask,
             .seed = in.seed,
             .kinds = {},
             .num_buckets = o.num_buckets,
             .num_heads = o.num_heads,
             .head_dim = o.head_dim,
             .chunk_length = o.chunk_length,
             .num_hashes = o.num_hashes,
             .chunks_before = o.chunks_before,
             .chunks_after = o.chunks_after,
             .local_chunk_length = local.chunk_length,
             .local_chunks_before = local.chunks_before,
             .local_chunks_after = local.chunks_after,
             .ff_chunk = o.ff_chunk,
             .activation = static_cast<int64_t>(o.ff_activation),
             .causal = o.causal,
             .layer_norm_eps = o.layer_norm_eps};
  for (const Kind kind : kinds) call.kinds.push_back(static_cast<int64_t>(kind));
  if (training || in.seed) {
    call.dropout = o.dropout;
    call.lsh_dropout = o.lsh_dropout;
    call.local_dropout = o.local_dropout;
  }
  const bool hashes = !in.rotations && std::find(kinds.begin(), kinds.end(), Kind::lsh) != kinds.end();
  if (!in.seed && (hashes || call.dropout + call.lsh_dropout + call.local_dropout > 0)) call.seed = ops::draw_seed(in.x);
  const auto results = ops::call("foveate::_reformer_stack", std::move(call));
  return p.norm(at::cat({results[0].toTensor(), results[1].toTensor()}, -1), o.layer_norm_eps);
}

FOVEATE_MECHANISM(Reformer)

}  // namespace foveate
