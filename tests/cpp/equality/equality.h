// What a form answers, for the files that tests/cpp/equality/CMakeLists.txt generates: one for each source, which adds its forms.
#pragma once
#include <foveate/module.h>
#include <foveate/safetensors.h>
#include <torch/utils.h>

#include <filesystem>
#include <map>
#include <sstream>
#include <string>

namespace foveate::equality {

namespace fs = std::filesystem;

/// Options from their Python spelling.
struct ReadOptions {
  const std::map<std::string, std::string>& given;

  template <class T> void operator()(std::string_view name, T& member, std::string_view, Role = Role::plain) const {
    const auto found = given.find("option." + std::string(name));
    if (found != given.end()) member = parse<T>(name, found->second);
  }

 private:
  template <class T> static T parse(std::string_view name, const std::string& text) {
    if constexpr (registry::is_optional<T>) return text == "None" ? T() : T(parse<registry::inner<T>>(name, text));
    else if constexpr (std::is_enum_v<T>) return static_cast<T>(registry::find_choice(name, text, names<T>.data(), names<T>.size()));
    else if constexpr (std::is_same_v<T, bool>) return text == "True";
    else if constexpr (std::is_same_v<T, int64_t>) return std::stoll(text);
    else if constexpr (std::is_same_v<T, double>) return std::stod(text);
    else if constexpr (std::is_same_v<T, std::string>) return text;
    else {
      T items;
      std::istringstream list(text);
      for (std::string item; std::getline(list, item, ',');) items.push_back(parse<registry::inner<T>>(name, item));
      return items;
    }
  }
};

/// Inputs by name; those that are not given stay absent.
struct ReadInputs {
  const std::map<std::string, Tensor>& given;

  template <class T> void operator()(std::string_view name, T& member, std::string_view, Role = Role::plain) const {
    const std::string key = "input." + std::string(name);
    if constexpr (registry::is_vector<T>) {
      for (std::size_t i = 0; given.contains(key + "." + std::to_string(i)); ++i) member.push_back(given.at(key + "." + std::to_string(i)));
    } else if (given.contains(key)) {
      member = given.at(key);
    }
  }
};

template <class T> void put(std::map<std::string, Tensor>& answer, const std::string& prefix, T outputs) {
  if constexpr (std::is_same_v<T, Tensor>) answer[prefix + "out"] = outputs.clone();
  else {
    for (const auto& [name, tensor] : registry::named_tensors(outputs)) {
      if (tensor.defined()) answer[prefix + name] = tensor.clone();
    }
  }
}

template <class F> Safetensors answer(const Safetensors& question, const fs::path& state, const fs::path& saved) {
  typename F::Options options{};
  options.fields(ReadOptions{question.metadata});
  typename F::Inputs inputs{};
  inputs.fields(ReadInputs{question.tensors});

  Safetensors answer;
  torch::manual_seed(0);
  Module<F> layer(options);
  for (const auto& item : layer->named_parameters()) answer.tensors["initial." + item.key()] = item.value().clone();
  for (const auto& item : layer->named_buffers()) answer.tensors["initial." + item.key()] = item.value().clone();

  layer->to(torch::kDouble);
  load_safetensors(*layer, state);
  layer->train(question.metadata.contains("training"));
  torch::manual_seed(0);
  put(answer.tensors, "output.", layer->forward(inputs));
  if constexpr (registry::Streams<F>) {
    if (question.metadata.contains("step")) {
      torch::manual_seed(0);
      auto [outputs, next] = layer->step(inputs);
      put(answer.tensors, "step.", outputs);
      put(answer.tensors, "state.", next);
    }
  }
  save_safetensors(*layer, saved);
  return answer;
}

using Answer = Safetensors (*)(const Safetensors& question, const fs::path& state, const fs::path& saved);

/// By the name of the form's operator.
inline std::map<std::string, Answer>& answers() {
  static std::map<std::string, Answer> all;
  return all;
}

template <class F> int add(const char* class_name) {
  answers()[registry::snake_case(class_name)] = &answer<F>;
  return 0;
}

}  // namespace foveate::equality

#define FOVEATE_ANSWER(F) [[maybe_unused]] const int answer_of_##F = ::foveate::equality::add<::foveate::F>(#F);
