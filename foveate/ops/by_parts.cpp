#include <foveate/by_parts.h>

#include <foveate/attention_formula.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <sstream>

namespace foveate::ops {
namespace {

struct Range {
  int64_t begin = 0, length = 0;
};
struct Part {
  Range queries, keys;
};

/// Along which dimension a tensor follows the queries or the keys.
struct Axis {
  int64_t dim;
  bool keys;
};

optional<Axis> axis_of(const registry::Field& field) {
  std::istringstream letters(field.shape);
  int64_t dim = 0;
  for (std::string letter; std::getline(letters, letter, ','); ++dim) {
    if (letter == "N" || letter == "M") return Axis{.dim = dim, .keys = letter == "M"};
  }
  if (field.name == "key_mask") return Axis{.dim = 1, .keys = true};  // [B,*] where the keys may be of the sequence itself
  return {};
}

Tensor cut(const Tensor& t, const optional<Axis>& axis, const Part& part) {
  if (!t.defined() || !axis) return t;
  const Range& range = axis->keys ? part.keys : part.queries;
  return t.narrow(axis->dim, range.begin, range.length);
}

/// How a call is cut: keys alone, then queries alone, then both, in chunks.
class Cuts {
 public:
  explicit Cuts(const Parted& call) : call_(call) {
    int64_t N = 0;
    optional<int64_t> M;
    for (std::size_t i = 0; i < call.inputs.size(); ++i) {
      const auto& field = call.info.inputs[i];
      axes_.push_back(axis_of(field));
      if (!call.inputs[i].defined() || !axes_[i] || field.name == "key_mask") continue;
      const int64_t length = call.inputs[i].size(axes_[i]->dim);
      if (axes_[i]->keys) M = length;
      else N = length;
    }
    const int64_t keys_in_all = M.value_or(N), both = call.causal ? std::min(N, keys_in_all) : 0, keys = keys_in_all - both, queries = N - both;
    lay(keys, [](Range r) { return Part{.keys = r}; });
    lay(queries, [&](Range r) { return Part{.queries = r, .keys = {.begin = keys}}; });
    lay(both, [&](Range r) {
      return Part{.queries = {.begin = queries + r.begin, .length = r.length}, .keys = {.begin = keys + r.begin, .length = r.length}};
    });
    if (parts_.empty()) parts_.emplace_back();
  }

  const std::vector<Part>& parts() const { return parts_; }

  Tensor input(std::size_t i, const Tensor& whole, const Part& part) const { return cut(whole, axes_[i], part); }
  bool whole(std::size_t i) const { return !axes_[i]; }

  std::vector<Tensor> inputs(const Part& part) const {
    std::vector<Tensor> found;
    for (std::size_t i = 0; i < axes_.size(); ++i) found.push_back(input(i, call_.inputs[i], part));
    return found;
  }

  Tensor result(const Tensor& whole, const Part& part) const { return cut(whole, axis_of(call_.info.outputs[0]), part); }
  Tensor joined(const std::vector<Tensor>& results) const { return at::cat(results, axis_of(call_.info.outputs[0])->dim); }

 private:
  template <class Make> void lay(int64_t length, const Make& make) {
    for (int64_t at = 0; at < length; at += call_.chunk) parts_.push_back(make({.begin = at, .length = std::min(call_.chunk, length - at)}));
  }

