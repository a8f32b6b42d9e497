#include <foveate/dropout.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/longformer.h>
#include <foveate/merge_attention.h>
#include <foveate/sparse_attention.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>

namespace foveate {
namespace {

using patterns::Pattern;

/// W of every head.
template <class Options> Pattern local_set(const Options& o, const Tensor& q) {
  if (o.window_kind != LongformerWindow::sliding) return patterns::block_window(o.window, o.window, o.causal ? 0 : o.window);
  const auto window = [&](int64_t dilation) { return patterns::dilated(o.window, o.causal ? 0 : o.window, dilation); };
  if (std::all_of(o.dilation.begin(), o.dilation.end(), [&](int64_t d) { return d == o.dilation[0]; })) return window(o.dilation[0]);
  const auto heads = static_cast<int64_t>(o.dilation.size());
  TORCH_CHECK_VALUE(plain_extent(q, 1) == heads, "longformer: dilation must be one number or one for each of ", plain_extent(q, 1), " heads, got ",
                    heads);
  Pattern all = patterns::heads(0, heads) & window(o.dilation[0]);
  for (int64_t h = 1; h < heads; ++h) all = all | (patterns::heads(h, heads) & window(o.dilation[static_cast<std::size_t>(h)]));
  return all;
}

template <class Options> Pattern causally(const Options& o, const Pattern& pattern) { return o.causal ? pattern & patterns::causal() : pattern; }

/// What the released code adds to windows of chunks: token i of the first chunk also sees i keys of zeros before the sequence, one of
/// the last chunk as many behind it as real ones follow it. Their scores and values are 0.
ops::Attended with_empty_keys(const ops::Attended& seen, int64_t window) {
  const Tensor i = at::arange(extent(seen.lse, 2), seen.lse.options()), chunk = i.div(window, "floor");
  const Tensor before = i * (chunk == 0), behind = i.flip(0) * (chunk == chunk.slice(0, -1));
  return ops::merge_attention(std::array{seen, ops::Attended{.out = at::zeros_like(seen.out), .lse = (before + behind).log().expand_as(seen.lse)}});
}

/// How global tokens ask. Nothing is computed before it is known which they are.
struct GlobalSide {
  Tensor source;                                                  // [B,H or 1,N,*]: their queries are made from its rows
  std::function<Tensor(const Tensor&)> queries;                   // of rows of it: [B,H,g,D]
  std::function<std::pair<Tensor, Tensor>()> keys_and_values;     // of all tokens: [B,H,N,D], [B,H,N,Dv]
  std::function<Tensor(const Tensor&, ops::Attention)> few = {};  // attention of a few such queries, without keys and values

  Tensor attend(const Tensor& rows, const ops::Attention& call, bool is_few = false) const {
    const Tensor q = queries(rows);
    if (is_few) return few(q, call);
    const auto [k, v] = keys_and_values();
    return ops::attention(q, k, v, call).out;
  }
};

/// Attention to keys W x_j + b with values V x_j + c, of queries [B,H,g,D] so few that to move them among the x costs less than to make
/// keys and values of all of them:  q.(W x_j + b) = (q W).x_j + q.b,  sum_j p_j (V x_j + c) = V sum_j p_j x_j + c.
Tensor attend_unprojected(const Tensor& q, const Tensor& x, const layers::Linear& key, const layers::Linear& value, ops::Attention call) {
  const auto by_head = [&](const Tensor& w) { return w.unflatten(0, {plain_extent(q, 1), -1}); };  // [E,...] -> [H,D,...]
  call.scale = default_scale(q);
  call.bias = at::matmul(q, by_head(*key.bias).unsqueeze(-1)) * *call.scale;  // [B,H,g,1]
  const Tensor inputs = x.unsqueeze(1);                                       // [B,1,N,E]
  const auto [mean, lse] = ops::attention(at::matmul(q, by_head(key.weight)), inputs, inputs, call);
  const Tensor sees = (lse > -std::numeric_limits<double>::infinity()).unsqueeze(-1).to(q.scalar_type());
  return at::matmul(mean, by_head(value.weight).transpose(1, 2)) + by_head(*value.bias).unsqueeze(1) * sees;
}

/// The first global tokens of each sequence: where they stand, and whether there are so many.
struct Chosen {
  Tensor place;  // [B,g]
  Tensor taken;  // bool [B,g]

