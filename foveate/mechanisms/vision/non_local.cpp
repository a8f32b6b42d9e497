#include <foveate/attention.h>
#include <foveate/attention_formula.h>
#include <foveate/init.h>
#include <foveate/non_local.h>

namespace foveate {
namespace {

// Below, q [...,N,D], k [...,M,D], v [...,M,Dv], with or without heads.

/// M, at least 1, as a tensor: lengths may be symbolic.
Tensor count(const Tensor& k) { return length_of(k, -2).clamp_min(1); }

Tensor softmax(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  if (q.dim() == 4) return ops::attention(q, k, v, {.scale = scale}).out;
  return ops::attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), {.scale = scale}).out.squeeze(1);
}

/// y_i = 1/M sum_j (q_i.k_j scale) v_j. Associative: whichever order costs less.
Tensor dot_product(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  const auto N = extent(q, -2).maybe_as_int(), M = extent(k, -2).maybe_as_int(), D = extent(q, -1).maybe_as_int();
  const bool map_first = N && M && D && *N * *M < *D * (*N + *M);  // a length that is not known yet counts as long
  const Tensor share = q * (scale / count(k)), keys = k.transpose(-1, -2);
  return map_first ? at::matmul(at::matmul(share, keys), v) : at::matmul(share, at::matmul(keys, v));
}

/// y_i = 1/M sum_j relu(a_i + b_j) v_j with a_i = w_a.q_i, b_j = w_b.k_j.
/// The keys that count for a query are those with b_j > -a_i: in the order of b, a tail. So sums over every tail are enough,
///   y_i M = a_i sum_tail v_j + sum_tail b_j v_j,
/// and no map of pairs is made.
Tensor concatenation(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& pair_weight, const optional<Tensor>& pair_bias) {
  const auto type = ops::accumulation_type(q.scalar_type());
  const auto weights = pair_weight.flatten().to(type).chunk(2);
  const Tensor a = at::matmul(q.to(type), weights[0]);  // [...,N]
  Tensor b = at::matmul(k.to(type), weights[1]);        // [...,M]
  if (pair_bias) b = b + pair_bias->to(type);

  const auto [rising, order] = b.sort(-1);
  const Tensor values = v.to(type).gather(-2, order.unsqueeze(-1).expand_symint(v.sym_sizes()));  // [...,M,Dv]
  const Tensor terms = at::cat({values, rising.unsqueeze(-1) * values}, -1);                      // [...,M,2Dv]
  const Tensor tails = at::constant_pad_nd(terms.flip(-2).cumsum(-2).flip(-2), {0, 0, 0, 1});     // [...,M+1,2Dv]; the last is empty
  const Tensor start = at::searchsorted(rising.detach().contiguous(), -a.detach().contiguous(), /*out_int32=*/false, /*right=*/true);
  auto shape = a.sym_sizes().vec();
  shape.push_back(extent(tails, -1));
  const auto sums = tails.gather(-2, start.unsqueeze(-1).expand_symint(shape)).chunk(2, -1);  // of v_j and of b_j v_j
  return ((a.unsqueeze(-1) * sums[0] + sums[1]) / count(k.to(type))).to(q.scalar_type());
}

Tensor attend(NonLocalMode mode, const Tensor& q, const Tensor& k, const Tensor& v, double scale, const optional<Tensor>& pair_weight,
              const optional<Tensor>& pair_bias) {
  switch (mode) {
    case NonLocalMode::embedded_gaussian:
    case NonLocalMode::gaussian: return softmax(q, k, v, scale);
    case NonLocalMode::dot_product: return dot_product(q, k, v, scale);
    case NonLocalMode::concatenation: return concatenation(q, k, v, *pair_weight, pair_bias);
  }
  TORCH_CHECK(false, "unreachable");
}

/// Maxima over windows of two along every axis of the map but time; an odd edge is dropped.
Tensor halve(const Tensor& x) {
  switch (x.dim() - 2) {
    case 1: return at::max_pool2d(x.unsqueeze(2), {1, 2}).squeeze(2);  // max_pool1d refuses symbolic lengths
    case 2: return at::max_pool2d(x, {2, 2});
    default: return at::max_pool3d(x, {1, 2, 2});
  }
}

/// [B,C,*S] -> [B,N,C], a view
Tensor positions(const Tensor& map) { return map.flatten(2).transpose(1, 2); }

}  // namespace