  const Parted& call_;
  std::vector<optional<Axis>> axes_;
  std::vector<Part> parts_;
};

/// A tensor of the call and the sum of its gradients; undefined where none is wanted.
struct Total {
  Tensor of, sum;
  Total(const Tensor& t, bool wanted, bool added) {
    if (!wanted) return;
    of = t;
    sum = at::zeros(t.sizes(), added ? t.options().dtype(accumulation_type(t.scalar_type())) : t.options());
  }
};

Tensor leaf(const Tensor& t) { return t.detach().requires_grad_(); }

}  // namespace

std::string by_parts_schema(const registry::FormInfo& info) {
  std::string arguments;
  const auto add = [&](const std::string& type, std::string name) {
    std::replace(name.begin(), name.end(), '.', '_');
    arguments += (arguments.empty() ? "" : ", ") + type + " " + name;
  };
  for (const auto& field : info.inputs) add(field.type, field.name);
  if (info.listed) {
    add("Tensor[]", "parameters");
    add("Tensor[]", "buffers");
  } else {
    for (const auto& field : info.parameters) add(field.type, field.name);
  }
  for (const auto& field : info.options) add(field.type, field.name);
  return "_" + info.name + "_by_parts(" + arguments + ") -> Tensor";
}

Tensor forward_by_parts(const Parted& call) {
  const Cuts cuts(call);
  std::vector<Tensor> results, state;
  for (const auto& part : cuts.parts()) {
    auto [out, next] = call.step(cuts.inputs(part), call.parameters, state);
    if (part.queries.length > 0 || results.empty()) results.push_back(std::move(out));
    state = std::move(next);
  }
  return cuts.joined(results);
}

std::vector<Tensor> backward_by_parts(const Parted& call, const Backward& wanted) {
  const Cuts cuts(call);
  const auto& parts = cuts.parts();
  std::vector<std::vector<Tensor>> states(1);  // before each part
  for (std::size_t p = 0; p + 1 < parts.size(); ++p) states.push_back(call.step(cuts.inputs(parts[p]), call.parameters, states[p]).second);

  std::size_t flag = 0;
  const auto asked = [&](const Tensor& t) { return t.defined() && wanted.wanted[flag++]; };
  std::vector<Total> inputs, parameters;
  for (std::size_t i = 0; i < call.inputs.size(); ++i) inputs.emplace_back(call.inputs[i], asked(call.inputs[i]), cuts.whole(i));
  for (const auto& t : call.parameters) parameters.emplace_back(t, asked(t), true);

  std::vector<Tensor> ahead;  // gradients of the state after a part
  for (std::size_t p = parts.size(); p-- > 0;) {
    const Recording recording;
    const Part& part = parts[p];
    std::vector<Tensor> leaves, sums;  // what is differentiated, and where gradients go
    const auto given = [&](const Total& total, const Tensor& t, const Tensor& sum) {
      if (!total.of.defined()) return t;
      leaves.push_back(leaf(t));
      sums.push_back(sum);
      return leaves.back();
    };
    std::vector<Tensor> in, own, state;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      in.push_back(given(inputs[i], cuts.input(i, call.inputs[i], part), cuts.input(i, inputs[i].sum, part)));
    }
    for (std::size_t i = 0; i < parameters.size(); ++i) own.push_back(given(parameters[i], call.parameters[i], parameters[i].sum));
    for (const auto& t : states[p]) state.push_back(t.is_floating_point() ? leaf(t) : t);
    states.pop_back();
    for (const auto& t : state) {
      if (t.requires_grad()) leaves.push_back(t);
    }

    auto [out, after] = call.step(in, own, state);
    std::vector<Tensor> outputs, gradients;
    const auto add = [&](const Tensor& t, const Tensor& gradient) {
      if (!gradient.defined() || !t.requires_grad()) return;
      outputs.push_back(t);
      gradients.push_back(gradient);
    };
    add(out, cuts.result(wanted.gradients[0], part));
    for (std::size_t i = 0; i < ahead.size(); ++i) add(after[i], ahead[i]);
    if (outputs.empty()) break;
    const auto found = torch::autograd::grad(outputs, leaves, gradients, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      if (found[i].defined()) sums[i].add_(found[i]);
    }
    ahead.clear();
    std::size_t next = sums.size();
    for (const auto& t : state) ahead.push_back(t.requires_grad() ? found[next++] : Tensor());
  }

  std::vector<Tensor> found;
  for (const auto* totals : {&inputs, &parameters}) {
    for (const auto& total : *totals) {
      if (total.of.defined()) found.push_back(total.sum.to(total.of.scalar_type()));
    }
  }
  return found;
}

}  // namespace foveate::ops