  Chosen(const Tensor& globals, int64_t room) {
    place = globals.to(at::kChar).argsort(/*stable=*/true, 1, /*descending=*/true).slice(1, 0, room);
    taken = globals.gather(1, place);
  }
  /// [B,*,N,D] -> [B,*,g,D]
  Tensor of(const Tensor& x) const { return x.gather(2, index(x)); }
  Tensor put(const Tensor& x, const Tensor& rows) const { return x.scatter(2, index(x), at::where(taken.unsqueeze(1).unsqueeze(-1), rows, of(x))); }
  /// bool [B,N]: those chosen
  Tensor mask(const Tensor& globals) const { return at::zeros_like(globals).scatter(1, place, taken); }

 private:
  Tensor index(const Tensor& x) const { return place.unsqueeze(1).unsqueeze(-1).expand_symint({-1, extent(x, 1), -1, extent(x, 3)}); }
};

template <class Options> struct Longformer {
  const Options& o;
  Tensor q, k, v;
  optional<Tensor> real;
  std::function<GlobalSide()> global;
  layers::WeightDropout dropout;
  optional<double> scale = {};

  /// No token is global.
  Tensor local() const { return local(q, causally(o, local_set(o, q)), real).out; }

  /// The first tokens are: rows and columns of their own, at places that are known.
  Tensor prefixed() const {
    const int64_t g = o.global_tokens;
    const auto side = global();
    const Tensor rows = side.attend(side.source.slice(2, 0, g), dropout.with({.key_mask = real, .causal = o.causal, .scale = scale, .offset = 0}, 1),
                                    are_few(side, g));
    return at::cat({rows, local(q.slice(2, g), causally(o, local_set(o, q) | patterns::keys(0, g)), real).out}, 2);
  }

  /// Those of a mask [B,N] are. Windows and global keys are attended apart and joined; the windows pass over global keys, so that none
  /// counts twice.
  Tensor marked(const Tensor& mask) const {
    Tensor globals = real ? mask & *real : mask;
    optional<Chosen> chosen;
    if (o.max_globals) {
      chosen = Chosen(globals, *o.max_globals);
      globals = chosen->mask(globals);
    }
    const Tensor others = globals.logical_not();
    const auto near = local(q, causally(o, local_set(o, q)), real ? others & *real : others);
    // Where causal, the tokens chosen stand between those they see and those that see them.
    const Tensor i = at::arange(extent(q, 2), globals.options().dtype(at::kLong));
    optional<Tensor> seen, sees;
    if (chosen && o.causal) {
      seen = (chosen->place.unsqueeze(1) <= i.unsqueeze(1)).unsqueeze(1);  // [B,1,N,g]
      sees = (i <= chosen->place.unsqueeze(2)).unsqueeze(1);               // [B,1,g,N]
    }
    const auto far = chosen
                         ? ops::attention(q, chosen->of(k), chosen->of(v), dropout.with({.mask = seen, .key_mask = chosen->taken, .scale = scale}, 2))
                         : ops::attention(q, k, v, dropout.with({.key_mask = globals, .causal = o.causal, .scale = scale}, 2));
    const Tensor out = ops::merge_attention(std::array{near, far}).out;
    const auto side = global();
    const Tensor rows = side.attend(
        chosen ? chosen->of(side.source) : side.source,
        dropout.with(
            {.mask = sees, .key_mask = real, .causal = o.causal && !chosen, .scale = scale, .query_mask = chosen ? std::nullopt : optional(globals)},
            1),
        chosen && are_few(side, *o.max_globals));
    return chosen ? chosen->put(out, rows) : at::where(globals.unsqueeze(1).unsqueeze(-1), rows, out);
  }

  /// Zeros for tokens that take no part.
  Tensor operator()(const optional<Tensor>& global_mask) const {
    TORCH_CHECK_VALUE(!global_mask || o.global_tokens == 0, "longformer: global_mask and global_tokens exclude each other");
    const Tensor out = o.global_tokens > 0 ? prefixed() : global_mask ? marked(*global_mask) : local();
    return real ? out.masked_fill(real->logical_not().unsqueeze(1).unsqueeze(-1), 0) : out;
  }

  /// Later tokens, after those of the state.
  std::pair<Tensor, LongformerAttention::State> stream(const LongformerAttention::State& past, const optional<Tensor>& global_mask) const {
    TORCH_CHECK_VALUE(o.causal, "longformer_step: causal must be True for the form to stream, got False");
    TORCH_CHECK_VALUE(!global_mask, "longformer_step: global_mask is not given step by step; global_tokens names first tokens");
    TORCH_CHECK_VALUE(o.window_kind == LongformerWindow::sliding, "longformer_step: window_kind must be sliding");
    const int64_t g = o.global_tokens, reach = o.window * *std::max_element(o.dilation.begin(), o.dilation.end());
    const auto joined = [](const Tensor& before, const Tensor& x) { return before.defined() ? at::cat({before, x}, 2) : x; };
    // Of tokens M behind the global ones, those that later windows reach.
    const auto kept = [&](const Tensor& x, int64_t dim) {
      return at::cat({x.slice(dim, 0, g), reach > 0 ? x.slice(dim, g).slice(dim, -reach) : x.slice(dim, 0, 0)}, dim);
    };
    const Size had = past.k.defined() ? extent(past.k, 2) : Size(0), fresh = extent(q, 2);
    const Tensor keys = joined(past.k, k), values = joined(past.v, v);
    optional<Tensor> visible = real;
    if (real) {  // of all tokens: the global ones and the latest
      const Size rest = extent(keys, 2) - g;
      if (rest > 0) visible = at::cat({real->slice(1, 0, g), real->slice_symint(1, extent(*real, 1) - rest)}, 1);
    }
    const Pattern seen = causally(o, g > 0 ? local_set(o, q) | patterns::keys(0, g) : local_set(o, q));
    Tensor out = ops::sparse_attention(q, keys, values, seen, {.key_mask = visible, .scale = scale}).out;
    LongformerAttention::State next{.k = kept(keys, 2), .v = kept(values, 2), .globals = past.globals};
    if (g > 0 && had < g) {  // the first of the new tokens are global
      const auto side = global();
      const auto [global_k, global_v] = side.keys_and_values();
      const Size count = std::min<Size>(g - had, fresh);
      const auto first = [&](const Tensor& x) { return x.slice_symint(2, 0, count); };
      const bool starts = past.globals.empty();
      next.globals = {joined(starts ? Tensor() : past.globals[0], first(global_k)), joined(starts ? Tensor() : past.globals[1], first(global_v))};
      const auto mask = real ? optional<Tensor>(real->slice_symint(1, 0, had + count)) : std::nullopt;
      const Tensor rows =
          ops::attention(side.queries(first(side.source)), next.globals[0], next.globals[1], {.key_mask = mask, .causal = true, .scale = scale}).out;
      out = at::cat({rows, out.slice_symint(2, count)}, 2);
    }
    if (real) out = out.masked_fill(real->slice_symint(1, extent(*real, 1) - fresh).logical_not().unsqueeze(1).unsqueeze(-1), 0);
    return {std::move(out), std::move(next)};
  }

 private:
  /// Whether `count` global tokens are so few. Where weights are dropped, they do not sum to 1.
  bool are_few(const GlobalSide& side, int64_t count) const {
    return side.few && !dropout.seed() && 2 * count * plain_extent(q, 1) <= plain_extent(side.source, 3);
  }
  ops::Attended local(const Tensor& queries, const Pattern& seen, const optional<Tensor>& keys) const {
    const auto attended = ops::sparse_attention(queries, k, v, seen, dropout.with({.key_mask = keys, .scale = scale}));
    return o.window_kind == LongformerWindow::chunks_as_released ? with_empty_keys(attended, o.window) : attended;
  }
};

template <class Options> void check_longformer(const char* form, const Options& o) {
  layers::check_dropout(form, "dropout", o.dropout);
  TORCH_CHECK_VALUE(o.window >= 0, form, ": window must not be negative, got ", o.window);
  TORCH_CHECK_VALUE(!o.dilation.empty() && std::all_of(o.dilation.begin(), o.dilation.end(), [](int64_t d) { return d > 0; }), form,
                    ": dilation must be positive, one number or one for each head, got ", c10::IntArrayRef(o.dilation));
  TORCH_CHECK_VALUE(o.window_kind == LongformerWindow::sliding || (o.window > 0 && o.dilation == std::vector<int64_t>{1}), form,
                    ": window_kind chunks needs a positive window and dilation 1");
  TORCH_CHECK_VALUE(o.window_kind != LongformerWindow::chunks_as_released || (!o.causal && o.global_tokens == 0), form,
                    ": window_kind chunks_as_released is neither causal nor has global_tokens");
  TORCH_CHECK_VALUE(o.global_tokens >= 0, form, ": global_tokens must not be negative, got ", o.global_tokens);
  TORCH_CHECK_VALUE(!o.max_globals || *o.max_globals > 0, form, ": max_globals must be positive, got ", o.max_globals.value_or(0));
}

Longformer<LongformerAttention::Options> of_inputs(const LongformerAttention::Options& o, const LongformerAttention::Inputs& in) {
  const auto global = [&in] {
    return GlobalSide{.source = in.q_global.value_or(in.q),
                      .queries = [](const Tensor& x) { return x; },
                      .keys_and_values = [&in] { return std::pair(in.k_global.value_or(in.k), in.v_global.value_or(in.v)); }};
  };
  return {.o = o,
          .q = in.q,
          .k = in.k,
          .v = in.v,
          .real = in.key_mask,
          .global = global,
          .dropout = {o.dropout, in.dropout_seed, false, in.q},
          .scale = o.scale};
}

Longformer<LongformerSelfAttention::Options> of_layer(const LongformerSelfAttention::Options& o, const LongformerSelfAttention::Parameters& p,
                                                      const LongformerSelfAttention::Inputs& in, bool training = false) {
  const auto heads = [&o](const Tensor& x) { return split_heads(x, o.num_heads); };
  const auto global = [&p, &in, heads] {
    return GlobalSide{
        .source = in.x.unsqueeze(1),
        .queries = [&p, heads](const Tensor& x) { return heads(p.query_global(x.squeeze(1))); },
        .keys_and_values = [&p, &in, heads] { return std::pair(heads(p.key_global(in.x)), heads(p.value_global(in.x))); },
        .few = [&p, &in](const Tensor& q, const ops::Attention& call) { return attend_unprojected(q, in.x, p.key_global, p.value_global, call); }};
  };
  return {.o = o,
          .q = heads(p.query(in.x)),
          .k = heads(p.key(in.x)),
          .v = heads(p.value(in.x)),
          .real = in.key_mask,
          .global = global,
          .dropout = {o.dropout, in.dropout_seed, training, in.x}};
}

}  // namespace

void LongformerAttention::check(const Options& o) { check_longformer("longformer_attention", o); }

Tensor LongformerAttention::forward(const Options& o, const Parameters&, const Inputs& in) { return of_inputs(o, in)(in.global_mask); }

std::pair<Tensor, LongformerAttention::State> LongformerAttention::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  return of_inputs(o, in).stream(past, in.global_mask);
}

