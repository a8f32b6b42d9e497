// From fields() to an operator: each member becomes a description (Describe), is read from the dispatcher's stack (Read), and is
// written back to it (Write). What depends on no form lies in register.cpp, working on descriptions alone.
#pragma once
#include <ATen/core/stack.h>
#include <foveate/members.h>

#include <array>
#include <string>
#include <type_traits>
#include <utility>

namespace foveate::registry {

using c10::IValue;
using torch::jit::Stack;

/// One leaf of fields(): `blocks.0.up.weight` for the parameter of a group, "*" standing for each member of a variable group.
struct Field {
  std::string name;
  std::string type;                  // as in an operator schema: "Tensor", "Tensor?", "int", "float?", "str", "int[]"
  std::string value;                 // default, as in an operator schema; empty where there is none
  std::string text;                  // for people
  std::string dtype;                 // of tensors: "float", "bool", "int"
  std::string shape;                 // of tensors: "B,H,N,D"; "?" where the text names none
  std::vector<std::string> choices;  // of enumerations
  Role role = Role::plain;
};

/// Everything about a form that does not depend on its type.
struct FormInfo {
  std::string class_name, name;
  Form form;
  std::vector<Field> inputs, parameters, options, outputs, state;
  bool listed = false;  // parameters travel as two lists: some group is variable in number
  bool training = false, step_training = false;
  bool streams = false;
  void (*forward)(const FormInfo&, Stack&) = nullptr;
  void (*step)(const FormInfo&, Stack&) = nullptr;
  void (*init)(Stack&) = nullptr;
};

/// The name of a form's struct: "MultiheadAttention".
template <class F> constexpr std::string_view class_name() {
  constexpr std::string_view signature = __PRETTY_FUNCTION__;  // "... [with F = foveate::MultiheadAttention; ...]"
  constexpr auto start = signature.find("F = ") + 4;
  constexpr auto name = signature.substr(start, signature.find_first_of(";]", start) - start);
  return name.substr(name.rfind(':') + 1);
}

/// Registers the operators of a form, and its row in the catalogue. Refuses a form whose fields() forgets a member.
FOVEATE_API int add(FormInfo info);
FOVEATE_API std::string snake_case(std::string_view class_name);
FOVEATE_API Field tensor_field(std::string name, std::string type, std::string_view text, Role role);
FOVEATE_API std::string schema_value(double value);
FOVEATE_API std::string schema_value(std::string_view value);
FOVEATE_API int64_t find_choice(std::string_view field, std::string_view value, const std::string_view* choices, std::size_t count);
FOVEATE_API void check_members(std::string_view owner, std::size_t counted, std::size_t listed);

template <class T> struct Inner {
  using type = T;
};
template <class T> struct Inner<std::optional<T>> {
  using type = T;
};
template <class T> struct Inner<std::vector<T>> {
  using type = T;
};
template <class T> using inner = typename Inner<T>::type;
template <class T> inline constexpr bool is_optional = false;
template <class T> inline constexpr bool is_optional<std::optional<T>> = true;
template <class T> inline constexpr bool is_vector = false;
template <class T> inline constexpr bool is_vector<std::vector<T>> = true;
template <class T> concept Group = std::is_class_v<T> && requires(T t) { t.fields([](auto&&...) {}); };

/// The name of a leaf's type in an operator schema.
template <class T> std::string schema_type() {
  if constexpr (is_optional<T>) return schema_type<inner<T>>() + "?";
  else if constexpr (is_vector<T>) return schema_type<inner<T>>() + "[]";
  else if constexpr (std::is_same_v<T, Tensor>) return "Tensor";
  else if constexpr (std::is_same_v<T, bool>) return "bool";
  else if constexpr (std::is_same_v<T, int64_t>) return "int";
  else if constexpr (std::is_same_v<T, Size>) return "SymInt";
  else if constexpr (std::is_same_v<T, double>) return "float";
  else {
    static_assert(std::is_same_v<T, std::string> || std::is_enum_v<T>, "a field of a type that the contract does not know");
    return "str";
  }
}

/// The default of an option in an operator schema.
template <class T> std::string default_value(const T& value) {
  if constexpr (is_optional<T>) return value ? default_value(*value) : "None";
  else if constexpr (is_vector<T>) {
    std::string list;
    for (const auto& item : value) list += (list.empty() ? "" : ", ") + default_value(item);
    return "[" + list + "]";
  } else if constexpr (std::is_enum_v<T>) return schema_value(names<T>[static_cast<std::size_t>(value)]);
  else if constexpr (std::is_same_v<T, std::string>) return schema_value(std::string_view(value));
  else if constexpr (std::is_same_v<T, double>) return schema_value(value);
  else if constexpr (std::is_same_v<T, bool>) return value ? "True" : "False";
  else if constexpr (std::is_same_v<T, Size>) return default_value(value.expect_int());
  else return std::to_string(value);
}

/// Collects the leaves of a struct.
struct Describe {
  std::vector<Field>& leaves;
  bool* listed = nullptr;  // set where a group is variable in number
  std::string prefix = {};
  bool may_be_absent = false;
  std::size_t members = 0;

