// What a form keeps for its gradient; by_parts.h does it.
#pragma once
#include <foveate/contract.h>

namespace foveate {

enum class Memory {
  full,     ///< what autograd keeps: features of all positions
  minimal,  ///< its inputs alone; the rest is computed anew, one chunk at a time
};
template <> inline constexpr auto names<Memory> = std::array<std::string_view, 2>{"full", "minimal"};

}  // namespace foveate
