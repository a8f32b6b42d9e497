// A form as a torch::nn module: the C++ layer. Parameters and buffers carry the same dotted names as in Python.
//
//   foveate::Module<foveate::MultiheadAttention> layer({.embed_dim = 64, .num_heads = 4});
//   auto y = layer->forward({.x = x});       // or layer({.x = x}), layer(x)
//   auto [z, state] = layer->step({.x = x}); // forms that stream
//
// A Module is a handle, as torch's own layers are: copies share the layer, layer->clone() does not. It trains and evaluates
// (layer->eval()), moves (layer->to(torch::kDouble)), prints, and goes through torch::save and torch::load; <foveate/safetensors.h> gives
// and takes the states of Python. This is the one header of the library that includes torch/nn.
#pragma once
#include <foveate/contract.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <sstream>
#include <utility>

namespace foveate {
namespace registry {

/// torch's module, whose to(dtype) leaves integers and booleans what they are, as in Python.
class FOVEATE_API LayerModule : public torch::nn::Module {
 public:
  using torch::nn::Module::Module;
  using torch::nn::Module::to;
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
};

/// Parameters that belong together, such as the weight and bias of a projection: a child of a layer.
class FOVEATE_API GroupModule final : public LayerModule {
 public:
  GroupModule() : LayerModule("Group") {}
  std::shared_ptr<torch::nn::Module> clone(const optional<torch::Device>& device = std::nullopt) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  void clone_(torch::nn::Module& other, const optional<torch::Device>& device) override;
};

/// Registers a tensor under its dotted name: "query.weight" is the parameter `weight` of the child `query`.
FOVEATE_API void place(torch::nn::Module& layer, std::string_view path, const Tensor& tensor, bool is_buffer);

}  // namespace registry

/// What a Module holds.
template <class F> class ModuleImpl final : public registry::LayerModule {
 public:
  using Options = typename F::Options;
  using Inputs = typename F::Inputs;
  using Parameters = typename F::Parameters;

  /// Initial values as the paper says, from the global generator.
  explicit ModuleImpl(Options options = {}) : ModuleImpl(options, initial(options)) {}

  auto forward(const Inputs& inputs) {
    check(inputs);
    return registry::run<F>(options_, tensors_, inputs, is_training());
  }

  /// Some more tokens and the state so far; gives the result and the next state. An empty state starts.
  auto step(const Inputs& inputs) requires registry::Streams<F> { return step(inputs, typename F::State{}); }
  template <class State> auto step(const Inputs& inputs, State state) requires registry::Streams<F> {
    check(inputs);
    return registry::run_step<F>(options_, tensors_, inputs, std::move(state), is_training());
  }

  const Options& options() const { return options_; }

  /// The parameters and buffers as the form's own struct.
  const Parameters& tensors() const { return tensors_; }

  /// Draws new initial values in place.
  void reset_parameters() {
    renew([](const std::string&) { return true; });
  }

  /// Draws anew what was drawn at random, such as the projection of random features, in place: the buffers below `drawn`.
  void redraw() {
    renew([](const std::string& path) { return ("." + path).find(".drawn.") != std::string::npos; });
  }

  std::shared_ptr<torch::nn::Module> clone(const optional<torch::Device>& device = std::nullopt) const override {
    const torch::NoGradGuard no_grad;
    Parameters copies = tensors_;
    registry::for_each_tensor(copies, [&](const std::string&, Tensor& tensor, Role) {
      if (!tensor.defined()) return;
      const bool trained = tensor.requires_grad();
      tensor = tensor.detach().to(device.value_or(tensor.device()), tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
      tensor.set_requires_grad(trained);
    });
    auto copy = std::shared_ptr<ModuleImpl>(new ModuleImpl(options_, std::move(copies)));
    copy->train(is_training());
    return copy;
  }

  void pretty_print(std::ostream& stream) const override {
    Options options = options_;
    stream << name() << '(';
    const char* separator = "";
    options.fields([&](std::string_view option, auto& value, std::string_view, Role = Role::plain) {
      const auto text = registry::default_value(value);
      if (text != "None") stream << std::exchange(separator, ", ") << option << '=' << text;
    });
    stream << ')';
  }

 private:
  ModuleImpl(Options options, Parameters tensors)
      : registry::LayerModule(std::string(registry::class_name<F>())), options_(std::move(options)), tensors_(std::move(tensors)) {
    registry::for_each_tensor(tensors_, [&](const std::string& path, Tensor& tensor, Role role) {
      if (tensor.defined()) registry::place(*this, path, tensor, role == Role::buffer);
    });
  }

  static Parameters initial(const Options& options) {
    registry::check_options<F>(options);
    Parameters made{};
    if constexpr (!std::is_same_v<Parameters, None>) {
      made = F::init(options);
      registry::for_each_tensor(made, [](const std::string&, Tensor& tensor, Role role) {
        if (tensor.defined() && role != Role::buffer) tensor.set_requires_grad(true);
      });
    }
    return made;
  }

  template <class Chosen> void renew(Chosen chosen) {
    const torch::NoGradGuard no_grad;
    Parameters fresh = initial(options_);
    std::vector<Tensor> drawn;
    registry::for_each_tensor(fresh, [&](const std::string&, Tensor& tensor, Role) { drawn.push_back(tensor); });
    auto next = drawn.begin();
    registry::for_each_tensor(tensors_, [&](const std::string& path, Tensor& tensor, Role) {
      if (tensor.defined() && chosen(path)) tensor.copy_(*next);
      ++next;
    });
  }

  void check(Inputs inputs) {
    static const registry::FormInfo info = registry::form_info<F>(registry::class_name<F>());
    registry::check_named(info, registry::named_tensors(inputs), registry::named_tensors(tensors_));
  }

  void clone_(torch::nn::Module& other, const optional<torch::Device>& device) override {
    *this = *std::dynamic_pointer_cast<ModuleImpl>(other.clone(device));
  }

  Options options_;
  Parameters tensors_;  // handles of the registered tensors
};

/// The layer of a form.
template <class F> class Module : public torch::nn::ModuleHolder<ModuleImpl<F>> {
 public:
  using Impl = ModuleImpl<F>;
  using Inputs = typename F::Inputs;

  explicit Module(typename F::Options options = {}) : Module(std::make_shared<Impl>(std::move(options))) {}
  Module(std::shared_ptr<Impl> impl) : torch::nn::ModuleHolder<Impl>(std::move(impl)) {}  // NOLINT(google-explicit-constructor): as torch's

  auto operator()(const Inputs& inputs) { return this->get()->forward(inputs); }
  /// The inputs in order.
  template <class... More> auto operator()(const Tensor& first, More&&... more) {
    return this->get()->forward(Inputs(first, std::forward<More>(more)...));
  }
};

}  // namespace foveate