  template <class T> void operator()(std::string_view name, T& member, std::string_view text, Role role = Role::plain) {
    ++members;
    const std::string path = prefix + std::string(name);
    if constexpr (Group<T>) {
      nested(member, path + ".", may_be_absent);
    } else if constexpr (Group<inner<T>>) {
      inner<T> one{};
      if (is_vector<T>) *listed = true;
      nested(one, path + (is_vector<T> ? ".*." : "."), may_be_absent || is_optional<T>);  // a group of a list is there, whole
    } else if constexpr (std::is_same_v<inner<T>, Tensor>) {
      std::string type = schema_type<T>();
      if (may_be_absent && type == "Tensor") type = "Tensor?";
      leaves.push_back(tensor_field(path, type, text, role));
    } else {
      Field field{.name = path, .type = schema_type<T>(), .text = std::string(text), .role = role};
      if (role != Role::required) field.value = default_value(member);
      using Choice = inner<inner<T>>;  // also of a list, and of a list that may be absent
      if constexpr (std::is_enum_v<Choice>) field.choices.assign(names<Choice>.begin(), names<Choice>.end());
      leaves.push_back(std::move(field));
    }
  }

 private:
  template <class G> void nested(G& group, std::string path, bool absent) {
    Describe inside{.leaves = leaves, .listed = listed, .prefix = std::move(path), .may_be_absent = absent};
    group.fields(inside);
    check_members(inside.prefix, member_count<G>(), inside.members);
  }
};

/// Takes the members of a struct from consecutive values.
struct Read {
  const IValue* value;

  template <class T> void operator()(std::string_view name, T& member, std::string_view, Role = Role::plain) {
    if constexpr (Group<T>) {
      member.fields(*this);
    } else if constexpr (Group<inner<T>>) {
      static_assert(is_optional<T>, "a vector of groups is read from a list");
      inner<T> group{};
      bool present = !value->isNone();
      group.fields(*this);
      if (present) member = std::move(group);
    } else {
      if (!value->isNone()) member = convert<T>(name, *value);
      ++value;
    }
  }

 private:
  template <class T> static T convert(std::string_view name, const IValue& value) {
    if constexpr (is_optional<T>) return convert<inner<T>>(name, value);
    else if constexpr (std::is_enum_v<T>) {
      return static_cast<T>(find_choice(name, value.toStringRef(), names<T>.data(), names<T>.size()));
    } else if constexpr (std::is_same_v<T, Tensor>) return value.toTensor();
    else if constexpr (std::is_same_v<T, std::vector<Tensor>>) return value.toTensorVector();
    else if constexpr (std::is_same_v<T, bool>) return value.toBool();
    else if constexpr (std::is_same_v<T, int64_t>) return value.toInt();
    else if constexpr (std::is_same_v<T, Size>) return value.toSymInt();
    else if constexpr (std::is_same_v<T, double>) return value.toDouble();
    else if constexpr (std::is_same_v<T, std::vector<int64_t>>) return value.toIntVector();
    else if constexpr (is_vector<T>) {  // of an enumeration
      T list;
      for (const IValue& one : value.toListRef()) list.push_back(convert<inner<T>>(name, one));
      return list;
    } else return value.toStringRef();
  }
};

/// Takes the tensors of a struct from two lists, parameters and buffers, where a group is variable in number.
/// An optional group is present where its first tensor is; a trailing std::vector<Tensor> takes what is left.
struct ReadLists {
  c10::ArrayRef<IValue> parameters, buffers;
  bool end_early = false;

