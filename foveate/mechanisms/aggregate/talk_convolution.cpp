#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/dropout.h>
#include <foveate/init.h>
#include <foveate/talk_convolution.h>
#include <foveate/window_sum.h>

namespace foveate {
namespace {

int64_t max_right(const auto& o) { return o.causal ? 0 : o.max_right.value_or(o.max_left); }

void check_windows(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.max_left >= 0, form, ": max_left must not be negative, got ", o.max_left);
  TORCH_CHECK_VALUE(o.max_right.value_or(0) >= 0, form, ": max_right must not be negative, got ", *o.max_right);
  TORCH_CHECK_VALUE(!o.causal || o.max_right.value_or(0) == 0, form, ": max_right must be 0 with causal, got ", *o.max_right);
}

WindowSum::Options window_options(const auto& o) {
  return {.max_left = o.max_left, .max_right = o.max_right, .causal = o.causal, .divisor = o.divisor};
}

/// Zeros where a token [B,N,*] does not count.
Tensor shown(const Tensor& x, const optional<Tensor>& key_mask) { return key_mask ? x * key_mask->to(x.scalar_type()).unsqueeze(-1) : x; }

/// Windows of the last Q tokens of x [B,N,C], from the offsets [B,Q,H] of their ends -> [B,Q,C]
Tensor sum_windows(const WindowSum::Options& o, const Tensor& x, const Tensor& offset_left, const optional<Tensor>& offset_right) {
  const int64_t R = max_right(o);
  const auto type = ops::accumulation_type(x.scalar_type());
  const Tensor left = offset_left.to(type) * o.max_left;
  const auto right = offset_right ? optional(offset_right->to(type) * R) : std::nullopt;
  const double scale = o.divisor == WindowDivisor::maximum ? 1 / static_cast<double>(o.max_left + R + 1) : 1;
  Tensor sums = ops::window_sum(x, left, right, scale);
  if (o.divisor != WindowDivisor::length) return sums;
  const Size N = extent(x, 1), Q = extent(left, 1);
  const Tensor query = at::arange(Q, left.options()).unsqueeze(1);  // [Q,1]
  Tensor length = at::minimum(left, query + (N - Q)) + 1;           // [B,Q,H]
  if (right) length = length + at::minimum(*right, (Q - 1) - query);
  return (sums.unflatten(-1, {plain_extent(left, 2), -1}) / length.unsqueeze(-1)).flatten(2).to(x.scalar_type());
}

struct Windows {
  Tensor out;
  WindowSum::State state;
};

/// The same where more tokens came before; the last `reach` tokens are kept for those to come.
Windows sum_more(const WindowSum::Options& o, const Tensor& x, const Tensor& left, const optional<Tensor>& right, const WindowSum::State& past,
                 int64_t reach) {
  const Tensor all = past.recent.defined() ? at::cat({past.recent, x}, 1) : x;
  const Size N = extent(all, 1), kept = N.min(reach);
  return {.out = sum_windows(o, all, left, right), .state = {.recent = all.narrow_symint(1, N - kept, kept)}};
}

/// How far a window reaches that dropout has stretched; a little more, since what it is stretched by is rounded.
int64_t stretched(int64_t max_left, double offsets_dropout) {
  if (offsets_dropout == 0) return max_left;
  return static_cast<int64_t>(std::ceil(static_cast<double>(max_left) / (1 - offsets_dropout) * (1 + 1e-6)));
}

void check_streams(const char* form, bool causal) { TORCH_CHECK_VALUE(causal, form, "_step: causal must be True for the form to stream, got False"); }

}  // namespace

void WindowSum::check(const Options& o) { check_windows("window_sum", o); }

Tensor WindowSum::forward(const Options& o, const Parameters&, const Inputs& in) {
  TORCH_CHECK_VALUE(in.offset_right.has_value() != o.causal, "window_sum: offset_right is needed unless causal, and only then; got causal ", o.causal,
                    in.offset_right ? " with it" : " without it");
  TORCH_CHECK_VALUE(!in.offset_right || extent(*in.offset_right, 2) == extent(in.offset_left, 2),
                    "window_sum: offset_right must have the heads of offset_left");
  return sum_windows(o, shown(in.x, in.key_mask), in.offset_left, in.offset_right);
}

