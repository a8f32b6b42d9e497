// How many members an aggregate has, so that one forgotten in fields() is noticed.
#pragma once
#include <cstddef>
#include <type_traits>
#include <utility>

namespace foveate::registry {

/// Converts to any member type, but not to the aggregate itself (that would be a copy).
template <class Aggregate> struct AnyMember {
  template <class T, class = std::enable_if_t<!std::is_same_v<T, Aggregate>>> operator T&() const&;
  template <class T, class = std::enable_if_t<!std::is_same_v<T, Aggregate>>> operator T&&() const&&;
};

template <class T, std::size_t... I> consteval bool takes(std::index_sequence<I...>) {
  return requires { T{(static_cast<void>(I), AnyMember<T>{})...}; };
}

/// The largest number of initialisers that T accepts.
template <class T, std::size_t most = 64> consteval std::size_t member_count() {
  if constexpr (most == 0 || takes<T>(std::make_index_sequence<most>{})) {
    return most;
  } else {
    return member_count<T, most - 1>();
  }
}

}  // namespace foveate::registry
