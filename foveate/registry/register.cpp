// What the registry does once per form, whatever its type: schema, operator, checks of arguments, row of the catalogue.
#include <ATen/core/dispatch/Dispatcher.h>
#include <foveate/catalogue.h>
#include <foveate/contract.h>
#include <foveate/json.h>
#include <torch/library.h>

#include <cctype>
#include <charconv>
#include <cmath>
#include <deque>
#include <map>
#include <memory>
#include <sstream>

namespace foveate::registry {
namespace {

std::deque<FormInfo>& forms() {  // a deque: kernels keep pointers into it
  static std::deque<FormInfo> all;
  return all;
}

std::string flat(std::string name) {  // "norm.weight" is the argument norm_weight
  for (char& c : name) c = c == '.' ? '_' : c;
  return name;
}

/// "Tensor q, Tensor? mask=None": inputs, positional.
void write_inputs(std::ostream& s, const FormInfo& info) {
  for (const auto& field : info.inputs) {
    s << (&field == &info.inputs.front() ? "" : ", ") << field.type << ' ' << field.name;
    if (field.type.back() == '?') s << "=None";
  }
}

/// ", *, Tensor weight, Tensor(a!) running_mean, int heads, bool bias=True": parameters, then options, by name.
void write_named(std::ostream& s, const FormInfo& info, bool with_parameters, bool with_training, bool first) {
  std::vector<std::string> named;
  if (with_parameters && info.listed) {
    named = {"Tensor?[] parameters", "Tensor(a!)?[] buffers"};
  } else if (with_parameters) {
    char alias = 'a';
    for (const auto& field : info.parameters) {
      std::string type = field.type;
      if (field.role == Role::buffer) type.insert(6, std::string("(") + alias++ + "!)");  // after "Tensor"
      named.push_back(type + " " + flat(field.name) + (type.back() == '?' ? "=None" : ""));
    }
  }
  for (const auto& field : info.options) {
    named.push_back(field.type + " " + field.name + (field.role == Role::required ? "" : "=" + field.value));
  }
  if (with_training) named.emplace_back("bool training=False");
  for (std::size_t i = 0; i < named.size(); ++i) s << (i == 0 ? (first ? "*, " : ", *, ") : ", ") << named[i];
}

std::string forward_schema(const FormInfo& info) {
  std::ostringstream s;
  s << info.name << '(';
  write_inputs(s, info);
  write_named(s, info, true, info.training, info.inputs.empty());
  s << ") -> ";
  if (info.outputs.size() == 1) return s.str() + info.outputs[0].type;
  s << '(';
  for (const auto& field : info.outputs) s << (&field == &info.outputs.front() ? "" : ", ") << field.type << ' ' << field.name;
  return s.str() + ')';
}

std::string step_schema(const FormInfo& info) {
  std::ostringstream s;
  s << info.name << "_step(";
  write_inputs(s, info);
  s << ", Tensor[]? state=None";
  write_named(s, info, true, info.step_training, false);
  s << ") -> (";
  for (const auto& field : info.outputs) s << field.type << ' ' << field.name << ", ";
  return s.str() + "Tensor[] next_state)";
}

std::string init_schema(const FormInfo& info) {
  std::ostringstream s;
  s << '_' << info.name << "_init(";
  write_named(s, info, false, false, true);
  s << ") -> (Tensor[] tensors, str description)";
  return s.str();
}

/// A form as a boxed kernel.
struct FormKernel final : c10::OperatorKernel {
  const FormInfo* info;
  void (*call)(const FormInfo&, Stack&);
  FormKernel(const FormInfo* form, void (*function)(const FormInfo&, Stack&)) : info(form), call(function) {}
  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, Stack* stack) { call(*info, *stack); }
};

void define(const std::string& schema, const FormInfo* info, void (*call)(const FormInfo&, Stack&)) {
  static torch::Library library(torch::Library::FRAGMENT, "foveate", std::nullopt, __FILE__, __LINE__);
  library.def(torch::schema(schema.c_str()), {at::Tag::pt2_compliant_tag});
  const std::string name = schema.substr(0, schema.find('('));
  // Under vmap a composite operator would be looped over samples; registered as a decomposition it is traced through instead.
  for (const auto key : {c10::DispatchKey::CompositeImplicitAutograd, c10::DispatchKey::FuncTorchBatchedDecomposition}) {
    library.impl(name.c_str(), torch::dispatch(key, torch::CppFunction::makeFromBoxedFunctor(std::make_unique<FormKernel>(info, call))));
  }
}

}  // namespace