std::pair<Tensor, WindowSum::State> WindowSum::step(const Options& o, const Parameters&, const Inputs& in, State&& past) {
  check_streams("window_sum", o.causal);
  auto [out, next] = sum_more(o, shown(in.x, in.key_mask), in.offset_left, in.offset_right, past, o.max_left);
  return {std::move(out), std::move(next)};
}

FOVEATE_MECHANISM(WindowSum)

namespace {

/// The ends that tokens choose, as shares of L and of R.
struct Offsets {
  Tensor left;
  optional<Tensor> right;
};
Offsets choose_windows(const TalkConvolution::Options& o, const TalkConvolution::Parameters& p, const Tensor& x, const optional<Tensor>& keep,
                       bool training) {
  const Tensor logits = p.offsets(x);  // [B,N,2H or H]
  const Tensor offsets = layers::dropout(logits.to(ops::accumulation_type(x.scalar_type())).sigmoid(), o.offsets_dropout, keep, training);
  if (o.causal) return {.left = offsets, .right = {}};
  return {.left = offsets.narrow(-1, 0, o.num_heads), .right = offsets.narrow(-1, o.num_heads, o.num_heads)};
}

void check_convolution(const char* form, const auto& o, int64_t width) {
  TORCH_CHECK_VALUE(width > 0 && o.num_heads > 0 && width % o.num_heads == 0, form, ": num_heads must divide the width of the convolution, got ",
                    o.num_heads, " and ", width);
  check_windows(form, o);
  layers::check_dropout(form, "offsets_dropout", o.offsets_dropout);
}

}  // namespace

void TalkConvolution::check(const Options& o) { check_convolution("talk_convolution", o, o.hid_dim); }

TalkConvolution::Parameters TalkConvolution::init(const Options& o) {
  return {.offsets = layers::Linear::init(o.hid_dim, o.causal ? o.num_heads : 2 * o.num_heads)};
}

Tensor TalkConvolution::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor x = shown(in.x, in.key_mask);
  const auto [left, right] = choose_windows(o, p, x, in.offset_keep, training);
  return sum_windows(window_options(o), x, left, right);
}

std::pair<Tensor, TalkConvolution::State> TalkConvolution::step(const Options& o, const Parameters& p, const Inputs& in, State&& past,
                                                                bool training) {
  check_streams("talk_convolution", o.causal);
  const Tensor x = shown(in.x, in.key_mask);
  const auto [left, right] = choose_windows(o, p, x, in.offset_keep, training);
  auto [out, next] = sum_more(window_options(o), x, left, right, past, stretched(o.max_left, o.offsets_dropout));
  return {std::move(out), std::move(next)};
}

FOVEATE_MECHANISM(TalkConvolution)

