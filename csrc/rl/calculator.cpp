#include "csrc/rl/calculator.h"

#include "csrc/data/expression.h"

namespace isentrope::rl {
namespace {

class Desk : public Episode {
 public:
  explicit Desk(const std::string& answer) : answer_(answer) { scores = {{"answer", 0}, {"calls", 0}, {"errors", 0}}; }

  Reply step(const std::string& text) override {
    if (!text.ends_with(']')) {
      scores["answer"] = text.ends_with("A" + answer_) ? 1 : 0;
      return {.done = true};
    }
    ++scores["calls"];
    const size_t open = text.rfind('[');
    const auto value = open == std::string::npos
                           ? std::nullopt
                           : data::Expression::read(std::string_view(text).substr(open + 1, text.size() - open - 2));
    if (!value) {
      ++scores["errors"];
      return {.text = "?;", .error = true};
    }
    std::string worked_out = std::to_string(value->numerator);
    if (value->denominator != 1) worked_out.append("/").append(std::to_string(value->denominator));
    return {.text = worked_out + ";"};
  }

 private:
  std::string answer_;
};

class Desks : public Environment {
  std::unique_ptr<Episode> reset(const data::Example& example, uint64_t, std::string*) const override {
    return std::make_unique<Desk>(example.answer);
  }
};

}  // namespace

std::shared_ptr<const Environment> Calculator::make() const { return std::make_shared<Desks>(); }

}  // namespace isentrope::rl
