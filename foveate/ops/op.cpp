#include <foveate/op.h>

#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <mutex>
#include <span>

namespace foveate::ops {
namespace {

using c10::IValue;
using torch::jit::Stack;

/// The names of one primitive's operators.
struct Names {
  std::string primitive, formula, backward;
  explicit Names(const std::string& schema) : primitive("foveate::" + schema.substr(0, schema.find('('))) {
    formula = primitive + "_formula";
    backward = primitive + "_backward";
  }
};

c10::OperatorHandle find(const std::string& name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), ""); }

/// The tensors among arguments, lists opened, absent ones undefined: the order in which gradients are given.
std::vector<Tensor> tensors_of(std::span<const IValue> arguments) {
  std::vector<Tensor> tensors;
  for (const auto& argument : arguments) {
    if (argument.isTensor()) tensors.push_back(argument.toTensor());
    else if (argument.isTensorList()) {
      for (const Tensor& t : argument.toTensorVector()) tensors.push_back(t);
    }
  }
  return tensors;
}

/// The arguments with their tensors replaced, in the order of tensors_of.
std::vector<IValue> with_tensors(std::span<const IValue> arguments, std::span<const Tensor> tensors) {
  std::vector<IValue> replaced(arguments.begin(), arguments.end());
  std::size_t next = 0;
  for (auto& argument : replaced) {
    if (argument.isTensor()) argument = tensors[next++];
    else if (argument.isTensorList()) {
      auto list = argument.toTensorVector();
      for (auto& t : list) t = tensors[next++];
      argument = list;
    }
  }
  return replaced;
}

bool differentiable(const Tensor& t) { return t.defined() && (at::isFloatingType(t.scalar_type()) || at::isComplexType(t.scalar_type())); }

/// The arguments of `_x_backward` from the stack: gradients, results, wishes, and those of the primitive.
Backward read_backward(std::span<const IValue> stack) {
  Backward call{.arguments = stack.subspan(3)};
  for (const auto& g : stack[0].toListRef()) call.gradients.push_back(g.isNone() ? Tensor() : g.toTensor());
  call.results = stack[1].toTensorVector();
  const auto flags = stack[2].toBoolList();
  call.wanted.assign(flags.begin(), flags.end());
  return call;
}

/// Gradients by differentiating the formula. With `create_graph` they can be differentiated again.
std::vector<Tensor> differentiate(const c10::OperatorHandle& formula, const Backward& call, bool create_graph) {
  const at::AutoGradMode grad_mode(true);
  auto tensors = tensors_of(call.arguments);
  std::vector<Tensor> inputs;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!call.wanted[i]) continue;
    // A fresh alias, so that q given as k too still has a gradient of its own.
    tensors[i] = create_graph && tensors[i].requires_grad() ? tensors[i].view_as(tensors[i]) : tensors[i].detach().requires_grad_();
    inputs.push_back(tensors[i]);
  }
  Stack stack = with_tensors(call.arguments, tensors);
  formula.callBoxed(stack);
  std::vector<Tensor> outputs, gradients;
  const auto results = tensors_of(stack);
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (!call.gradients[i].defined() || !results[i].requires_grad()) continue;
    outputs.push_back(results[i]);
    gradients.push_back(call.gradients[i]);
  }
  auto found = outputs.empty()
                   ? std::vector<Tensor>(inputs.size())
                   : torch::autograd::grad(outputs, inputs, gradients, /*retain_graph=*/create_graph, create_graph, /*allow_unused=*/true);
  for (std::size_t i = 0; i < found.size(); ++i) found[i] = found[i].defined() ? found[i].contiguous() : at::zeros_like(inputs[i]);
  return found;
}

/// A boxed kernel that carries what it needs.
template <class F> struct Boxed final : c10::OperatorKernel {
  F function;
  explicit Boxed(F f) : function(std::move(f)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) { function(op, keys, *stack); }
};
template <class F> torch::CppFunction boxed(F f) { return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Boxed<F>>(std::move(f))); }

std::span<const IValue> arguments_of(const c10::OperatorHandle& op, const Stack& stack) {
  return std::span(stack).last(op.schema().arguments().size());
}