Tensor NonLocalAttention::forward(const Options& o, const Parameters&, const Inputs& in) {
  const bool pairs = o.mode == NonLocalMode::concatenation;
  TORCH_CHECK_VALUE(pairs == in.pair_weight.has_value(), "non_local_attention: pair_weight is for the mode concatenation, which needs it; got mode ",
                    names<NonLocalMode>[static_cast<std::size_t>(o.mode)], pairs ? " without it" : " with it");
  TORCH_CHECK_VALUE(!pairs || extent(*in.pair_weight, 0) == 2 * extent(in.q, 3),
                    "non_local_attention: pair_weight must be [2D] with D = ", extent(in.q, 3), " as in q, got ", in.pair_weight->sym_sizes());
  return attend(o.mode, in.q, in.k, in.v, o.scale, in.pair_weight, {});
}

FOVEATE_MECHANISM(NonLocalAttention)

void NonLocalBlock::check(const Options& o) {
  TORCH_CHECK_VALUE(o.in_channels > 0, "non_local_block: in_channels must be positive, got ", o.in_channels);
  TORCH_CHECK_VALUE(!o.inter_channels || *o.inter_channels > 0, "non_local_block: inter_channels must be positive, got ", *o.inter_channels);
  TORCH_CHECK_VALUE(o.dimension >= 1 && o.dimension <= 3, "non_local_block: dimension must be 1, 2 or 3, got ", o.dimension);
}

NonLocalBlock::Parameters NonLocalBlock::init(const Options& o) {
  const auto pointwise = [&](int64_t in, int64_t out, int64_t axes, bool bias = true) {
    auto made = layers::Convolution::init(in, out, std::vector<int64_t>(static_cast<std::size_t>(axes), 1), bias);
    if (o.weight_std) {
      made.weight = layers::normal(made.weight.sizes(), *o.weight_std);
      if (bias) made.bias = layers::zeros({out});
    }
    return made;
  };
  const int64_t width = o.inter_channels.value_or(std::max<int64_t>(o.in_channels / 2, 1));
  Parameters p{.g = pointwise(o.in_channels, width, o.dimension), .out = pointwise(width, o.in_channels, o.dimension)};
  if (o.mode != NonLocalMode::gaussian) {
    p.theta = pointwise(o.in_channels, width, o.dimension);
    p.phi = pointwise(o.in_channels, width, o.dimension);
  }
  if (o.mode == NonLocalMode::concatenation) p.pair = pointwise(2 * width, 1, 2, o.biased_pair);
  // Whatever comes last starts at zero, so that a block put into a trained network changes nothing at first (paper, section 3.3).
  if (o.bn) {
    p.norm = layers::BatchNorm::init(o.in_channels, o.bn_gain);
  } else {
    p.out.weight.zero_();
    p.out.bias->zero_();
  }
  return p;
}

Tensor NonLocalBlock::forward(const Options& o, const Parameters& p, const Inputs& in, bool training) {
  const Tensor& x = in.x;
  TORCH_CHECK_VALUE(x.dim() == o.dimension + 2 && extent(x, 1) == o.in_channels, "non_local_block: x must be [B,C,*S] with C = ", o.in_channels,
                    " and ", o.dimension, " dimensions S, got ", x.sym_sizes());
  if (o.sub_sample) {
    for (int64_t d = std::max<int64_t>(2, x.dim() - 2); d < x.dim(); ++d) {
      TORCH_CHECK_VALUE(extent(x, d) >= 2, "non_local_block: x must be 2 or more wide where sub_sample pools it, got ", x.sym_sizes());
    }
  }
  const bool embeds = o.mode != NonLocalMode::gaussian;
  TORCH_CHECK_VALUE(!embeds || (p.theta && p.phi), "non_local_block: theta and phi are needed but in mode gaussian");
  TORCH_CHECK_VALUE(o.mode != NonLocalMode::concatenation || p.pair, "non_local_block: pair is needed in mode concatenation");

  const auto pool = [&](const Tensor& map) { return o.sub_sample ? halve(map) : map; };
  const bool first = o.pool_position == PoolPosition::before;
  const Tensor fewer = first || !embeds ? pool(x) : Tensor();
  const auto reduced = [&](const layers::Convolution& map) { return positions(first ? map(fewer) : pool(map(x))); };

  const Tensor theta = positions(embeds ? (*p.theta)(x) : x);      // [B,N,Ci]
  const Tensor phi = embeds ? reduced(*p.phi) : positions(fewer);  // [B,M,Ci]
  const Tensor g = reduced(p.g);                                   // [B,M,Ci]
  const Tensor y = attend(o.mode, theta, phi, g, o.scale, p.pair ? optional(p.pair->weight) : std::nullopt, p.pair ? p.pair->bias : std::nullopt);

  auto shape = x.sym_sizes().vec();
  shape[1] = extent(g, 2);
  const Tensor z = p.out(y.transpose(1, 2).reshape_symint(shape));
  return (o.bn ? (*p.norm)(z, training, o.bn_momentum, o.bn_eps) : z) + x;
}

FOVEATE_MECHANISM(NonLocalBlock)

}  // namespace foveate
