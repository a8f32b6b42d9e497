#include "kernels/dispatch.h"

#include <ATen/Version.h>

namespace foveate {

const kernels::Kernels& cpu_kernels() {
  static const kernels::Kernels& chosen = []() -> const kernels::Kernels& {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return kernels::AVX512::table;
    if (capability == "AVX2") return kernels::AVX2::table;
    return kernels::DEFAULT::table;
  }();
  return chosen;
}

}  // namespace foveate