  template <class T> void operator()(std::string_view, T& member, std::string_view, Role role = Role::plain) {
    if constexpr (Group<T>) {
      member.fields(*this);
    } else if constexpr (Group<inner<T>> && is_vector<T>) {
      for (auto& group : member) group.fields(*this);
    } else if constexpr (Group<inner<T>>) {
      inner<T> group = member.value_or(inner<T>{});
      const bool present = !parameters.empty() && !parameters.front().isNone();
      group.fields(*this);
      if (present) member = std::move(group);
    } else if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
      for (; !parameters.empty(); parameters = parameters.slice(1)) member.push_back(parameters.front().toTensor());
    } else {
      auto& list = role == Role::buffer ? buffers : parameters;
      if (list.empty()) {
        end_early = true;
        return;
      }
      if (!list.front().isNone()) member = list.front().toTensor();
      list = list.slice(1);
    }
  }
};

/// Visits the tensors of a struct by their dotted names: f(path, tensor or optional tensor, role).
template <class F> struct Leaves {
  F& f;
  std::string prefix = {};

  template <class T> void operator()(std::string_view name, T& member, std::string_view, Role role = Role::plain) {
    const std::string path = prefix + std::string(name);
    if constexpr (Group<T>) nested(member, path);
    else if constexpr (Group<inner<T>> && is_vector<T>) {
      for (std::size_t i = 0; i < member.size(); ++i) nested(member[i], path + "." + std::to_string(i));
    } else if constexpr (Group<inner<T>>) {
      if (member) {
        nested(*member, path);
      } else {  // an absent group still has its places
        inner<T> group{};
        nested(group, path);
      }
    } else if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
      for (std::size_t i = 0; i < member.size(); ++i) f(path + "." + std::to_string(i), member[i], role);
    } else if constexpr (is_optional<T>) {
      Tensor absent;
      f(path, member ? *member : absent, role);
    } else {
      f(path, member, role);
    }
  }

 private:
  template <class G> void nested(G& group, const std::string& path) {
    Leaves inside{f, path + "."};
    group.fields(inside);
  }
};

template <class Struct, class F> void for_each_tensor(Struct& s, F&& f) {
  Leaves<F> leaves{f};
  s.fields(leaves);
}

// --- what a form has ---------------------------------------------------------------------------------------------------------

template <class F> concept Streams = requires { typename F::State; };
template <class F> concept HasShape = requires(const typename F::Options& o) { F::shape(o); };
template <class F> concept HasCheck = requires(const typename F::Options& o) { F::check(o); };
template <class F> concept HasTraining =
    requires(const typename F::Options& o, const typename F::Parameters& p, const typename F::Inputs& i) { F::forward(o, p, i, true); };

template <class F> concept StepHasTraining = requires(const typename F::Options& o, const typename F::Parameters& p, const typename F::Inputs& i,
                                                      typename F::State s) { F::step(o, p, i, std::move(s), true); };

template <class F> typename F::Parameters empty_parameters(const typename F::Options& options) {
  if constexpr (HasShape<F>) return F::shape(options);
  else return {};
}

template <class F> void check_options(const typename F::Options& options) {
  if constexpr (HasCheck<F>) F::check(options);
}