int add(FormInfo form) {
  auto& info = forms().emplace_back(std::move(form));
  constexpr std::size_t most = 64;  // arguments that torch's dispatcher takes; beside the fields may stand `state` and `training`
  info.listed = info.listed || info.inputs.size() + info.parameters.size() + info.options.size() + 2 > most;
  define(forward_schema(info), &info, info.forward);
  if (info.streams) define(step_schema(info), &info, info.step);
  if (info.init) define(init_schema(info), &info, [](const FormInfo& self, Stack& stack) { self.init(stack); });
  return static_cast<int>(forms().size());
}

void check_members(std::string_view owner, std::size_t counted, std::size_t listed) {
  TORCH_CHECK(counted == listed, "foveate: ", owner, ": the struct has ", counted, " members and fields() names ", listed);
}

std::string snake_case(std::string_view class_name) {
  std::string name;
  for (std::size_t i = 0; i < class_name.size(); ++i) {
    const auto at = [&](std::size_t j) { return j < class_name.size() ? static_cast<unsigned char>(class_name[j]) : 0; };
    const bool starts_word = std::isupper(at(i)) && i > 0 && (!std::isupper(at(i - 1)) || (std::islower(at(i + 1))));  // ...aB... or the C of ABCase
    if (starts_word) name += '_';
    name += static_cast<char>(std::tolower(at(i)));
  }
  return name;
}

/// Parses "bool [B,M] True where a key takes part" into dtype, shape and text.
Field tensor_field(std::string name, std::string type, std::string_view text, Role role) {
  Field field{.name = std::move(name), .type = std::move(type), .dtype = "float", .shape = "?", .role = role};
  for (const std::string_view dtype : {"bool ", "int "}) {
    if (text.starts_with(dtype)) {
      field.dtype = dtype.substr(0, dtype.size() - 1);
      text.remove_prefix(dtype.size());
    }
  }
  if (text.starts_with('[')) {
    const auto end = text.find(']');
    field.shape = text.substr(1, end - 1);
    text.remove_prefix(end + 1);
    while (text.starts_with(' ')) text.remove_prefix(1);
  }
  field.text = text;
  return field;
}

std::string schema_value(double value) {
  std::array<char, 32> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  std::string text(digits.data(), end);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";  // the schema parser tells 1 from 1.0
  return text;
}

std::string schema_value(std::string_view value) { return '"' + std::string(value) + '"'; }

int64_t find_choice(std::string_view field, std::string_view value, const std::string_view* choices, std::size_t count) {
  std::string expected;
  for (std::size_t i = 0; i < count; ++i) {
    if (choices[i] == value) return static_cast<int64_t>(i);
    expected += (i ? ", " : "") + std::string(choices[i]);
  }
  TORCH_CHECK_VALUE(false, field, " must be one of ", expected, "; got '", value, "'");
}

// --- checks of arguments -----------------------------------------------------------------------------------------------------

namespace {

/// Sizes that the letters of shapes have taken so far in a call.
struct Bound {
  std::string letter, owner;
  Size size;
};

struct Checker {
  const std::string& form;
  std::vector<Bound> bound = {};
  std::string first_float = {};
  at::ScalarType dtype = at::ScalarType::Undefined;
  std::string first = {};
  std::optional<at::Device> device = std::nullopt;

