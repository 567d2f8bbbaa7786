// One of several structs of configuration, told apart by the key `kind`: an entry of a list whose keys depend on what it is.
// Standard library only.
//
//   struct Overlong {
//     static constexpr const char* kKind = "overlong";
//     static constexpr const char* kHelp = "What it does, in a sentence or two, with its source.";
//     int64_t len = 4096;
//     template <class Visitor> void visit(Visitor& v) { v("len", len, …); }     // csrc/field.h
//   };
//   using Shaping = OneOf<Overlong, Ares>;
//
// A struct without kKind, the first if any, declares `kind` among its own keys and takes every kind that is no other's.
#pragma once
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "csrc/field.h"

namespace isentrope {

template <class T>
concept Named = requires {
  T::kKind;
};

template <class... Kinds>
struct OneOf {
  std::variant<Kinds...> value;

  OneOf() = default;
  template <class T>
  requires(std::is_same_v<T, Kinds> || ...) OneOf(T one)
      : value(std::move(one)) {}  // NOLINT: an entry is what stands in it

  // The kinds that have a name, in the order of declaration.
  static std::vector<std::string> names() {
    std::vector<std::string> all;
    const auto add = [&]<class T>(T*) {
      if constexpr (Named<T>) all.emplace_back(T::kKind);
    };
    (add(static_cast<Kinds*>(nullptr)), ...);
    return all;
  }
  static constexpr bool kOpen = (!Named<Kinds> || ...);

  std::string kind() const {
    return std::visit(
        []<class T>(const T& one) {
          if constexpr (Named<T>)
            return std::string(T::kKind);
          else
            return one.kind;
        },
        value);
  }
  // Becomes an entry of that kind with its defaults; false where there is none.
  bool choose(const std::string& kind) {
    bool found = false;
    const auto try_one = [&]<class T>(T*) {
      if constexpr (Named<T>)
        if (kind == T::kKind) value = T(), found = true;
    };
    (try_one(static_cast<Kinds*>(nullptr)), ...);
    const auto take_rest = [&]<class T>(T*) {
      if constexpr (!Named<T>)
        if (!found) value = T(), found = true;
    };
    (take_rest(static_cast<Kinds*>(nullptr)), ...);
    return found;
  }
  // Calls function with a default of each kind.
  template <class Function>
  static void each(Function function) {
    (function(Kinds()), ...);
  }
  // The entry as T, or null.
  template <class T>
  const T* get() const {
    return std::get_if<T>(&value);
  }

  std::string problem() const {
    return std::visit(
        []<class T>(const T& one) {
          if constexpr (requires { one.problem(); })
            return std::string(one.problem());
          else
            return std::string();
        },
        value);
  }

  template <class Visitor>
  void visit(Visitor& v) {
    std::visit(
        [&]<class T>(T& one) {
          if constexpr (Named<T>) {
            std::string kind = T::kKind;
            v("kind", kind, T::kHelp);
          }
          one.visit(v);
        },
        value);
  }
};

// A list of entries that may be written as a single one: `key: {kind: a}` is `key: [{kind: a}]`, and printed so.
template <class Entry>
struct OneOrMore : std::vector<Entry> {
  bool listed = false;  // written as a list

  using std::vector<Entry>::vector;
  template <class T>
  requires std::is_constructible_v<Entry, T> OneOrMore(T one)
      : std::vector<Entry>{Entry(std::move(one))} {}  // NOLINT: a list of what stands there
};

}  // namespace isentrope
