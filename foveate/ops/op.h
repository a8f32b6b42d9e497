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
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <foveate/contract.h>
#include <foveate/tensor.h>
#include <torch/library.h>

#include <functional>
#include <span>
#include <type_traits>
#include <utility>

namespace foveate::ops {

/// A plain function that can be registered under several keys.
struct Kernel {
  std::function<torch::CppFunction()> make;
  Kernel() = default;
  template <class F> Kernel(F* f) : make([f]() { return torch::CppFunction(f); }) {}  // NOLINT(google-explicit-constructor): Parts reads as a list
};

template <class Arguments> Arguments read_struct(const c10::IValue* values) {
  Arguments arguments{};
  registry::Read read{values};
  arguments.fields(read);
  return arguments;
}

/// A kernel that takes its arguments as one struct, listed by its fields(): for primitives with more of them than a function should have.
template <auto f> struct Structured;
template <class Result, class Arguments, Result (*f)(const Arguments&)> struct Structured<f> {
  static void boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const std::size_t count = op.schema().arguments().size();
    auto result = f(read_struct<Arguments>(stack->data() + stack->size() - count));
    torch::jit::drop(*stack, count);
    std::apply([&](auto&&... one) { (stack->emplace_back(std::move(one)), ...); }, std::move(result));
  }
};
template <auto f> Kernel structured() {
  Kernel kernel;
  kernel.make = [] { return torch::CppFunction::makeFromBoxedFunction<&Structured<f>::boxed>(); };
  return kernel;
}

/// The schema of a primitive whose arguments are a struct: "_x(Tensor q, Tensor? bias=None, ...)".
template <class Arguments> std::string schema_of(const std::string& name) {
  std::string text;
  for (const auto& field : registry::describe<Arguments>(name)) {
    const std::string value = field.type.ends_with('?') ? "None" : field.value;
    text += (text.empty() ? "" : ", ") + field.type + " " + field.name + (value.empty() ? "" : "=" + value);
  }
  return name + "(" + text + ")";
}

/// One call of `_x_backward`: gradients of the results (undefined where absent), the results, which gradients are wanted (one flag
/// for each tensor among the arguments, lists opened), and the arguments of the primitive. The wanted gradients are returned in order.
struct Backward {
  std::vector<Tensor> gradients, results;
  std::vector<bool> wanted;
  std::span<const c10::IValue> arguments;
};

/// Which arguments want a gradient, asked in the order in which they stand; lists of tensors are passed over whole.
class Wanted {
 public:
  explicit Wanted(const Backward& call) : flags_(call.wanted) {}
  bool operator()(const optional<Tensor>& argument) { return argument && flags_[next_++]; }
  void pass(std::size_t tensors) { next_ += tensors; }

 private:
  const std::vector<bool>& flags_;
  std::size_t next_ = 0;
};

/// Adds the gradient of an argument to those found, in the argument's type, made only if it is wanted.
template <class F> void give(std::vector<Tensor>& found, bool wanted, const optional<Tensor>& argument, const F& gradient) {
  if (wanted) found.push_back(gradient().to(argument->scalar_type()).contiguous());
}

/// A kernel of a gradient, given the call and the primitive's arguments; it may decline, and the formula is differentiated instead.
using Gradients = std::optional<std::vector<Tensor>>;
struct BackwardKernel {
  std::function<Gradients(const Backward&)> run;
  template <class... A> BackwardKernel(Gradients (*f)(const Backward&, A...)) {  // NOLINT(google-explicit-constructor): Parts reads as a list
    run = [f](const Backward& call) {
      return [&]<std::size_t... I>(std::index_sequence<I...>) {
        return f(call, call.arguments[I].to<std::decay_t<A>>()...);
      }(std::index_sequence_for<A...>());
    };
  }
  template <class Arguments> requires registry::Group<Arguments>
  BackwardKernel(Gradients (*f)(const Backward&, const Arguments&)) {  // NOLINT(google-explicit-constructor): Parts reads as a list
    run = [f](const Backward& call) { return f(call, read_struct<Arguments>(call.arguments.data())); };
  }
};

struct Parts {
  Kernel formula;
  Kernel meta;  ///< shapes and dtypes of the results
  std::optional<Kernel> cpu = {};
  std::optional<BackwardKernel> cpu_backward = {};
  bool any_device = false;  ///< the kernels are ATen calls, and serve every device
};

/// While it lives, autograd records, although the dispatcher is below it: for gradients found by differentiating within a kernel.
class Recording {
  at::AutoGradMode grad_mode_{true};
  c10::impl::ForceDispatchKeyGuard above_{c10::impl::tls_local_dispatch_key_set().included_,
                                          c10::impl::tls_local_dispatch_key_set().excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView};
};

/// Registers the operators of `_x`; `schema` is that of `_x`, without aliases. Stands once per primitive, in its .cpp file.
int add(const std::string& schema, Parts parts);

/// Calls a primitive whose arguments are a struct; its results stay on the stack that is returned.
template <class Arguments> torch::jit::Stack call(const char* name, Arguments arguments) {
  torch::jit::Stack stack;
  arguments.fields([&](std::string_view, auto& member, std::string_view, Role = Role::plain) { stack.emplace_back(std::move(member)); });
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
  return stack;
}

/// The typed handle of a registered primitive: `primitive<decltype(attention)>("foveate::_attention").call(...)`.
template <class Signature> c10::TypedOperatorHandle<Signature> primitive(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

}  // namespace foveate::ops

#define FOVEATE_OP(name, schema, ...) [[maybe_unused]] static const int registered_##name = ::foveate::ops::add(schema, __VA_ARGS__);
