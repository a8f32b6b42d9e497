#include <foveate/module.h>

namespace foveate::registry {
namespace {

/// The buffers of a layer itself that are no floating-point numbers, and what they hold.
std::vector<std::pair<Tensor, Tensor>> whole_numbers(const torch::nn::Module& layer) {
  std::vector<std::pair<Tensor, Tensor>> found;
  for (const auto& item : layer.named_buffers(/*recurse=*/false)) {
    if (item.value().defined() && !item.value().is_floating_point()) found.emplace_back(item.value(), item.value().detach());
  }
  return found;
}

}  // namespace

void LayerModule::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  const auto kept = whole_numbers(*this);
  torch::nn::Module::to(device, dtype, non_blocking);
  for (const auto& [buffer, data] : kept) buffer.set_data(data.to(device, non_blocking));
}

void LayerModule::to(torch::Dtype dtype, bool non_blocking) {
  const auto kept = whole_numbers(*this);
  torch::nn::Module::to(dtype, non_blocking);
  for (const auto& [buffer, data] : kept) buffer.set_data(data);
}

std::shared_ptr<torch::nn::Module> GroupModule::clone(const optional<torch::Device>& device) const {
  const torch::NoGradGuard no_grad;
  const auto copied = [&](const Tensor& t) {
    return t.detach().to(device.value_or(t.device()), t.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  };
  auto copy = std::make_shared<GroupModule>();
  for (const auto& item : named_parameters(/*recurse=*/false))
    copy->register_parameter(item.key(), copied(item.value()), item.value().requires_grad());
  for (const auto& item : named_buffers(/*recurse=*/false)) copy->register_buffer(item.key(), copied(item.value()));
  for (const auto& item : named_children()) copy->register_module(item.key(), item.value()->clone(device));
  copy->train(is_training());
  return copy;
}

void GroupModule::clone_(torch::nn::Module& other, const optional<torch::Device>& device) {
  *this = *std::dynamic_pointer_cast<GroupModule>(other.clone(device));
}

void GroupModule::pretty_print(std::ostream& stream) const {
  stream << "Group(";
  const char* separator = "";
  const auto print = [&](const auto& tensors) {
    for (const auto& item : tensors) stream << std::exchange(separator, ", ") << item.key() << '=' << item.value().sizes();
  };
  print(named_parameters(/*recurse=*/false));
  print(named_buffers(/*recurse=*/false));
  stream << ')';
}

void place(torch::nn::Module& layer, std::string_view path, const Tensor& tensor, bool is_buffer) {
  const auto dot = path.find('.');
  std::string name(path.substr(0, dot));
  if (dot == std::string_view::npos) {
    if (is_buffer) layer.register_buffer(std::move(name), tensor);
    else layer.register_parameter(std::move(name), tensor, tensor.requires_grad());
    return;
  }
  const auto children = layer.named_children();
  const auto* known = children.find(name);
  const auto child = known ? *known : layer.register_module(name, std::make_shared<GroupModule>());
  place(*child, path.substr(dot + 1), tensor, is_buffer);
}

}  // namespace foveate::registry