FOVEATE_MECHANISM(LongformerAttention)

// --- the layer ---------------------------------------------------------------------------------------------------------------

void LongformerSelfAttention::check(const Options& o) {
  check_longformer("longformer_self_attention", o);
  layers::check_heads("longformer_self_attention", o.embed_dim, o.num_heads);
}

LongformerSelfAttention::Parameters LongformerSelfAttention::init(const Options& o) {
  const auto projection = [&] {  // as BERT draws them
    return layers::Linear{.weight = layers::normal({o.embed_dim, o.embed_dim}, 0.02), .bias = layers::zeros({o.embed_dim})};
  };
  const auto copy = [](const layers::Linear& x) { return layers::Linear{.weight = x.weight.clone(), .bias = x.bias->clone()}; };
  Parameters p{
      .query = projection(), .key = projection(), .value = projection(), .query_global = {}, .key_global = {}, .value_global = {}, .output = {}};
  p.query_global = copy(p.query);  // as the authors start from a pretrained model
  p.key_global = copy(p.key);
  p.value_global = copy(p.value);
  if (o.output_projection) p.output = projection();
  return p;
}

Tensor LongformerSelfAttention::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor out = merge_heads(of_layer(o, p, in, training)(in.global_mask));
  return p.output ? (*p.output)(out) : out;
}

