#include <foveate/window_sum.h>

#include "kernels/dispatch.h"
#include "kernels/window_sum.h"

#include <ATen/Parallel.h>
#include <foveate/attention_formula.h>
#include <foveate/op.h>

#include <bit>

namespace foveate::ops {
namespace {

/// From P_j, the sum of all tokens before token j: out_t = P(t + right_t + 1) - P(t - left_t), where P is linear between the tokens.
Tensor window_sum_formula(const Tensor& x, const Tensor& left, const optional<Tensor>& right, double scale) {
  const int64_t N = x.size(1), C = x.size(2), Q = left.size(1), H = left.size(2);
  const Tensor P = at::constant_pad_nd(x.to(at::kDouble).cumsum(1), {0, 0, 1, 0}).unflatten(2, {H, C / std::max<int64_t>(H, 1)});  // [B,N+1,H,R]
  const Tensor t = at::arange(N - Q, N, left.options().dtype(at::kDouble)).unsqueeze(1);                                           // [Q,1]
  const auto sum_before = [&](const Tensor& place) {  // place [B,Q,H] -> [B,Q,H,R]
    const Tensor below = place.detach().floor(), above = place.detach().ceil();
    const Tensor share = (above - place).unsqueeze(-1);
    const auto at = [&](const Tensor& j) { return P.gather(1, j.to(at::kLong).unsqueeze(-1).expand({-1, -1, -1, P.size(3)})); };
    return share * at(below) + (1 - share) * at(above);
  };
  const auto inside = [&](const Tensor& place) { return place.clamp(0, static_cast<double>(N - 1)); };
  const Tensor last = right ? inside(t + right->to(at::kDouble)) : t.expand({x.size(0), -1, H});
  const Tensor sums = sum_before(last + 1) - sum_before(inside(t - left.to(at::kDouble)));
  return (scale * sums).flatten(2).to(x.scalar_type());
}

Tensor window_sum_meta(const Tensor& x, const Tensor& left, const optional<Tensor>&, double) {
  return x.new_empty_symint({extent(x, 0), extent(left, 1), extent(x, 2)});
}

template <class scalar> const kernels::WindowSumEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().window_sum_double;
  else return *cpu_kernels().window_sum_float;
}

/// How far windows reach over tokens: an end may lie on either side of its query.
int64_t reach(const Tensor& extents, const optional<Tensor>& backwards, int64_t most) {
  double far = std::max(0., extents.max().item<double>());
  if (backwards) far = std::max(far, -backwards->min().item<double>());
  return far < static_cast<double>(most) ? static_cast<int64_t>(std::ceil(far)) : most;  // what is no number reaches everywhere
}

/// Contiguous tensors in the type that is computed in, and the arguments that point into them.
template <class scalar> struct Prepared {
  Tensor x, left;
  optional<Tensor> right;
  kernels::WindowSum<scalar> a;

  Prepared(const Tensor& given_x, const Tensor& given_left, const optional<Tensor>& given_right, double scale) {
    const auto type = accumulation_type(given_x.scalar_type());
    x = given_x.to(type).contiguous();
    left = given_left.to(type).contiguous();
    if (given_right) right = given_right->to(type).contiguous();
    a = {.x = x.const_data_ptr<scalar>(),
         .left = left.const_data_ptr<scalar>(),
         .right = right ? right->const_data_ptr<scalar>() : nullptr,
         .B = x.size(0),
         .N = x.size(1),
         .Q = left.size(1),
         .C = x.size(2),
         .H = left.size(2),
         .scale = scale,
         .reach_left = reach(left, right, x.size(1)),
         .reach_right = right ? reach(*right, left, x.size(1)) : reach(-left, {}, x.size(1))};
    constexpr int64_t kept_numbers = 32 << 10, narrow = 8, short_chunk = 1024;  // running sums stay in a core's cache
    // Later extents may lengthen the ring, and so the order of summation; in float shorter sums are worth more than the last bit's rest.
    constexpr int64_t short_ring = std::is_same_v<scalar, double> ? 64 : 1;
    a.ring = std::max(short_ring, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(a.reach_left + a.reach_right + 5))));
    a.width = std::clamp(kept_numbers / a.ring / narrow * narrow, std::min(narrow, a.C), a.C);
    a.chunk = std::max(short_chunk, 4 * a.ring);
  }

  template <class F> void in_parallel(int64_t positions, const F& f) const {
    at::parallel_for(0, a.tasks(positions), 1, [&](int64_t begin, int64_t end) {
      const Tensor scratch = at::empty({a.room()}, at::kDouble);
      f(a, begin, end, scratch.mutable_data_ptr<double>());
    });
  }
};

