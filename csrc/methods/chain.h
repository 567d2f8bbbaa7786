// Methods of one place in the order in which they are applied, with what passes from step to step.
#pragma once
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csrc/methods/method.h"
#include "csrc/one_of.h"

namespace isentrope::methods {

// Entry: a OneOf. A copy has its own state: methods assign a new tensor to it and never write into the old one.
template <class Entry>
class Chain {
 public:
  Chain() = default;
  explicit Chain(std::vector<Entry> entries) : entries_(std::move(entries)) {
    for (const Entry& entry : entries_)
      states_.push_back(std::visit(
          []<class M>(const M& method) {
            if constexpr (requires { method.initial_state(); })
              return method.initial_state();
            else
              return Tensor();
          },
          entry.value));
  }

  bool empty() const { return entries_.empty(); }
  const std::vector<Entry>& entries() const { return entries_; }

  // function(method, context) of each in order.
  template <class Function>
  void each(std::map<std::string, double>& stats, Function function) {
    for (size_t i = 0; i < entries_.size(); ++i)
      std::visit([&](const auto& method) { function(method, Context{states_[i], stats}); }, entries_[i].value);
  }
  // apply() of those that have one; input is what they change or see.
  template <class Input>
  void apply(Input& input, std::map<std::string, double>& stats) {
    each(stats, [&](const auto& method, Context context) {
      if constexpr (requires { method.apply(input, context); }) method.apply(input, context);
    });
  }
  // What an update has seen, by the names of csrc/train/metrics.h, for those that follow it; what they say of themselves.
  std::map<std::string, double> observe(const std::map<std::string, double>& seen) {
    std::map<std::string, double> told;
    each(told, [&](const auto& method, Context context) {
      if constexpr (requires { method.observe(seen, context); }) method.observe(seen, context);
    });
    return told;
  }
  // Whether one of them says so: kNeeds… of its struct.
  template <class Question>
  bool any(Question question) const {
    bool found = false;
    for (const Entry& entry : entries_)
      std::visit([&](const auto& method) { found = found || question(method); }, entry.value);
    return found;
  }

  // For a checkpoint: "<place>/<number>/<kind>" of each method that has a state; "<place>.<kind>" of one that has kAlone, which no list
  // holds but a key of its own.
  void save(const std::string& place, std::map<std::string, Tensor>& state) const {
    for (size_t i = 0; i < entries_.size(); ++i)
      if (states_[i].defined()) state[key(place, i)] = states_[i];
  }
  // Throws std::runtime_error where a method's state is not there, or of another size; one that has kAlone then begins anew.
  void restore(const std::string& place, const std::map<std::string, Tensor>& state) {
    std::vector<Tensor> found = states_;
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (!states_[i].defined()) continue;
      const auto one = state.find(key(place, i));
      if (one == state.end() && alone(i)) continue;
      if (one == state.end())
        throw std::runtime_error(place + ": the checkpoint stands in a phase without " + entries_[i].kind() +
                                 " at place " + std::to_string(i) +
                                 " of the list; put the list back as it was, or start the phase anew");
      const bool grows = std::visit(
          []<class M>(const M&) {
            return requires { M::kGrowingState; };
          },
          entries_[i].value);
      if ((one->second.numel() != states_[i].numel() && !grows) || one->second.scalar_type() != torch::kFloat64)
        throw std::runtime_error(place + ": the checkpoint has " + std::to_string(one->second.numel()) +
                                 " numbers of " + entries_[i].kind() + ", wanted " +
                                 std::to_string(states_[i].numel()) + "; it is of another version, or damaged");
      found[i] = one->second;
    }
    states_ = std::move(found);
  }

 private:
  std::string key(const std::string& place, size_t i) const {
    return alone(i) ? place + "." + entries_[i].kind() : place + "/" + std::to_string(i) + "/" + entries_[i].kind();
  }
  bool alone(size_t i) const {
    return std::visit(
        []<class M>(const M&) {
          return requires { M::kAlone; };
        },
        entries_[i].value);
  }

  std::vector<Entry> entries_;
  std::vector<Tensor> states_;  // undefined: it has none
};

}  // namespace isentrope::methods
