#include <foveate/prepared.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace foveate::ops {

Tensor room_for(at::IntArrayRef shape, const at::TensorOptions& options) {
  const Tensor made = at::empty(shape, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::size_t always_mapped = std::size_t{32} << 20, huge = std::size_t{2} << 20;  // glibc keeps no memory of this size for later
  if (made.nbytes() >= always_mapped) {
    const auto begin = reinterpret_cast<std::uintptr_t>(made.mutable_data_ptr()), first = (begin + huge - 1) / huge * huge;
    const auto last = (begin + made.nbytes()) / huge * huge;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // NOLINT: a wish; nothing depends on the answer
  }
#endif
  return made;
}

}  // namespace foveate::ops
