#include "csrc/rl/diagnosis.h"

#include <stdexcept>

#include "csrc/data/diagnosis.h"
#include "csrc/message.h"
#include "csrc/rl/question_game.h"

namespace isentrope::rl {
namespace {

class Practice : public Environment {
 public:
  explicit Practice(std::string gain) : gain_(std::move(gain)) {}

  std::unique_ptr<Episode> reset(const data::Example& example, uint64_t seed, std::string*) const override {
    try {
      data::QuestionTable table = data::diagnosis_table(example.columns);
      const size_t hidden = table.find(example.answer);
      if (hidden == table.names.size())
        throw std::runtime_error("the table has no disease " + isentrope::quoted(example.answer));
      // A prior of one disease has no entropy, and nothing is learnt about it.
      const double H = data::entropy_of(table.prior);
      return std::make_unique<QuestionGame>(
          table, hidden,
          [table, hidden, seed](size_t question, uint64_t) { return data::finding_of(table, hidden, question, seed); },
          QuestionGame::Counting{.gain = gain_, .scale = H > 0 ? H : 1, .likeliest = true});
    } catch (const std::exception& error) {
      throw std::runtime_error("environment, diagnosis: the example " + isentrope::quoted(example.prompt) + ": " +
                               error.what() + "; it wants those of data.episodes");
    }
  }

 private:
  std::string gain_;
};

}  // namespace

std::shared_ptr<const Environment> Diagnosis::make() const { return std::make_shared<Practice>(gain); }

}  // namespace isentrope::rl
