#include <foveate/key_value_cache.h>

#include <torch/custom_class.h>

#include <algorithm>

namespace foveate {
namespace {

/// A tensor of `room` tokens that begins with those of x [B,Hk,n,D].
Tensor with_room(const Tensor& x, int64_t room) {
  Tensor wide = x.new_empty({x.size(0), x.size(1), room, x.size(3)});
  wide.narrow(2, 0, x.size(2)).copy_(x);
  return wide;
}

}  // namespace

KVCache::KVCache(KVCacheOptions options) : options_(options) {
  TORCH_CHECK_VALUE(!options.window || *options.window > 0, "KVCache: window must be positive, got ", options.window.value_or(0));
}

Tensor KVCache::keys() const {
  TORCH_CHECK_VALUE(keys_.defined(), "KVCache: empty, append tokens first");
  return keys_.narrow(2, start_, kept_);
}

Tensor KVCache::values() const {
  TORCH_CHECK_VALUE(values_.defined(), "KVCache: empty, append tokens first");
  return values_.narrow(2, start_, kept_);
}

void KVCache::make_room(const Tensor& k, const Tensor& v) {
  const int64_t needed = kept_ + k.size(2);
  if (!keys_.defined()) {
    const int64_t room = std::max<int64_t>(64, needed + needed / 4);  // a prompt is followed by more
    keys_ = k.new_empty({k.size(0), k.size(1), room, k.size(3)});
    values_ = v.new_empty({v.size(0), v.size(1), room, v.size(3)});
    return;
  }
  if (start_ + needed <= keys_.size(2)) return;
  // To the front of the same room where half of it is free, so that a token is moved once in as many tokens; else to twice the room.
  if (2 * needed <= keys_.size(2) && start_ >= kept_) {
    keys_.narrow(2, 0, kept_).copy_(keys());
    values_.narrow(2, 0, kept_).copy_(values());
  } else {
    const int64_t room = 2 * std::max(needed, options_.window.value_or(0));
    keys_ = with_room(keys(), room);
    values_ = with_room(values(), room);
  }
  start_ = 0;
}

void KVCache::append(const Tensor& k, const Tensor& v) {
  add(k, v);
  if (options_.window) evict(*options_.window);
}

void KVCache::add(const Tensor& k, const Tensor& v) {
  const at::NoGradGuard no_graph;
  ops::check_qkv("KVCache", k, k, v);
  if (keys_.defined()) {
    const auto fits = [](const Tensor& x, const Tensor& kept) {
      return x.size(0) == kept.size(0) && x.size(1) == kept.size(1) && x.size(3) == kept.size(3) && x.scalar_type() == kept.scalar_type();
    };
    TORCH_CHECK_VALUE(fits(k, keys_), "KVCache: k must be ", keys_.scalar_type(), " [", keys_.size(0), ",", keys_.size(1), ",n,", keys_.size(3),
                      "] like the keys before, got ", k.scalar_type(), " ", k.sizes());
    TORCH_CHECK_VALUE(fits(v, values_), "KVCache: v must be ", values_.scalar_type(), " [", values_.size(0), ",", values_.size(1), ",n,",
                      values_.size(3), "] like the values before, got ", v.scalar_type(), " ", v.sizes());
  }
  make_room(k, v);
  keys_.narrow(2, start_ + kept_, k.size(2)).copy_(k);
  values_.narrow(2, start_ + kept_, v.size(2)).copy_(v);
  kept_ += k.size(2);
}

Tensor KVCache::attend(const Tensor& q, const Tensor& k, const Tensor& v, const Decoding& how) {
  TORCH_CHECK_VALUE(!(at::GradMode::is_enabled() && (k.requires_grad() || v.requires_grad())),
                    "KVCache: keeps no graph, but k or v requires a gradient: decode under torch.no_grad(), train with forward() or step()");
  TORCH_CHECK_VALUE(q.dim() == 4 && k.dim() == 4 && q.size(2) == k.size(2), "KVCache: q, k and v must be the same new tokens, [B,H,n,D], got ",
                    q.sizes(), " and ", k.sizes());
  add(k, v);  // nothing is dropped yet: the first new token still sees what the last one does not
  const ops::Attention options{
      .key_mask = how.key_mask, .causal = true, .window = options_.window, .scale = how.scale, .position = how.position, .softcap = how.softcap};
  Tensor out;
  if (how.pattern) {
    const auto here = first_ == 0 ? *how.pattern : patterns::shifted(*how.pattern, -first_);  // positions of the whole sequence
    out = ops::sparse_attention(q, keys(), values(), here, options).out;
  } else {
    out = ops::attention(q, keys(), values(), options).out;
  }
  if (options_.window) evict(*options_.window);
  return out;
}

void KVCache::evict(int64_t keep) {
  TORCH_CHECK_VALUE(keep >= 0, "KVCache: keep must not be negative, got ", keep);
  const int64_t dropped = std::max<int64_t>(0, kept_ - keep);
  start_ += dropped;
  first_ += dropped;
  kept_ -= dropped;
}

void KVCache::rewind(int64_t count) {
  TORCH_CHECK_VALUE(count >= 0 && count <= kept_, "KVCache: count must lie in [0, ", kept_, "], the tokens kept, got ", count);
  kept_ -= count;
}

void KVCache::reorder(const Tensor& index) {
  const at::NoGradGuard no_graph;
  const Tensor new_keys = keys().index_select(0, index), new_values = values().index_select(0, index);
  keys_ = with_room(new_keys, keys_.size(2));
  values_ = with_room(new_values, values_.size(2));
  start_ = 0;
}

namespace {

/// The cache as Python sees it.
struct HeldCache : torch::CustomClassHolder {
  KVCache cache;
  explicit HeldCache(optional<int64_t> window) : cache({.window = window}) {}
};
using Held = c10::intrusive_ptr<HeldCache>;

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.class_<HeldCache>("KVCache")
      .def(torch::init<optional<int64_t>>())
      .def("attend",
           [](const Held& self, const Tensor& q, const Tensor& k, const Tensor& v, const optional<std::string>& pattern,
              const std::vector<Tensor>& tables, const optional<Tensor>& key_mask, optional<double> scale, optional<double> softcap,
              const optional<Tensor>& slopes) {
             const auto seen = pattern ? optional(patterns::Pattern{*pattern, tables}) : std::nullopt;
             return self->cache.attend(q, k, v,
                                       {.pattern = seen, .key_mask = key_mask, .scale = scale, .softcap = softcap, .position = {.slopes = slopes}});
           })
      .def("append", [](const Held& self, const Tensor& k, const Tensor& v) { self->cache.append(k, v); })
      .def("evict", [](const Held& self, int64_t keep) { self->cache.evict(keep); })
      .def("reorder", [](const Held& self, const Tensor& index) { self->cache.reorder(index); })
      .def("rewind", [](const Held& self, int64_t count) { self->cache.rewind(count); })
      .def("length", [](const Held& self) { return self->cache.length(); })
      .def("first", [](const Held& self) { return self->cache.first(); })
      .def("keys", [](const Held& self) { return self->cache.keys(); })
      .def("values", [](const Held& self) { return self->cache.values(); });
}

}  // namespace
}  // namespace foveate
