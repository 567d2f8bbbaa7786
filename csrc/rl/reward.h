// Verifiable rewards: a score for each completion, by name, combined by weights.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"

namespace isentrope::rl {

// What a reward judges of a completion.
struct Answer {
  std::string text;  // without the end of sequence
  bool
      finished;  // the model drew the end of sequence or wrote a text of rollout.stop; false: it was cut at the length limit
  std::map<std::string, double> scores = {};  // of a conversation, by its environment
};
// tokens: the end of sequence included where the model drew it. A text of rollout.stop stays in the text.
Answer answer_of(std::vector<int64_t> tokens, bool finished, const data::Tokenizer& tokenizer);

// "Text" below is that of an Answer, "finished" likewise.
//
//   exact    1 if the text is the example's completion (its answer where it has no completion) but for an end of sequence
//            behind that, else 0
//   answer   without pattern: 1 if the text ends in "A" + the example's answer, else 0
//            with pattern: 1 if group 1 of its last match in the text is the same integer as the example's
//            answer, else 0
//            ("007", " 7" and "+7" are the integer 7; any number of digits)
//   solves   1 if what stands behind the last "A" of the text solves the prompt, else 0: by the rules of data.tint's countdown and
//            path (csrc/data/tint_search.h), which have many right answers; of other prompts, if it is the example's answer
//   format   1 if pattern matches the whole text, else 0; patterns are those of csrc/rl/pattern.h
//   length   1 up to `target` characters of text, then falling in a straight line to 0 at `limit`
//   environment  of a conversation, the score that its environment calls `name`
//   python   what the function in Python that `function` names returns
//   else     the custom function of that name
//
// exact, answer and solves score 0 where the completion is not finished. A function of one's own has no score for a completion to which it
// does not apply.
struct RewardConfig {
  std::string kind = "answer";
  double weight = 1.0;
  std::string name = "";
  std::string pattern = "";
  int64_t target = 0;
  int64_t limit = 0;
  std::string function = "";
  double timeout_s = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind,
      "exact, answer, solves, format, length, environment, python, or the name of a function of your own that is given "
      "otherwise (docs/rewards.md).");
    v("weight", weight, "Factor of the score in the sum; negative for a penalty.", between(-1e6, 1e6));
    v("name", name,
      "Name in metrics, reward/<name>; empty for the kind, or of kind python for the function's own. environment: "
      "which "
      "of its scores (docs/environments.md).");
    v("pattern", pattern,
      "Regular expression (PCRE2, as Perl's). format: the whole text; answer: group 1 of its last match is the "
      "integer. "
      "`.` is any character but a line feed, ^ and $ are the text's ends; (?s) in front lets `.` match line feeds, "
      "(?m) "
      "^ and $ each line's ends, (?i) takes upper and lower case alike.");
    v("target", target, "length: characters up to which the score is 1.", at_least(0));
    v("limit", limit, "length: characters from which on the score is 0.", at_least(0));
    v("function", function,
      "python: FILE.py:NAME, of the configuration's folder; MODULE:NAME; reasoning_gym or math "
      "(isentrope.rewards).");
    v("timeout_s", timeout_s,
      "Functions in Python: seconds after which a call is ended; its completions have no score by it. 0 for no limit.",
      at_least(0));
  }
  std::string problem() const;
  bool in_python() const;      // a function of one's own, named or given
  std::string called() const;  // name, or what takes its place
  std::string metric() const { return "reward/" + called(); }
  // Under which its function stands among the custom ones.
  std::string given_as() const { return kind == "python" ? "python " + function : kind; }
};

// What keeps every completion of the example from a score above 0: an answer that is missing, is no integer where the pattern
// asks for one, or goes on behind the stop. "" where nothing does, and for custom functions.
std::string example_problem(const RewardConfig& config, const data::Example& example, const std::string& stop);

// What a reward says of a batch: a finite score of each completion, or nothing where it does not apply to it.
struct Scores {
  std::vector<std::optional<double>> of;
  bool timed_out = false;  // it was ended at its time limit; `of` holds nothing for every completion

  Scores(std::vector<std::optional<double>> scores, bool ended = false) : of(std::move(scores)), timed_out(ended) {}
  Scores(const std::vector<double>& scores) : of(scores.begin(), scores.end()) {}
};

// Scores of a batch: prompts[i] was completed by completions[i], and examples[i] is what the prompt came from. timeout_s: seconds
// that it may take, 0 for any.
using RewardFunction =
    std::function<Scores(const std::vector<std::string>& prompts, const std::vector<Answer>& completions,
                         const std::vector<data::Example>& examples, double timeout_s)>;

bool is_built_in(const std::string& kind);

// Whether one of the rewards is a function of one's own, which reads the columns of the examples.
bool reads_columns(const std::vector<RewardConfig>& rewards);

struct Rewards {
  // Of the scores that there are: the weighted sum, one a completion; 0 where no reward applies to it.
  std::vector<double> total;
  // Score by the first reward, not weighted: at least 0.5 is a right answer.
  std::vector<std::optional<double>> first;
  // reward/<name>: mean score, not weighted, over the completions that the reward applies to; absent where it applies to none.
  std::map<std::string, double> stats;
  // reward/<name>: each completion's score, not weighted.
  std::vector<std::pair<std::string, std::vector<std::optional<double>>>> scores = {};
  // timeouts/<name> of the rewards with a time limit: completions without a score because of it.
  std::map<std::string, double> timeouts = {};
  // The first completion that no reward applies to.
  std::optional<size_t> unscored = {};
};

// A completion is right where the reward that judges gives it at least 0.5.
inline bool is_right(const std::optional<double>& score) { return score && *score >= 0.5; }

class RewardSum {
 public:
  // stop: the tokenizer's end of sequence. Throws std::invalid_argument for no reward at all, a config with a
  // problem(), a kind that is neither built in nor in custom (names those there are), a custom function with
  // a built-in's name, and two rewards of one metric name.
  RewardSum(const std::vector<RewardConfig>& configs, const std::string& stop,
            const std::map<std::string, RewardFunction>& custom = {});

  // Throws std::runtime_error where a reward returns another count of scores than completions, or one that is
  // not finite (names the reward, the index, the value and the prompt).
  Rewards operator()(const std::vector<std::string>& prompts, const std::vector<Answer>& completions,
                     const std::vector<data::Example>& examples) const;

  double first_weight() const { return parts_.front().config.weight; }
  std::vector<double> weights() const {
    std::vector<double> all;
    for (const Part& part : parts_) all.push_back(part.config.weight);
    return all;
  }

 private:
  struct Part {
    RewardConfig config;
    RewardFunction score;
  };
  std::vector<Part> parts_;
};

}  // namespace isentrope::rl
