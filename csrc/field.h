// How a configuration struct declares its keys. Standard library only; every owner of a configuration includes it.
//
//   struct ScheduleConfig {
//     std::string kind = "constant";
//     int64_t warmup_steps = 0;
//     template <class Visitor>
//     void visit(Visitor& v) {
//       v("kind", kind, "Shape of the learning rate after warm-up.", one_of({"constant", "cosine"}));
//       v("warmup_steps", warmup_steps, "Steps of linear rise from 0.", at_least(0));
//     }
//     std::string problem() const;   // optional: what is wrong between keys, "" if nothing is
//   };
//
// A visitor is called once a key, in the order of declaration, with (name, member, help[, allowed]). Members may be
// bool, int64_t, double, std::string, std::vector of those (a list of texts may be written as one text), std::optional of
// those, another such struct,
// std::optional of a struct (absent unless its key is written) and std::vector of structs.
// The visitors (parse, print, explain, validate) live in csrc/train/config.cpp, the only user of yaml-cpp.
#pragma once
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

namespace isentrope {

// The values a key may take: numbers in [min, max] (min itself excluded where above), or one of some names.
// For a list, each element. An empty Allowed admits everything of the type, but for two kinds of number that no key can
// mean: infinities, and integers beyond kMostCount where no max says otherwise. What allocates or starts threads has a max of
// its own, low enough that products of two or three such keys stay within int64_t.
struct Allowed {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above = false;
  std::vector<std::string> names = {};
};

// Counts of steps, tokens, examples: a run of a step a millisecond takes a month for this many.
inline constexpr double kMostCount = 2147483647.0;

inline Allowed at_least(double min) { return {.min = min}; }
inline Allowed above(double min) { return {.min = min, .above = true}; }
inline Allowed between(double min, double max) { return {.min = min, .max = max}; }
inline Allowed above_to(double min, double max) { return {.min = min, .max = max, .above = true}; }
inline Allowed one_of(std::initializer_list<const char*> names) {
  return {.names = std::vector<std::string>(names.begin(), names.end())};
}

}  // namespace isentrope
