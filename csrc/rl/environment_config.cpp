#include "csrc/rl/environment_config.h"

#include <stdexcept>

namespace isentrope::rl {

std::shared_ptr<const Environment> PythonEnvironment::make() const {
  struct Absent : Environment {
    std::string name;
    std::unique_ptr<Episode> reset(const data::Example&, uint64_t, std::string*) const override {
      throw std::runtime_error("environment: the class " + name + " is of Python, which this process does not run");
    }
  };
  if (given) return given;
  auto absent = std::make_shared<Absent>();
  absent->name = name;
  return absent;
}

SamplingConfig with_environment(SamplingConfig sampling, const EnvironmentConfig& config,
                                const data::Tokenizer& tokenizer) {
  const ConversationConfig& limits = limits_of(config);
  sampling.stop = limits.stop;
  sampling.conversing = std::make_shared<Conversing>(
      std::visit([](const auto& kind) { return kind.make(); }, config.value), limits, tokenizer);
  return with_rules(sampling, tokenizer);
}

}  // namespace isentrope::rl
