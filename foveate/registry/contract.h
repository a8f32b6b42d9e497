// The contract: a mechanism is a pure function of options, parameters and inputs.  All that the author of a mechanism reads.
//
//   struct FOVEATE_API Tidal {
//     static constexpr Form form{.card = &tidal, .summary = "near keys one by one, far keys as means", .returns = "[B,H,N,Dv]", .example = "..."};
//     struct Options    { int64_t window = 64;  void fields(auto&& f) { f("window", window, "keys seen on each side of a query"); } };
//     struct Inputs     { Tensor q; optional<Tensor> mask;  void fields(auto&& f) { f("q", q, "[B,H,N,D] queries"); ... } };
//     struct Parameters { Tensor moon;  void fields(auto&& f) { f("moon", moon, "[1] how strongly the tides pull"); } };
//     static Parameters init(const Options&);
//     static Tensor forward(const Options&, const Parameters&, const Inputs&);
//   };
//   FOVEATE_MECHANISM(Tidal)                    // in the .cpp file
//
// From that the registry derives the operator foveate::tidal, the C++ module Module<Tidal>, the Python class foveate.nn.Tidal and
// function foveate.tidal, their documentation, and the checks of every argument.
//
// fields(f) names every member once: f(name, member, text[, role]). The text of a tensor may open with its type and shape, which
// are then checked before forward runs: "bool [B,M] True where a key takes part". Letters are sizes and must agree between inputs;
// "*" is any size, a digit that size, and "..." any leading dimensions. Without a type the tensor is floating point, and all
// floating-point tensors of a call share one dtype and device.
//
// What a form may have besides:
//   struct Outputs { Tensor out; ... fields }   several results; forward then returns Outputs instead of Tensor.
//   struct State { ... fields } and static Outputs step(options, parameters, inputs, State&&)   the streaming form; the state goes
//                                               in and comes out (step returns std::pair<result, State>); an empty State starts.
//   a last parameter `bool training` of forward (and of step), for forms that behave differently in training.
//   static Parameters shape(const Options&)     needed where Parameters holds a std::vector<Group>: sized, tensors left empty.
//   static void check(const Options&)           refuses impossible options, naming them.
// A member that fields() forgets is refused when the library loads.
#pragma once
#include <foveate/tensor.h>

#include <string_view>

namespace foveate {

enum class Family { softmax, sparse, linear, select, lowrank, memory, vision, aggregate, positions };
enum class Causality { none, strict, logits_only };

/// What the catalogue says of a mechanism (one paper).
struct Card {
  std::string_view slug;   ///< "tidal"
  std::string_view title;  ///< "Tidal attention"
  std::string_view paper;  ///< arXiv id
  int year;
  Family family;
  std::string_view cost;      ///< claimed, "O(N (window + N / period))"
  Causality causality;        ///< strict: no output depends on a later input; logits_only: the selection looks ahead
  std::string_view equation;  ///< one line
};

/// What the catalogue says of one form of a mechanism: the bare function, the layer, a small model.
struct Form {
  const Card* card;
  std::string_view summary;
  std::string_view returns;  ///< of a form with one result: "[B,N,E] attended sequence"; several describe themselves in Outputs
  std::string_view example;  ///< Python, run by the tests; `foveate` and `torch` are imported
};

/// What a field is, where its type does not say it.
enum class Role {
  plain,
  required,  ///< an option without default
  buffer,    ///< a parameter that is not trained; forward may update it in place
};
inline constexpr Role required = Role::required;
inline constexpr Role buffer = Role::buffer;

/// Names of an enumeration, in order: specialise beside the enum.  `template <> inline constexpr auto names<Kind> = std::array{...};`
template <class E> inline constexpr auto names = nullptr;

/// Options, Parameters or State of a form that has none.
struct None {
  void fields(auto&&) {}
};

}  // namespace foveate

#include <foveate/register.h>