/// Puts results where the arguments were; below them the stack may belong to others.
void give(const c10::OperatorHandle& op, Stack& stack, std::vector<Tensor> result) {
  torch::jit::drop(stack, op.schema().arguments().size());
  stack.emplace_back(std::move(result));
}

bool any_requires_grad(const std::vector<Tensor>& tensors) {
  return at::GradMode::is_enabled() && std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.defined() && t.requires_grad(); });
}

/// The autograd node of a primitive: keeps arguments and results, and calls `_x_backward`.
class PrimitiveNode final : public torch::autograd::Node {
 public:
  PrimitiveNode(std::string name, std::span<const IValue> arguments) : backward_(std::move(name)), arguments_(arguments.begin(), arguments.end()) {
    auto tensors = tensors_of(arguments);
    for (const auto& t : tensors) inputs_.emplace_back(t, false);
    const std::vector<Tensor> blanks(tensors.size());
    arguments_ = with_tensors(arguments, blanks);  // the saved variables hold the tensors; holding them twice would leak cycles
    for (auto& t : tensors) {
      if (!differentiable(t)) t = Tensor();
    }
    set_next_edges(torch::autograd::collect_next_edges(tensors));
  }

  void save_outputs(const std::vector<Tensor>& outputs) {
    for (const auto& t : outputs) outputs_.emplace_back(t, true);
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    c10::List<std::optional<Tensor>> given;
    for (const auto& g : gradients) given.push_back(g.defined() ? std::optional(g) : std::nullopt);
    const auto self = c10::intrusive_ptr<Node>::unsafe_reclaim_from_nonowning(this);
    std::vector<Tensor> results, inputs;
    for (const auto& saved : outputs_) results.push_back(saved.unpack(self));
    for (const auto& saved : inputs_) inputs.push_back(saved.unpack());
    c10::List<bool> wanted;
    for (std::size_t i = 0; i < inputs.size(); ++i) wanted.push_back(task_should_compute_output(i));
    Stack stack{given, results, wanted};
    for (auto& argument : refill(inputs)) stack.push_back(std::move(argument));
    find(backward_).callBoxed(stack);
    auto found = stack[0].toTensorVector();
    torch::autograd::variable_list out(inputs.size());
    std::size_t next = 0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (wanted[i]) out[i] = found[next++];
    }
    return out;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : inputs_) saved.reset_data();
    for (auto& saved : outputs_) saved.reset_data();
  }

  std::string name() const override { return backward_; }

 private:
  std::vector<IValue> refill(std::span<const Tensor> inputs) const { return with_tensors(arguments_, inputs); }

  std::string backward_;
  std::vector<IValue> arguments_;
  std::vector<torch::autograd::SavedVariable> inputs_, outputs_;
};

/// Records the node, runs the primitive below autograd.
void run_with_gradient(const Names& names, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack& stack) {
  const auto arguments = arguments_of(op, stack);
  std::vector<Tensor> inputs = tensors_of(arguments);
  std::erase_if(inputs, [](const Tensor& t) { return !differentiable(t); });
  c10::intrusive_ptr<PrimitiveNode> node;
  if (any_requires_grad(inputs)) {
    node = c10::make_intrusive<PrimitiveNode>(names.backward, arguments);
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, &stack);
  }
  if (!node) return;
  const auto results = std::span(stack).last(op.schema().returns().size());
  auto outputs = tensors_of(results);
  for (auto& t : outputs) {
    if (differentiable(t)) torch::autograd::set_history(t, node);
  }
  node->save_outputs(outputs);
}

/// The schema of `_x_backward`: that of `_x` behind gradients, results and wishes.
std::string backward_schema(const std::string& schema) {
  const auto open = schema.find('('), close = schema.find(") ->");
  return schema.substr(0, open) + "_backward(Tensor?[] gradients, Tensor[] results, bool[] wanted, " + schema.substr(open + 1, close - open - 1) +
         ") -> Tensor[]";
}

}  // namespace