std::pair<Tensor, LongformerSelfAttention::State> LongformerSelfAttention::step(const Options& o, const Parameters& p, const Inputs& in,
                                                                                State&& past) {
  auto [attended, next] = of_layer(o, p, in).stream(past, in.global_mask);
  const Tensor out = merge_heads(attended);
  return {p.output ? (*p.output)(out) : out, std::move(next)};
}

FOVEATE_MECHANISM(LongformerSelfAttention)

// --- by blocks ---------------------------------------------------------------------------------------------------------------

void LongformerBlockAttention::check(const Options& o) {
  const auto need = [](bool holds, const char* what) { TORCH_CHECK_VALUE(holds, "longformer_block_attention: ", what); };
  need(o.block > 0 && o.num_sliding_window_blocks > 0, "block and num_sliding_window_blocks must be positive");
  need(o.global_block_end_indices.empty() || o.global_block_end_indices.size() == o.global_block_indices.size(),
       "global_block_end_indices must be as many as global_block_indices");
  for (std::size_t g = 0; g < o.global_block_indices.size(); ++g) {
    need(o.global_block_indices[g] >= 0, "global_block_indices must not be negative");
    need(o.global_block_end_indices.empty() || o.global_block_indices[g] < o.global_block_end_indices[g],
         "global_block_end_indices must lie behind global_block_indices");
  }
}

