#include <foveate/attention.h>
#include <foveate/convolution.h>
#include <foveate/heads.h>
#include <foveate/init.h>
#include <foveate/linformer.h>

namespace foveate {
namespace {

using Kind = LinformerKind;
using Sharing = LinformerSharing;

bool shares_kv(Sharing sharing) { return sharing == Sharing::kv || sharing == Sharing::layerwise; }

/// x [B,H,M,D] -> [B,H,K,D,size]; tokens that fill no block are left out.
Tensor blocks(const Tensor& x, int64_t size) {
  TORCH_CHECK_VALUE(extent(x, 2) >= size, "linformer: the keys are ", extent(x, 2), " tokens, fewer than a slot takes, length/rank = ", size);
  return x.unfold(2, size, size);
}

/// w [K,M] or [H,K,M], x [B,H,M,D] -> [B,H,K,D]
Tensor mix(const Tensor& w, const Tensor& x) {
  if (w.dim() == 2) return split_heads(at::matmul(w, merge_heads(x)), plain_extent(x, 1));           // one product for all heads
  const Tensor each = x.expand_symint({-1, extent(w, 0), -1, -1}).permute({1, 2, 0, 3}).flatten(2);  // [H,M,B D]
  return at::matmul(w, each).unflatten_symint(2, {extent(x, 0), extent(x, 3)}).permute({2, 0, 1, 3});
}

/// w [D,D,taps] or [H,D,D,taps], x [B,H,M,D] -> [B,H,K,D]: a convolution along the tokens whose stride is its width.
Tensor convolve(const Tensor& w, const optional<Tensor>& bias, const Tensor& x) {
  const layers::Convolution::Steps steps{.stride = w.size(-1), .groups = w.dim() == 4 ? w.size(0) : 1};
  if (w.dim() == 3) {                                                                           // heads side by side in the batch
    const Tensor slots = layers::Convolution{w, bias}(x.flatten(0, 1).transpose(1, 2), steps);  // [B H,D,K]
    return slots.unflatten_symint(0, {extent(x, 0), extent(x, 1)}).transpose(2, 3);
  }
  const Tensor each = x.expand_symint({-1, steps.groups, -1, -1}).transpose(2, 3).flatten(1, 2);  // [B,H D,M]
  const layers::Convolution by_head{w.flatten(0, 1), bias ? optional<Tensor>(bias->flatten()) : std::nullopt};
  return by_head(each, steps).unflatten(1, {steps.groups, -1}).transpose(2, 3);
}

void check_matrix(const Tensor& w, const SlotProjection::Plan& plan, const Size& tokens) {
  const bool fits = (w.dim() == 2 || (w.dim() == 3 && w.size(0) == plan.heads)) && w.size(-2) == plan.rank && w.size(-1) == plan.length;
  TORCH_CHECK_VALUE(fits, "linformer: a projection must be [rank,length] or [H,rank,length] with H = ", plan.heads, ", rank = ", plan.rank,
                    ", length = ", plan.length, ", got ", w.sizes());
  TORCH_CHECK_VALUE(tokens <= plan.length, "linformer: length: the keys are ", tokens, " tokens, more than length = ", plan.length);
}

/// E serves both where there is no F.
const SlotProjection& second(const SlotProjection& e, const SlotProjection& f) {
  return f.weight || f.fixed ? f : e;  // NOLINT(bugprone-return-const-ref-from-parameter): both are members of the caller's parameters
}

/// out [B,H,N,D] of q and slots. A padded query, and one whose keys are all padding, gets zeros.
Tensor attend_slots(const Tensor& q, const Tensor& k, const Tensor& v, const ops::Attention& how, const optional<Tensor>& key_mask,
                    const optional<Tensor>& query_mask) {
  Tensor out = ops::attention(q, k, v, how).out;
  if (key_mask) out = masked_rows(out, key_mask->any(1, true));
  return masked_rows(out, query_mask);
}

/// The softmax over slots; slot_causal puts the first query at the first slot.
ops::Attention over_slots(const auto& o) {
  return {.causal = o.slot_causal, .scale = o.scale, .offset = o.slot_causal ? optional<Size>(0) : std::nullopt};
}

void check_slots(const char* form, const auto& o) {
  TORCH_CHECK_VALUE(o.rank > 0 && o.length > 0, form, ": rank and length must be positive, got ", o.rank, " and ", o.length);
  TORCH_CHECK_VALUE(o.kind != Kind::conv || o.rank <= o.length, form, ": rank must not exceed length where kind is conv, got ", o.rank, " and ",
                    o.length);
  TORCH_CHECK_VALUE(o.num_heads > 0, form, ": num_heads must be positive, got ", o.num_heads);
  TORCH_CHECK_VALUE(o.kind != Kind::fixed || !o.slot_bias, form, ": slot_bias: the kind fixed has no bias");
}

}  // namespace

SlotProjection SlotProjection::init(const Plan& plan, int64_t width, bool has_bias, LinformerInit how) {
  SlotProjection made;
  if (plan.kind == Kind::mean || plan.kind == Kind::max) return made;
  const bool conv = plan.kind == Kind::conv;
  const auto [K, M] = std::pair{plan.rank, plan.length};
  const auto matrix = [&]() -> Tensor {
    if (conv) return layers::default_weight({width, width, M / K});
    switch (how) {
      case LinformerInit::xavier_uniform: return layers::xavier_uniform({K, M}, 1 / std::sqrt(2.0));
      case LinformerInit::xavier_normal: return layers::xavier_normal({K, M});
      case LinformerInit::uniform: return layers::uniform({K, M}, 1 / std::sqrt(static_cast<double>(K)));
      case LinformerInit::normal: return layers::normal({K, M}, 1 / static_cast<double>(K));
    }
    TORCH_CHECK(false, "unreachable");
  };
  const auto each = [&](const auto& draw) {  // one for each head where heads share nothing
    if (plan.sharing != Sharing::none) return draw();
    std::vector<Tensor> all;
    for (int64_t h = 0; h < plan.heads; ++h) all.push_back(draw());
    return at::stack(all);
  };
  (plan.kind == Kind::fixed ? made.fixed : made.weight) = each(matrix);
  const double bound = 1 / std::sqrt(static_cast<double>(conv ? width * (M / K) : M));
  if (has_bias) made.bias = each([&] { return layers::uniform({conv ? width : K}, bound); });
  return made;
}

Tensor SlotProjection::operator()(const Tensor& x, const Plan& plan) const {
  switch (plan.kind) {
    case Kind::mean:
    case Kind::max: {
      const Tensor parts = blocks(x, std::max<int64_t>(1, plan.length / plan.rank));
      return plan.kind == Kind::mean ? parts.mean(4) : parts.amax(4);
    }
    case Kind::conv: {
      TORCH_CHECK_VALUE(weight, "linformer: the kind conv needs the weights of its projections");
      TORCH_CHECK_VALUE(extent(x, 2) >= weight->size(-1), "linformer: the keys are ", extent(x, 2),
                        " tokens, fewer than a slot takes, length/rank = ", weight->size(-1));
      return convolve(*weight, bias, x);
    }
    case Kind::linear:
    case Kind::fixed: {
      const auto& w = plan.kind == Kind::fixed ? fixed : weight;
      TORCH_CHECK_VALUE(w, "linformer: the kind ", names<Kind>[static_cast<std::size_t>(plan.kind)], " needs the ",
                        plan.kind == Kind::fixed ? "buffers `fixed`" : "weights", " of its projections");
      check_matrix(*w, plan, extent(x, 2));
      const Tensor slots = mix(w->narrow_symint(-1, 0, extent(x, 2)), x);
      return bias ? slots + bias->unsqueeze(-1) : slots;
    }
  }
  TORCH_CHECK(false, "unreachable");
}

// --- the bare function -------------------------------------------------------------------------------------------------------

void LinformerAttention::check(const Options& o) { check_slots("linformer_attention", o); }

LinformerAttention::Parameters LinformerAttention::init(const Options& o) {
  const SlotProjection::Plan plan{.kind = o.kind, .sharing = o.sharing, .length = o.length, .rank = o.rank, .heads = o.num_heads};
  Parameters p{.key_projection = SlotProjection::init(plan, o.head_dim, o.slot_bias, o.initialisation), .value_projection = {}};
  if (!shares_kv(o.sharing)) p.value_projection = SlotProjection::init(plan, o.value_dim.value_or(o.head_dim), o.slot_bias, o.initialisation);
  return p;
}

Tensor LinformerAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  const SlotProjection::Plan plan{.kind = o.kind, .sharing = o.sharing, .length = o.length, .rank = o.rank, .heads = plain_extent(in.q, 1)};
  const Tensor k = p.key_projection(masked_rows(in.k, in.key_mask), plan);                              // [B,H,K,D]
  const Tensor v = second(p.key_projection, p.value_projection)(masked_rows(in.v, in.key_mask), plan);  // [B,H,K,Dv]
  return attend_slots(in.q, k, v, over_slots(o), in.key_mask, in.query_mask);
}