bool empty(const Tensor& x, const Tensor& left) { return x.numel() == 0 || left.numel() == 0; }

template <class scalar> Tensor forward(const Tensor& x, const Tensor& left, const optional<Tensor>& right, double scale) {
  Prepared<scalar> p(x, left, right, scale);
  const Tensor out = at::empty({p.a.B, p.a.Q, p.a.C}, p.x.options());
  p.a.out = out.mutable_data_ptr<scalar>();
  p.in_parallel(p.a.Q, engine<scalar>().forward);
  return out.to(x.scalar_type());
}

Tensor window_sum_cpu(const Tensor& x, const Tensor& left, const optional<Tensor>& right, double scale) {
  if (empty(x, left)) return at::zeros({x.size(0), left.size(1), x.size(2)}, x.options());
  return x.scalar_type() == at::kDouble ? forward<double>(x, left, right, scale) : forward<float>(x, left, right, scale);
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Tensor& x, const Tensor& left, const optional<Tensor>& right,
                                                     double scale) {
  Prepared<scalar> p(x, left, right, scale);
  Wanted wanted(call);
  const bool wants_x = wanted(x), wants_left = wanted(left), wants_right = right && wanted(right);
  const Tensor d_out = call.gradients[0].to(p.x.scalar_type()).contiguous();
  p.a.d_out = d_out.const_data_ptr<scalar>();
  Tensor d_x, d_left, d_right;
  const auto make = [](bool wish, const Tensor& like, Tensor& made) {
    return wish ? (made = at::empty_like(like)).template mutable_data_ptr<scalar>() : nullptr;
  };
  p.a.d_x = make(wants_x, p.x, d_x);
  p.a.d_left = make(wants_left, p.left, d_left);
  p.a.d_right = wants_right ? make(true, *p.right, d_right) : nullptr;
  if (wants_x) p.in_parallel(p.a.N, engine<scalar>().backward_x);
  if (wants_left || wants_right) {
    constexpr int64_t queries_a_thread = 64;
    at::parallel_for(0, p.a.B * p.a.Q, queries_a_thread, [&](int64_t begin, int64_t end) { engine<scalar>().backward_ends(p.a, begin, end); });
  }
  std::vector<Tensor> found;
  give(found, wants_x, x, [&] { return d_x; });
  give(found, wants_left, left, [&] { return d_left; });
  give(found, wants_right, right, [&] { return d_right; });
  return found;
}

Gradients window_sum_backward_cpu(const Backward& call, Tensor x, Tensor left, optional<Tensor> right, double scale) {
  if (empty(x, left) || !call.gradients[0].defined()) return std::nullopt;
  return x.scalar_type() == at::kDouble ? backward<double>(call, x, left, right, scale) : backward<float>(call, x, left, right, scale);
}

}  // namespace

FOVEATE_OP(window_sum, "_window_sum(Tensor x, Tensor left, Tensor? right, float scale) -> Tensor",
           {.formula = &window_sum_formula, .meta = &window_sum_meta, .cpu = &window_sum_cpu, .cpu_backward = &window_sum_backward_cpu})

Tensor window_sum(const Tensor& x, const Tensor& left, const optional<Tensor>& right, double scale) {
  TORCH_CHECK_VALUE(x.dim() == 3, "window_sum: x must be [B,N,C], got ", x.sym_sizes());
  const auto check = [&](const char* name, const Tensor& extents) {
    TORCH_CHECK_VALUE(extents.dim() == 3 && extent(extents, 0) == extent(x, 0), "window_sum: ", name, " must be [B,Q,H] beside x ", x.sym_sizes(),
                      ", got ", extents.sym_sizes());
    TORCH_CHECK_TYPE(extents.scalar_type() == x.scalar_type() || extents.scalar_type() == accumulation_type(x.scalar_type()), "window_sum: ", name,
                     " must be ", x.scalar_type(), " like x, or ", accumulation_type(x.scalar_type()), ", got ", extents.scalar_type());
  };
  check("left", left);
  if (right) {
    check("right", *right);
    TORCH_CHECK_VALUE(extent(*right, 1) == extent(left, 1) && extent(*right, 2) == extent(left, 2),
                      "window_sum: right must be of the shape of left, ", left.sym_sizes(), ", got ", right->sym_sizes());
  }
  const int64_t H = plain_extent(left, 2), C = plain_extent(x, 2);
  TORCH_CHECK_VALUE(H > 0 && C % H == 0, "window_sum: the heads of left must divide the channels of x, got ", H, " and ", C);
  return primitive<decltype(window_sum_formula)>("foveate::_window_sum").call(x, left, right, scale);
}

}  // namespace foveate::ops
