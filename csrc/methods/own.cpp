#include "csrc/methods/own.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <stdexcept>

namespace isentrope::methods {
namespace {

constexpr const char* kState = "state";

std::string full_name(const std::string& op) {
  return op.find("::") == std::string::npos ? "isentrope::method_" + op : op;
}

std::string listed(const NamedTensors& tensors) {
  std::string names;
  for (const auto& [name, x] : tensors) names += (names.empty() ? "" : ", ") + name;
  return names;
}

// A setting, written as JSON, as an argument of that type.
std::optional<c10::IValue> value_of(const std::string& text, const c10::TypePtr& type) {
  if (const auto optional = type->cast<c10::OptionalType>())
    return text == "null" ? std::optional(c10::IValue()) : value_of(text, optional->getElementType());
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  switch (type->kind()) {
    case c10::TypeKind::FloatType:
      if (is_number) return number;
      break;
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      if (is_number && number == static_cast<double>(static_cast<int64_t>(number))) return static_cast<int64_t>(number);
      break;
    case c10::TypeKind::BoolType:
      if (text == "true" || text == "false") return text == "true";
      break;
    case c10::TypeKind::StringType:
      if (text.size() >= 2 && text.front() == '"') return text.substr(1, text.size() - 2);
      break;
    default:
      break;
  }
  return std::nullopt;
}

// The arguments of the operator; tensors may be undefined, where only their names count.
torch::jit::Stack arguments_of(const c10::FunctionSchema& schema, const NamedTensors& tensors,
                               const std::map<std::string, std::string>& settings) {
  const std::string name = schema.name();
  const bool keeps = tensors.contains(kState);
  torch::jit::Stack stack;
  auto left = settings;
  for (const c10::Argument& argument : schema.arguments()) {
    const auto setting = left.find(argument.name());
    if (const auto tensor = tensors.find(argument.name()); tensor != tensors.end()) {
      stack.emplace_back(tensor->second);
    } else if (setting != left.end()) {
      const auto value = value_of(setting->second, argument.type());
      if (!value)
        throw std::invalid_argument(name + ": " + argument.name() + " is " + setting->second + "; wanted " +
                                    argument.type()->str());
      stack.push_back(*value);
      left.erase(setting);
    } else if (argument.name() == kState) {
      throw std::invalid_argument(name + " keeps a state; say what it begins with, as state: [0.0]");
    } else if (argument.default_value()) {
      stack.push_back(*argument.default_value());
    } else {
      throw std::invalid_argument(name + " wants " + argument.name() + ", which is none of " + listed(tensors) +
                                  " and no key of the entry");
    }
  }
  if (!left.empty())
    throw std::invalid_argument(name + " has no argument " + left.begin()->first + "; take the key out");
  if (keeps && !schema.argumentIndexWithName(kState))
    throw std::invalid_argument(name + " has no argument state; take the key out");
  const auto& returns = schema.returns();
  if (returns.size() != (keeps ? 2 : 1) || !std::all_of(returns.begin(), returns.end(), [](const c10::Argument& one) {
        return one.type()->kind() == c10::TypeKind::TensorType;
      }))
    throw std::invalid_argument(name + " returns something else than " +
                                (keeps ? "two tensors, its result and the new state" : "one tensor"));
  return stack;
}

c10::OperatorHandle find(const std::string& op) {
  const auto found = c10::Dispatcher::singleton().findSchema({full_name(op), ""});
  if (!found)
    throw std::invalid_argument("there is no operator " + full_name(op) +
                                "; name its library in run.libraries, or register it in Python before the trainer "
                                "(isentrope.methods.register)");
  return *found;
}

NamedTensors tensors_of(const Update& u) {
  return {{"mask", u.mask},
          {"advantage", u.advantage},
          {"logprob", u.logprob},
          {"old_logprob", u.old_logprob},
          {"entropy", u.entropy},
          {"old_entropy", u.old_entropy},
          {"sampling_logprob", u.drawn_by()}};
}

NamedTensors tensors_of(const Update& u, int64_t step) {
  NamedTensors all = tensors_of(u);
  all["kept"] = u.kept;
  all["step"] = torch::full({}, step, torch::kInt64);
  return all;
}

NamedTensors tensors_of(const Completions& c, bool advantage) {
  NamedTensors all{{"mask", c.mask},       {"token", c.token},   {"logprob", c.logprob},
                   {"entropy", c.entropy}, {"length", c.length}, {"stopped", c.stopped},
                   {"group", c.group},     {"right", c.right},   {"reward", c.reward}};
  if (advantage) all["advantage"] = c.advantage;
  return all;
}

}  // namespace

Tensor OwnMethod::initial_state() const { return state.empty() ? Tensor() : torch::tensor(state, torch::kFloat64); }

std::string OwnMethod::problem_with(NamedTensors names) const {
  if (!state.empty()) names[kState] = Tensor();
  try {
    arguments_of(find(op).schema(), names, settings);
    return "";
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

Tensor OwnMethod::call(NamedTensors tensors, at::IntArrayRef wanted, Context& context) const {
  const torch::NoGradGuard no_grad;
  const c10::OperatorHandle handle = find(op);
  if (!state.empty()) tensors[kState] = context.state.clone();  // an operator may write into what it is given
  torch::jit::Stack stack = arguments_of(handle.schema(), tensors, settings);
  handle.callBoxed(stack);
  const Tensor result = stack.at(0).toTensor();
  const auto refuse = [&](const std::string& what) {
    throw std::invalid_argument(full_name(op) + " returned " + what);
  };
  if (result.sizes() != wanted)
    refuse("a tensor of shape " + c10::str(result.sizes()) + "; wanted " + c10::str(wanted));
  if (!result.isfinite().all().item<bool>()) refuse("a number that is not finite");
  if (state.empty()) return result;
  const Tensor next = stack.at(1).toTensor();
  if (next.sizes() != context.state.sizes() || next.scalar_type() != torch::kFloat64)
    refuse("a state of shape " + c10::str(next.sizes()) + " and dtype " + c10::toString(next.scalar_type()) +
           "; wanted " + c10::str(context.state.sizes()) + " of Double, as the key state has them");
  if (next.isinf().any().item<bool>()) refuse("a state that is not finite");
  context.state = next.to(torch::kCPU).clone();
  return result;
}

Weighted OwnWeight::apply(const Update& u, Context& context) const {
  const Tensor factor = call(tensors_of(u), u.mask.sizes(), context).to(torch::kFloat32);
  if (factor.masked_select(u.mask).lt(0).any().item<bool>())
    throw std::invalid_argument(full_name(op) + " returned a factor below 0; wanted 0 or more");
  return {factor};
}
std::string OwnWeight::missing() const { return problem_with(tensors_of(Update())); }

Bonus OwnEntropy::bonus(const Update& u, int64_t step, Context& context) const {
  const Tensor weight = call(tensors_of(u, step), u.mask.sizes(), context).to(torch::kFloat32);
  const Tensor counted = weight.masked_select(u.mask);
  const double size = counted.abs().mean(torch::kFloat64).item<double>();
  if (!(size > 0)) return {};  // none, or no token
  // The coefficient that is told is the mean of the weights in size, so that alike they are those of a constant.
  const double coef = counted.sum(torch::kFloat64).item<double>() < 0 ? -size : size;
  return {coef, weight / coef};
}
std::string OwnEntropy::missing() const { return problem_with(tensors_of(Update(), 0)); }

void OwnReward::apply(Completions& c, Context& context) const {
  c.add(op, call(tensors_of(c, false), c.reward.sizes(), context).to(torch::kFloat64));
}
std::string OwnReward::missing() const { return problem_with(tensors_of(Completions(), false)); }

void OwnAdvantage::apply(Completions& c, Context& context) const {
  c.advantage =
      call(tensors_of(c, true), c.mask.sizes(), context).to(torch::kFloat32).masked_fill(c.mask.logical_not(), 0);
}
std::string OwnAdvantage::missing() const { return problem_with(tensors_of(Completions(), true)); }

}  // namespace isentrope::methods