FOVEATE_MECHANISM(LinformerAttention)

// --- the layer ---------------------------------------------------------------------------------------------------------------

void LinformerMultiheadAttention::check(const Options& o) {
  check_slots("linformer_multihead_attention", o);
  layers::check_heads("linformer_multihead_attention", o.embed_dim, o.num_heads, o.head_dim);
  TORCH_CHECK_VALUE(o.project == LinformerOrder::heads || o.kind != Kind::conv || o.sharing != Sharing::none,
                    "linformer_multihead_attention: sharing none with kind conv needs project heads: the input has no heads");
}

LinformerMultiheadAttention::Parameters LinformerMultiheadAttention::init(const Options& o) {
  using layers::Linear;
  const int64_t E = o.embed_dim, D = o.head_dim.value_or(E / o.num_heads), inner = o.num_heads * D, keys = o.one_kv_head ? D : inner;
  const auto feature = [&](int64_t width) {  // as the authors' code, and torch.nn.MultiheadAttention, draw them
    Linear made = Linear::init(E, width, o.bias);
    made.weight = layers::xavier_uniform({width, E}, 1 / std::sqrt(2.0));
    return made;
  };
  Parameters p{.query = feature(inner), .key = feature(keys)};
  if (!o.share_kv_projection) p.value = feature(keys);
  if (o.out_inner_dim) p.out_inner = Linear::init(inner, *o.out_inner_dim);
  p.out = Linear::init(o.out_inner_dim.value_or(inner), E);
  if (o.full_attention) return p;
  const SlotProjection::Plan plan{.kind = o.kind, .sharing = o.sharing, .length = o.length, .rank = o.rank, .heads = o.num_heads};
  const int64_t width = o.project == LinformerOrder::input ? E : D;
  p.key_projection = SlotProjection::init(plan, width, o.slot_bias, o.initialisation);
  if (!shares_kv(o.sharing)) p.value_projection = SlotProjection::init(plan, width, o.slot_bias, o.initialisation);
  return p;
}