int add(const std::string& schema, Parts parts) {
  static torch::Library library(torch::Library::FRAGMENT, "foveate", std::nullopt, __FILE__, __LINE__);
  using Key = c10::DispatchKey;
  const Names names(schema);
  const auto implement = [&](const std::string& name, Key key, torch::CppFunction function) {
    library.impl(name.c_str(), torch::dispatch(key, std::move(function)));
  };
  const auto define = [&](const std::string& text) { library.def(torch::schema(text.c_str()), {at::Tag::pt2_compliant_tag}); };
  const auto call_formula = [names](const c10::OperatorHandle&, c10::DispatchKeySet, Stack& stack) { find(names.formula).callBoxed(stack); };

  const auto open = schema.find('(');
  define(schema.substr(0, open) + "_formula" + schema.substr(open));
  for (const auto key : {Key::CompositeImplicitAutograd, Key::FuncTorchBatchedDecomposition}) implement(names.formula, key, parts.formula.make());

  define(schema);
  const auto kernel_key = parts.any_device ? Key::CompositeExplicitAutograd : Key::CPU;
  if (!parts.any_device) implement(names.primitive, Key::CompositeExplicitAutograd, boxed(call_formula));
  implement(names.primitive, Key::FuncTorchBatchedDecomposition, boxed(call_formula));
  implement(names.primitive, Key::Meta, parts.meta.make());
  if (parts.cpu) implement(names.primitive, kernel_key, parts.cpu->make());
  implement(names.primitive, Key::Autograd,
            boxed([names](const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack& stack) { run_with_gradient(names, op, keys, stack); }));

  define(backward_schema(schema));
  const auto by_formula = [names](const Backward& call) {
    auto found = differentiate(find(names.formula), call, false);
    for (auto& t : found) t = t.detach();
    return found;
  };
  const auto below_autograd = [by_formula](const Backward& call) {
    const Recording recording;
    return by_formula(call);
  };
  if (!parts.any_device) {
    implement(names.backward, Key::CompositeExplicitAutograd,
              boxed([below_autograd](const c10::OperatorHandle& op, c10::DispatchKeySet, Stack& stack) {
                give(op, stack, below_autograd(read_backward(arguments_of(op, stack))));
              }));
  }
  if (parts.cpu_backward) {
    implement(names.backward, kernel_key,
              boxed([below_autograd, kernel = *parts.cpu_backward](const c10::OperatorHandle& op, c10::DispatchKeySet, Stack& stack) {
                const Backward call = read_backward(arguments_of(op, stack));
                auto found = kernel.run(call);
                give(op, stack, found ? std::move(*found) : below_autograd(call));
              }));
  }
  implement(names.backward, Key::Meta, boxed([](const c10::OperatorHandle& op, c10::DispatchKeySet, Stack& stack) {
              const Backward call = read_backward(arguments_of(op, stack));
              std::vector<Tensor> found;
              const auto tensors = tensors_of(call.arguments);
              for (std::size_t i = 0; i < tensors.size(); ++i) {
                if (call.wanted[i]) found.push_back(tensors[i].new_empty_symint(tensors[i].sym_sizes()));
              }
              give(op, stack, std::move(found));
            }));
  implement(names.backward, Key::Autograd, boxed([names](const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack& stack) {
              const auto arguments = arguments_of(op, stack);
              const Backward call = read_backward(arguments);
              if (any_requires_grad(tensors_of(arguments)) ||
                  any_requires_grad(call.gradients)) {  // double backward: a differentiable expression, recorded as it is computed
                auto found = differentiate(find(names.formula), call, true);
                give(op, stack, std::move(found));
                return;
              }
              const at::AutoDispatchBelowADInplaceOrView below;
              op.redispatchBoxed(keys & c10::after_autograd_keyset, &stack);
            }));
  implement(names.backward, Key::FuncTorchBatchedDecomposition, boxed([by_formula](const c10::OperatorHandle& op, c10::DispatchKeySet, Stack& stack) {
              give(op, stack, by_formula(read_backward(arguments_of(op, stack))));
            }));
  return 0;
}

}  // namespace foveate::ops