namespace {

using Layer = TalkConvolutionLayer;

TalkConvolution::Options convolution_options(const Layer::Options& o) {
  return {.hid_dim = o.conv_dim.value_or(o.embed_dim),
          .num_heads = o.num_heads,
          .max_left = o.max_left,
          .max_right = o.max_right,
          .causal = o.causal,
          .divisor = o.divisor,
          .offsets_dropout = o.offsets_dropout};
}

/// The layer around its convolution, a function of what the first projection gives.
template <class Convolve> Tensor around(const Layer::Options& o, const Layer::Parameters& p, const Layer::Inputs& in, bool training,
                                        const Convolve& convolve) {
  TORCH_CHECK_VALUE(in.context.has_value() == o.encoder_attention && p.attention.has_value() == o.encoder_attention,
                    "talk_convolution_layer: context is for encoder_attention, which needs it");
  // A part of the layer with its normalisation, before or after, and its residual.
  const auto part = [&](const Tensor& x, const layers::LayerNorm& norm, const optional<Tensor>& keep, const auto& f) {
    const Tensor sum = x + layers::dropout(f(o.normalize_before ? norm(x) : x), o.dropout, keep, training);
    return o.normalize_before ? sum : norm(sum);
  };
  Tensor x = part(in.x, p.conv_norm, in.conv_keep, [&](const Tensor& given) {
    const Tensor h = p.linear1(layers::dropout(given, o.input_dropout, in.input_keep, training));
    return p.linear2(convolve(shown(o.glu ? at::glu(h, -1) : h, in.key_mask)));
  });
  if (o.encoder_attention) {
    x = part(x, *p.attention_norm, in.attention_keep, [&](const Tensor& given) {
      const auto [q, k, v] = p.attention->project(given, *in.context, o.attention_heads.value_or(o.num_heads));
      const layers::WeightDropout weights(o.attention_dropout, in.attention_seed, training, q);
      return p.attention->join(ops::attention(q, k, v, weights.with({.key_mask = in.context_mask})).out);
    });
  }
  return part(x, p.ffn_norm, in.ffn_keep, [&](const Tensor& given) {
    return p.feed_forward.down(layers::dropout(at::silu(p.feed_forward.up(given)), o.activation_dropout, in.activation_keep, training));
  });
}

}  // namespace

void Layer::check(const Options& o) {
  constexpr auto name = "talk_convolution_layer";
  check_convolution(name, o, o.conv_dim.value_or(o.embed_dim));
  TORCH_CHECK_VALUE(o.ffn_dim > 0, name, ": ffn_dim must be positive, got ", o.ffn_dim);
  TORCH_CHECK_VALUE(o.context_dim.value_or(1) > 0, name, ": context_dim must be positive, got ", *o.context_dim);
  if (o.encoder_attention) layers::check_heads(name, o.embed_dim, o.attention_heads.value_or(o.num_heads));
  layers::check_dropout(name, "input_dropout", o.input_dropout);
  layers::check_dropout(name, "dropout", o.dropout);
  layers::check_dropout(name, "activation_dropout", o.activation_dropout);
  layers::check_dropout(name, "attention_dropout", o.attention_dropout);
}

Layer::Parameters Layer::init(const Options& o) {
  const auto convolution = convolution_options(o);
  const auto linear = [](int64_t in, int64_t out) {
    return layers::Linear{.weight = layers::xavier_uniform({out, in}), .bias = layers::zeros({out})};
  };
  const int64_t E = o.embed_dim, C = convolution.hid_dim, context = o.context_dim.value_or(E);
  Parameters p{.linear1 = linear(E, o.glu ? 2 * C : C),
               .conv = TalkConvolution::init(convolution),
               .linear2 = linear(C, E),
               .conv_norm = layers::LayerNorm::init(E),
               .feed_forward = {.up = linear(E, o.ffn_dim), .down = linear(o.ffn_dim, E)},
               .ffn_norm = layers::LayerNorm::init(E)};
  if (o.encoder_attention) {
    p.attention = layers::Heads{.query = linear(E, E), .key = linear(context, E), .value = linear(context, E), .out = linear(E, E)};
    p.attention_norm = layers::LayerNorm::init(E);
  }
  return p;
}

Tensor Layer::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  return around(o, p, in, training, [&](const Tensor& h) {
    return TalkConvolution::forward(convolution_options(o), p.conv, {.x = h, .offset_keep = in.offset_keep}, training);
  });
}

std::pair<Tensor, Layer::State> Layer::step(const Options& o, const Parameters& p, const Inputs& in, State&& past, bool training) {
  check_streams("talk_convolution_layer", o.causal);
  State next;
  Tensor out = around(o, p, in, training, [&](const Tensor& h) {
    auto [convolved, state] =
        TalkConvolution::step(convolution_options(o), p.conv, {.x = h, .offset_keep = in.offset_keep}, std::move(past), training);
    next = std::move(state);
    return convolved;
  });
  return {std::move(out), std::move(next)};
}

FOVEATE_MECHANISM(TalkConvolutionLayer)

}  // namespace foveate