Tensor LinformerMultiheadAttention::forward(const Options& o, const Parameters& p, const Inputs& in) {
  return attend(o, p, p.key_projection, p.value_projection, in);
}

Tensor LinformerMultiheadAttention::attend(const Options& o, const Parameters& p, const SlotProjection& e, const SlotProjection& f,
                                           const Inputs& in) {
  const SlotProjection::Plan plan{.kind = o.kind, .sharing = o.sharing, .length = o.length, .rank = o.rank, .heads = o.num_heads};
  const int64_t kv_heads = o.one_kv_head ? 1 : o.num_heads;
  const auto& value = p.value ? *p.value : p.key;
  const auto& value_slots = second(e, f);
  const Tensor q = split_heads(p.query(in.x), o.num_heads);  // [B,H,N,D]
  const Tensor context = in.context.value_or(in.x);          // [B,M,E]
  const auto finish = [&](const Tensor& attended) {
    const Tensor joined = merge_heads(attended);
    return p.out(p.out_inner ? (*p.out_inner)(joined) : joined);
  };
  if (o.full_attention) {
    auto plain = over_slots(o);
    plain.key_mask = in.key_mask;
    return finish(attend_slots(q, split_heads(p.key(context), kv_heads), split_heads(value(context), kv_heads), plain, std::nullopt, in.query_mask));
  }

  Tensor k, v;  // [B,H or 1,K,D]
  if (o.project == LinformerOrder::heads) {
    const Tensor keys = masked_rows(split_heads(p.key(context), kv_heads), in.key_mask);
    k = e(keys, plan);
    v = value_slots(p.value ? masked_rows(split_heads(value(context), kv_heads), in.key_mask) : keys, plan);
  } else {  // cheaper: the feature projections see K rows instead of M
    const auto features = [&](const layers::Linear& linear, const Tensor& slots) -> Tensor {  // slots [B,H or 1,K,E]
      if (plain_extent(slots, 1) == 1) return split_heads(linear(slots.squeeze(1)), kv_heads);
      const Tensor w = linear.weight.unflatten(0, {kv_heads, -1}).transpose(1, 2);  // [H,E,D]: each head projects its own slots
      const Tensor projected = at::matmul(slots, w);
      return linear.bias ? projected + linear.bias->view({kv_heads, 1, -1}) : projected;
    };
    const Tensor tokens = masked_rows(context.unsqueeze(1), in.key_mask);
    const Tensor slots = e(tokens, plan);
    k = features(p.key, slots);
    v = features(value, &value_slots == &e ? slots : value_slots(tokens, plan));
  }
  return finish(attend_slots(q, k, v, over_slots(o), in.key_mask, in.query_mask));
}

FOVEATE_MECHANISM(LinformerMultiheadAttention)

}  // namespace foveate
