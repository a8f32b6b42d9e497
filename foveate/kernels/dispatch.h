// The kernels of the instruction set in use.
#pragma once
#include "kernels/capability.h"

namespace foveate {

/// Picked once: what the processor has, or what ATEN_CPU_CAPABILITY asks for.
const kernels::Kernels& cpu_kernels();

}  // namespace foveate
