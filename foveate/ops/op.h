// How a primitive becomes a dispatcher operator. Each is given by its schema and its portable formula (ATen calls only, the truth);
// a kernel for the CPU, and one for its gradient, are added where they pay. From these come four operators:
//
//   foveate::_x            the primitive: the kernel on a CPU where there is one, else the formula; opaque to tracing, so that
//                          lengths may stay symbolic while the formula uses plain numbers
//   foveate::_x_formula    the formula, traced through by autograd and vmap; the reference its kernel is tested against
//   foveate::_x_backward   gradients: the kernel, else the formula differentiated
//
// Gradients of gradients differentiate the formula. A public function ops::x checks its arguments and calls foveate::_x.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <foveate/tensor.h>
#include <torch/library.h>

#include <functional>

namespace foveate::ops {

/// A plain function that can be registered under several keys.
struct Kernel {
  std::function<torch::CppFunction()> make;
  template <class F> Kernel(F* f) : make([f]() { return torch::CppFunction(f); }) {}  // NOLINT(google-explicit-constructor): Parts reads as a list
};

struct Parts {
  Kernel formula;
  Kernel meta;  ///< shapes and dtypes of the results
  std::optional<Kernel> cpu = {};
  std::optional<Kernel> cpu_backward = {};  ///< see Backward in op.cpp for its arguments
};

/// Registers the operators of `_x`; `schema` is that of `_x`, without aliases. Stands once per primitive, in its .cpp file.
int add(const char* schema, Parts parts);

/// The typed handle of a registered primitive: `primitive<decltype(attention)>("foveate::_attention").call(...)`.
template <class Signature> c10::TypedOperatorHandle<Signature> primitive(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

}  // namespace foveate::ops

#define FOVEATE_OP(name, schema, ...) [[maybe_unused]] static const int registered_##name = ::foveate::ops::add(schema, __VA_ARGS__);