/// Runs forward on structs: the one place that knows whether a form has a training mode.
template <class F> auto run(const typename F::Options& options, const typename F::Parameters& parameters, const typename F::Inputs& inputs,
                            bool training) {
  if constexpr (HasTraining<F>) return F::forward(options, parameters, inputs, training);
  else return F::forward(options, parameters, inputs);
}

/// The same of step.
template <class F, class State> auto run_step(const typename F::Options& options, const typename F::Parameters& parameters,
                                              const typename F::Inputs& inputs, State&& state, bool training) {
  if constexpr (StepHasTraining<F>) return F::step(options, parameters, inputs, std::forward<State>(state), training);
  else return F::step(options, parameters, inputs, std::forward<State>(state));
}

template <class T> void push_outputs(Stack& stack, T& outputs) {
  if constexpr (std::is_same_v<T, Tensor>) {
    stack.emplace_back(outputs);
  } else {
    outputs.fields([&](std::string_view, auto& member, std::string_view, Role = Role::plain) { stack.emplace_back(member); });
  }
}

FOVEATE_API void check_arguments(const FormInfo& info, const IValue* arguments, bool with_state);

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;  // dotted names; absent tensors are undefined

/// The same checks on tensors by name, where parameters are not arguments of their own: in lists, in a module.
FOVEATE_API void check_named(const FormInfo& info, const NamedTensors& inputs, const NamedTensors& parameters);

template <class Struct> NamedTensors named_tensors(Struct& s) {
  NamedTensors named;
  for_each_tensor(s, [&](const std::string& path, const Tensor& tensor, Role) { named.emplace_back(path, tensor); });
  return named;
}

/// The names of all parameters, or of all buffers, in the order of their list.
template <class Struct> std::vector<std::string> places(Struct& s, Role role) {
  std::vector<std::string> names;
  for_each_tensor(s, [&](const std::string& path, const Tensor&, Role its) {
    if ((its == Role::buffer) == (role == Role::buffer)) names.push_back(path);
  });
  return names;
}

/// Throws: one of the lists that were given, of so many tensors, ends before all have their place.
[[noreturn]] FOVEATE_API void refuse_short_lists(const FormInfo& info, const std::vector<std::string>& parameters, std::size_t parameters_given,
                                                 const std::vector<std::string>& buffers, std::size_t buffers_given);

/// The arguments of one call, read in the order of the schema.
template <class F> struct Call {
  typename F::Inputs inputs{};
  typename F::Parameters parameters{};
  typename F::Options options{};
  c10::List<Tensor> state;
  bool training = false;

  Call(const FormInfo& info, const IValue* arguments, bool with_state) {
    check_arguments(info, arguments, with_state);
    const IValue* after_inputs = arguments + info.inputs.size();
    const IValue* parameters_at = after_inputs + (with_state ? 1 : 0);
    const IValue* options_at = parameters_at + (info.listed ? 2 : info.parameters.size());
    Read read_options{options_at};
    options.fields(read_options);
    if (with_state ? info.step_training : info.training) training = read_options.value->toBool();
    check_options<F>(options);
    Read read_inputs{arguments};
    inputs.fields(read_inputs);
    if (with_state && !after_inputs->isNone()) state = after_inputs->toTensorList();
    parameters = empty_parameters<F>(options);
    if (info.listed) {
      const auto trained = parameters_at[0].toList(), updated = parameters_at[1].toList();
      const std::vector<IValue> a(trained.begin(), trained.end()), b(updated.begin(), updated.end());
      ReadLists lists{.parameters = a, .buffers = b};
      parameters.fields(lists);
      if (lists.end_early) refuse_short_lists(info, places(parameters, Role::plain), a.size(), places(parameters, Role::buffer), b.size());
      TORCH_CHECK_VALUE(lists.parameters.empty() && lists.buffers.empty(), info.name, ": parameters: ", lists.parameters.size(), " tensors and ",
                        lists.buffers.size(), " buffers more than these options need");
      check_named(info, named_tensors(inputs), named_tensors(parameters));
    } else if constexpr (!HasShape<F>) {
      Read read_parameters{parameters_at};
      parameters.fields(read_parameters);
    }
  }
};

