// What draws of dropout are made of.
#pragma once

namespace foveate::kernels::CPU_CAPABILITY {
namespace {

/// A bijection of 32 bits that scatters them. ops/attention_formula.cpp does the same.
inline unsigned mixed(unsigned x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

}  // namespace
}  // namespace foveate::kernels::CPU_CAPABILITY