  void tensor(const Field& field, const std::string& name, const Tensor& t) {
    const auto type = t.scalar_type();
    if (field.dtype == "float") {
      TORCH_CHECK_TYPE(at::isFloatingType(type), form, ": ", name, " must be floating point, got ", type);
      if (first_float.empty()) {
        first_float = name;
        dtype = type;
      }
      TORCH_CHECK_TYPE(type == dtype, form, ": ", name, " must be ", dtype, " like ", first_float, ", got ", type);
    } else if (field.dtype == "bool") {
      TORCH_CHECK_TYPE(type == at::kBool, form, ": ", name, " must be bool, got ", type);
    } else {
      TORCH_CHECK_TYPE(type == at::kLong || type == at::kInt, form, ": ", name, " must be an integer tensor, got ", type);
    }
    if (!device) {
      first = name;
      device = t.device();
    }
    TORCH_CHECK_VALUE(t.device() == *device, form, ": ", name, " must be on ", *device, " like ", first, ", got ", t.device());
    if (field.shape != "?") shape(field, name, t);
  }

 private:
  void shape(const Field& field, const std::string& name, const Tensor& t) {
    std::vector<std::string> letters;
    std::istringstream list(field.shape);
    for (std::string letter; std::getline(list, letter, ',');) letters.push_back(letter);
    const bool open = !letters.empty() && letters.front() == "...";
    if (open) letters.erase(letters.begin());
    const auto rank = static_cast<int64_t>(letters.size());
    const bool fits = open ? t.dim() >= rank : t.dim() == rank;
    TORCH_CHECK_VALUE(fits, form, ": ", name, " must be [", field.shape, "], got ", t.sym_sizes());
    for (int64_t i = 0; i < rank; ++i) {
      const auto& letter = letters[static_cast<std::size_t>(i)];
      if (letter == "*") continue;
      const Size got = t.sym_size(i - rank);
      if (std::isdigit(static_cast<unsigned char>(letter[0]))) {
        TORCH_CHECK_VALUE(got == int64_t{std::stoll(letter)}, form, ": ", name, " must be [", field.shape, "], got ", t.sym_sizes());
        continue;
      }
      const auto known = std::find_if(bound.begin(), bound.end(), [&](const Bound& b) { return b.letter == letter; });
      if (known == bound.end()) {
        bound.push_back({letter, name, got});
      } else {
        TORCH_CHECK_VALUE(got == known->size, form, ": ", name, " must be [", field.shape, "] with ", letter, " = ", known->size, " as in ",
                          known->owner, ", got ", t.sym_sizes());
      }
    }
  }
};

/// Whether "blocks.*.up.weight" stands for "blocks.0.up.weight".
bool stands_for(std::string_view pattern, std::string_view path) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '*') {
      if (at == path.size() || pattern[i] != path[at]) return false;
      ++at;
      continue;
    }
    const std::size_t start = at;
    while (at < path.size() && std::isdigit(static_cast<unsigned char>(path[at]))) ++at;
    if (at == start) return false;
  }
  return at == path.size();
}

}  // namespace

void check_arguments(const FormInfo& info, const IValue* arguments, bool with_state) {
  Checker check{.form = info.name};
  for (const auto& field : info.inputs) {
    const IValue& value = *arguments++;
    if (value.isTensor()) check.tensor(field, field.name, value.toTensor());
  }
  if (info.listed) return;
  if (with_state) ++arguments;
  for (const auto& field : info.parameters) {
    const IValue& value = *arguments++;
    if (value.isTensor()) check.tensor(field, field.name, value.toTensor());
  }
}

void check_named(const FormInfo& info, const NamedTensors& inputs, const NamedTensors& parameters) {
  Checker check{.form = info.name};
  const auto each = [&](const std::vector<Field>& fields, const NamedTensors& tensors) {
    for (const auto& [path, tensor] : tensors) {
      const auto field =
          std::find_if(fields.begin(), fields.end(), [&](const Field& f) { return stands_for(f.type == "Tensor[]" ? f.name + ".*" : f.name, path); });
      TORCH_INTERNAL_ASSERT(field != fields.end(), info.name, ": ", path);
      TORCH_CHECK_VALUE(tensor.defined() || field->type != "Tensor", info.name, ": ", path, " is missing: expected a tensor (", field->text,
                        "), got None");
      if (tensor.defined()) check.tensor(*field, path, tensor);
    }
  };
  each(info.inputs, inputs);
  each(info.parameters, parameters);
}