template <class F> void forward_boxed(const FormInfo& info, Stack& stack) {
  const std::size_t count = info.inputs.size() + (info.listed ? 2 : info.parameters.size()) + info.options.size() + (info.training ? 1 : 0);
  Call<F> call(info, stack.data() + stack.size() - count, false);
  auto outputs = run<F>(call.options, call.parameters, call.inputs, call.training);
  torch::jit::drop(stack, count);
  push_outputs(stack, outputs);
}

template <class F> void step_boxed(const FormInfo& info, Stack& stack) {
  const std::size_t count = info.inputs.size() + 1 + (info.listed ? 2 : info.parameters.size()) + info.options.size() + (info.step_training ? 1 : 0);
  Call<F> call(info, stack.data() + stack.size() - count, true);
  typename F::State state{};
  if (!call.state.empty()) {
    const std::vector<IValue> values(call.state.begin(), call.state.end());
    ReadLists lists{.parameters = values, .buffers = {}};
    state.fields(lists);
  }
  auto [outputs, next] = run_step<F>(call.options, call.parameters, call.inputs, std::move(state), call.training);
  torch::jit::drop(stack, count);
  push_outputs(stack, outputs);
  std::vector<Tensor> tensors;
  for_each_tensor(next, [&](const std::string&, const Tensor& t, Role) { tensors.push_back(t); });
  stack.emplace_back(std::move(tensors));
}

FOVEATE_API void push_parameters(Stack& stack, std::vector<std::pair<std::string, Tensor>> tensors, const std::vector<Role>& roles);

template <class F> void init_boxed(Stack& stack) {
  typename F::Options options{};
  std::vector<Field> fields;
  Describe describe{fields};
  options.fields(describe);
  Read read{stack.data() + stack.size() - fields.size()};
  options.fields(read);
  check_options<F>(options);
  auto parameters = F::init(options);
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::vector<Role> roles;
  for_each_tensor(parameters, [&](const std::string& path, const Tensor& tensor, Role role) {
    tensors.emplace_back(path, tensor);
    roles.push_back(role);
  });
  torch::jit::drop(stack, fields.size());
  push_parameters(stack, std::move(tensors), roles);
}

template <class S> std::vector<Field> describe(std::string_view owner, bool* listed = nullptr) {
  S fields{};
  std::vector<Field> leaves;
  bool ignored = false;
  Describe describe{.leaves = leaves, .listed = listed ? listed : &ignored};
  fields.fields(describe);
  check_members(owner, member_count<S>(), describe.members);
  return leaves;
}

/// Everything the registry derives from a form's type.
template <class F> FormInfo form_info(std::string_view class_name) {
  using Outputs = decltype(run<F>({}, {}, {}, false));
  FormInfo info{.class_name = std::string(class_name), .name = snake_case(class_name), .form = F::form};
  info.inputs = describe<typename F::Inputs>(info.name + " inputs");
  info.parameters = describe<typename F::Parameters>(info.name + " parameters", &info.listed);
  info.options = describe<typename F::Options>(info.name + " options");
  if constexpr (std::is_same_v<Outputs, Tensor>) info.outputs = {tensor_field("out", "Tensor", F::form.returns, Role::plain)};
  else info.outputs = describe<Outputs>(info.name + " outputs");
  info.training = HasTraining<F>;
  info.forward = forward_boxed<F>;
  if constexpr (Streams<F>) {
    info.streams = true;
    info.state = describe<typename F::State>(info.name + " state");
    info.step_training = StepHasTraining<F>;
    info.step = step_boxed<F>;
  }
  if constexpr (!std::is_same_v<typename F::Parameters, None>) info.init = init_boxed<F>;
  return info;
}

}  // namespace foveate::registry

/// Registers a form; stands once, in its .cpp file, inside namespace foveate.
#define FOVEATE_MECHANISM(T) [[maybe_unused]] static const int registered_##T = ::foveate::registry::add(::foveate::registry::form_info<T>(#T));