LongformerBlockAttention::Outputs LongformerBlockAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const int64_t half = o.num_sliding_window_blocks / 2;
  Pattern pattern = patterns::block_window(o.block, o.block * half, o.block * half);
  for (std::size_t g = 0; g < o.global_block_indices.size(); ++g) {
    const int64_t first = o.global_block_indices[g], end = o.global_block_end_indices.empty() ? first + 1 : o.global_block_end_indices[g];
    pattern = pattern | patterns::queries(first * o.block, end * o.block) | patterns::keys(first * o.block, end * o.block);
  }
  if (o.attention == LongformerDirection::unidirectional) pattern = pattern & patterns::block_window(o.block, int64_t{1} << 30, 0);
  const Tensor layout = patterns::to_blocks(pattern, plain_extent(in.q, 1), extent(in.k, 2), o.block, in.q.device());
  return {.out = ops::sparse_attention(in.q, in.k, in.v, causally(o, pattern), {.mask = in.mask, .key_mask = in.key_mask, .scale = o.scale}).out,
          .layout = layout};
}

std::pair<LongformerBlockAttention::Outputs, LongformerBlockAttention::State> LongformerBlockAttention::step(const Options& o, const Parameters& p,
                                                                                                             const Inputs& in, State&& past) {
  return layers::step_with_cache<LongformerBlockAttention>("longformer_block_attention", o, p, in, past);
}

FOVEATE_MECHANISM(LongformerBlockAttention)

}  // namespace foveate
