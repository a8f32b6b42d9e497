// From tensors to what kernels are given: rows where they lie, numbers of the type that kernels compute in, tasks over threads.
#pragma once
#include "kernels/dispatch.h"
#include "kernels/rows.h"

#include <ATen/Parallel.h>
#include <foveate/attention_formula.h>

namespace foveate::ops {

inline kernels::Kind kind_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return kernels::Kind::float64;
    case at::kBFloat16: return kernels::Kind::bfloat16;
    case at::kHalf: return kernels::Kind::float16;
    default: return kernels::Kind::float32;
  }
}

inline Tensor last_contiguous(const Tensor& t) { return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous(); }

inline kernels::Rows rows(const Tensor& t) {
  return {.data = t.const_data_ptr(),
          .kind = kind_of(t.scalar_type()),
          .batch = t.stride(0),
          .head = t.stride(1),
          .row = t.stride(2),
          .index = nullptr,
          .index_batch = 0,
          .index_head = 0};
}

inline int64_t padded(int64_t width, int64_t vector) { return (width + vector - 1) / vector * vector; }

/// A tensor to be written. Large ones are mapped anew each time, page by page as they are first touched: ask for huge pages, of which
/// Linux gives where it is set to (`madvise`); others stay as they are.
Tensor room_for(at::IntArrayRef shape, const at::TensorOptions& options);

/// Tensors that a kernel's arguments point into.
class Alive {
 public:
  explicit Alive(const Tensor& q) : options(q.options().dtype(accumulation_type(q.scalar_type()))) {}
  at::TensorOptions options;  // of the numbers that the kernel computes in

  const Tensor& kept(Tensor t) { return alive_.emplace_back(std::move(t)); }
  kernels::Rows kept_rows(const Tensor& t) { return rows(kept(last_contiguous(t))); }
  optional<Tensor> exact(const optional<Tensor>& t) { return t ? optional(kept(t->to(options.dtype()))) : std::nullopt; }
  template <class scalar> const scalar* numbers(const optional<Tensor>& t) {
    return t ? kept(t->to(options.dtype()).contiguous()).template const_data_ptr<scalar>() : nullptr;
  }
  const unsigned char* bytes(const optional<Tensor>& t) {
    return t ? static_cast<const unsigned char*>(kept(t->contiguous()).const_data_ptr()) : nullptr;
  }
  template <class scalar> scalar* room(at::IntArrayRef shape) { return kept(at::empty(shape, options)).template mutable_data_ptr<scalar>(); }

  /// Spreads tasks over threads, each with scratch of its own.
  template <class scalar, class Arguments, class F> void in_parallel(const Arguments& a, int64_t first, int64_t last, int64_t scratch,
                                                                     const F& f) const {
    at::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      const Tensor mine = at::empty({scratch}, options);
      f(a, begin, end, mine.template mutable_data_ptr<scalar>());
    });
  }

 private:
  std::vector<Tensor> alive_;
};

}  // namespace foveate::ops