void refuse_short_lists(const FormInfo& info, const std::vector<std::string>& parameters, std::size_t parameters_given,
                        const std::vector<std::string>& buffers, std::size_t buffers_given) {
  const auto check = [&](const char* list, const std::vector<std::string>& names, std::size_t given) {
    TORCH_CHECK_VALUE(given >= names.size(), info.name, ": ", list, " must be ", names.size(), " tensors with these options, got ", given, ": ",
                      names[given], " is missing");
  };
  check("parameters", parameters, parameters_given);
  check("buffers", buffers, buffers_given);
  TORCH_CHECK(false, info.name, ": parameters or buffers end early");
}

// --- the catalogue -----------------------------------------------------------------------------------------------------------

namespace {

constexpr std::array family_names{"softmax", "sparse", "linear", "select", "lowrank", "memory", "vision", "aggregate", "positions"};
constexpr std::array causality_names{"none", "strict", "logits only"};
constexpr std::array role_names{"plain", "required", "buffer"};

void write_fields(json::Writer& w, std::string_view key, const std::vector<Field>& fields) {
  w.key(key).open('[');
  for (const auto& field : fields) {
    w.open('{').pair("name", field.name).pair("type", field.type).pair("text", field.text);
    w.pair("role", role_names[static_cast<std::size_t>(field.role)]);
    if (!field.dtype.empty()) w.pair("dtype", field.dtype).pair("shape", field.shape);
    if (!field.value.empty()) w.pair("default", field.value);
    if (!field.choices.empty()) w.key("choices").list(field.choices);
    w.close('}');
  }
  w.close(']');
}

}  // namespace

std::string catalogue_json() {
  json::Writer w;
  w.open('[');
  for (const auto& [card, forms] : catalogue()) {
    w.open('{').pair("slug", card->slug).pair("title", card->title).pair("paper", card->paper).pair("year", int64_t{card->year});
    w.pair("family", family_names[static_cast<std::size_t>(card->family)]).pair("cost", card->cost);
    w.pair("causality", causality_names[static_cast<std::size_t>(card->causality)]).pair("equation", card->equation);
    w.key("forms").open('[');
    for (const FormInfo* form : forms) {
      w.open('{').pair("name", form->name).pair("class_name", form->class_name).pair("summary", form->form.summary);
      w.pair("example", form->form.example)
          .pair("listed", form->listed)
          .pair("training", form->training)
          .pair("step_training", form->step_training)
          .pair("streams", form->streams);
      w.pair("has_parameters", form->init != nullptr);
      write_fields(w, "inputs", form->inputs);
      write_fields(w, "parameters", form->parameters);
      write_fields(w, "options", form->options);
      write_fields(w, "outputs", form->outputs);
      write_fields(w, "state", form->state);
      w.close('}');
    }
    w.close(']').close('}');
  }
  w.close(']');
  return w.text();
}

void push_parameters(Stack& stack, std::vector<std::pair<std::string, Tensor>> tensors, const std::vector<Role>& roles) {
  json::Writer w;
  std::vector<Tensor> present;
  w.open('[');
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto& [name, tensor] = tensors[i];
    w.open('{').pair("name", name).pair("buffer", roles[i] == Role::buffer).pair("present", tensor.defined()).close('}');
    if (tensor.defined()) present.push_back(std::move(tensor));
  }
  w.close(']');
  stack.emplace_back(std::move(present));
  stack.emplace_back(w.text());
}

TORCH_LIBRARY_FRAGMENT(foveate, m) { m.def("catalogue() -> str", &catalogue_json); }

}  // namespace foveate::registry

namespace foveate {

std::vector<Mechanism> catalogue() {
  std::map<std::string_view, Mechanism> by_slug;
  for (const auto& form : registry::forms()) {
    auto& mechanism = by_slug[form.form.card->slug];
    mechanism.card = form.form.card;
    mechanism.forms.push_back(&form);
  }
  std::vector<Mechanism> all;
  for (auto& [slug, mechanism] : by_slug) {
    std::sort(mechanism.forms.begin(), mechanism.forms.end(), [](auto* a, auto* b) { return a->name < b->name; });
    all.push_back(std::move(mechanism));
  }
  return all;
}

}  // namespace foveate
