// by_parts: a call of a form that streams, part by part, so that one part's graph is in memory at a time.
//
//   forward   out_p, state_p = step(part_p, state_{p-1}), without a graph
//   backward  the states before each part once more; then, from the last part to the first, the step again and its gradient
//
// A form with options `memory` and `chunk` calls ops::by_parts<F> in its forward where memory is minimal, and stands under
// FOVEATE_BY_PARTS(F) in its .cpp file. Inputs are cut where their shapes say N, the queries, or M, the keys; without `causal` all keys
// are taken before the first query. What forward draws at random must be among the inputs.
#pragma once
#include <foveate/memory.h>
#include <foveate/op.h>

namespace foveate::ops {

/// A form as a function of tensors, absent ones undefined; no state starts.
struct Parted {
  using Step = std::function<std::pair<Tensor, std::vector<Tensor>>(const std::vector<Tensor>& inputs, const std::vector<Tensor>& parameters,
                                                                    const std::vector<Tensor>& state)>;
  const registry::FormInfo& info;
  std::vector<Tensor> inputs, parameters;
  int64_t chunk;
  bool causal;
  Step step;
};

Tensor forward_by_parts(const Parted& call);
std::vector<Tensor> backward_by_parts(const Parted& call, const Backward& wanted);
std::string by_parts_schema(const registry::FormInfo& info);

template <class Struct> std::vector<Tensor> tensors_in(Struct s) {
  std::vector<Tensor> found;
  registry::for_each_tensor(s, [&](const std::string&, const Tensor& t, Role) { found.push_back(t); });
  return found;
}

template <class Struct> Struct with_tensors_of(Struct s, const std::vector<Tensor>& tensors) {
  auto next = tensors.begin();
  registry::for_each_tensor(s, [&](const std::string&, Tensor& t, Role) { t = *next++; });
  return s;
}

/// The kernels of one form.
template <class F> struct ByParts {
  static const registry::FormInfo& info() {
    static const registry::FormInfo made = registry::form_info<F>(registry::class_name<F>());
    return made;
  }

  static Parted parted(const registry::Call<F>& call) {
    bool causal = true;
    if constexpr (requires { call.options.causal; }) causal = call.options.causal;
    return {.info = info(),
            .inputs = tensors_in(call.inputs),
            .parameters = tensors_in(call.parameters),
            .chunk = call.options.chunk,
            .causal = causal,
            .step = [&call](const std::vector<Tensor>& inputs, const std::vector<Tensor>& parameters, const std::vector<Tensor>& state) {
              typename F::State past{};
              if (!state.empty()) past = with_tensors_of(std::move(past), state);
              auto [out, next] =
                  F::step(call.options, with_tensors_of(call.parameters, parameters), with_tensors_of(call.inputs, inputs), std::move(past));
              return std::pair{std::move(out), tensors_in(std::move(next))};
            }};
  }

  template <class Run> static void boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack, const Run& run) {
    const std::size_t count = op.schema().arguments().size();
    Tensor out = run(registry::Call<F>(info(), stack->data() + stack->size() - count, false));
    torch::jit::drop(*stack, count);
    stack->emplace_back(std::move(out));
  }

  static void formula(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    boxed(op, stack, [](registry::Call<F>&& call) {
      call.options.memory = Memory::full;
      return F::forward(call.options, call.parameters, call.inputs);
    });
  }
  static void forward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    boxed(op, stack, [](registry::Call<F>&& call) { return forward_by_parts(parted(call)); });
  }
  static Gradients backward(const Backward& wanted) {
    const registry::Call<F> call(info(), wanted.arguments.data(), false);
    return backward_by_parts(parted(call), wanted);
  }

  static int add() {
    const auto kernel = [](auto make) {
      Kernel made;
      made.make = make;
      return made;
    };
    const Kernel formula = kernel([] { return torch::CppFunction::makeFromBoxedFunction<&ByParts::formula>(); });
    return ops::add(by_parts_schema(info()), {.formula = formula,
                                              .meta = formula,
                                              .cpu = kernel([] { return torch::CppFunction::makeFromBoxedFunction<&ByParts::forward>(); }),
                                              .cpu_backward = &ByParts::backward,
                                              .any_device = true});
  }
};

/// Arguments as they stand in a schema: inputs, parameters, options.
struct WriteArguments {
  torch::jit::Stack& stack;
  template <class T> void operator()(std::string_view, T& member, std::string_view, Role = Role::plain) {
    if constexpr (registry::Group<T>) member.fields(*this);
    else if constexpr (std::is_enum_v<T>) stack.emplace_back(std::string(names<T>[static_cast<std::size_t>(member)]));
    else stack.emplace_back(std::move(member));
  }
};

/// Refuses what cannot go by parts; `streams` says whether the other options let the form stream.
inline void check_memory(const char* form, Memory memory, int64_t chunk, bool streams) {
  TORCH_CHECK_VALUE(chunk > 0, form, ": chunk must be positive, got ", chunk);
  TORCH_CHECK_VALUE(memory == Memory::full || streams, form,
                    ": memory minimal needs a form that streams: the stabilizer sequence looks at all keys at once");
}

template <class F> Tensor by_parts(typename F::Options options, typename F::Parameters parameters, typename F::Inputs inputs) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(("foveate::_" + ByParts<F>::info().name + "_by_parts").c_str(), "");
  torch::jit::Stack stack;
  WriteArguments write{stack};
  inputs.fields(write);
  if (ByParts<F>::info().listed) {
    stack.emplace_back(tensors_in(std::move(parameters)));
    stack.emplace_back(std::vector<Tensor>());
  } else if constexpr (!registry::HasShape<F>) {
    parameters.fields(write);
  }
  options.fields(write);
  op.callBoxed(stack);
  return stack.back().toTensor();
}

}  // namespace foveate::ops

#define FOVEATE_BY_PARTS(F) [[maybe_unused]] static const int by_parts_##F = ::foveate::ops::ByParts<F>::add();
