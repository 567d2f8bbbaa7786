#include "csrc/rl/reward.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <stdexcept>
#include <string_view>

#include "csrc/data/tint_search.h"
#include "csrc/message.h"
#include "csrc/rl/pattern.h"

namespace isentrope::rl {
namespace {

using data::Example;
using Texts = std::vector<std::string>;

const std::set<std::string> kBuiltIn = {"exact", "answer", "solves", "format", "length", "environment", "python"};

// What the data wants, without the stop that may end it.
std::string_view without_stop(std::string_view wanted, const std::string& stop) {
  if (wanted.ends_with(stop)) wanted.remove_suffix(stop.size());
  return wanted;
}

// "+007" → "7", " -0" → "0": equal integers give equal strings, whatever their length. Nothing if it is none.
std::optional<std::string> integer(std::string text) {
  const char* blank = " \t\r\n";
  text.erase(0, text.find_first_not_of(blank));
  text.erase(text.find_last_not_of(blank) + 1);
  const bool minus = !text.empty() && text[0] == '-';
  if (minus || (!text.empty() && text[0] == '+')) text.erase(0, 1);
  if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  text.erase(0, std::min(text.find_first_not_of('0'), text.size() - 1));
  return minus && text != "0" ? "-" + text : text;
}

double exact(const Answer& mine, const Example& example, const std::string& stop) {
  return mine.finished &&
         mine.text == without_stop(example.completion.empty() ? example.answer : example.completion, stop);
}

double tint_answer(const Answer& mine, const Example& example, const std::string& stop) {
  std::string wanted = "A";
  wanted += without_stop(example.answer, stop);
  return mine.finished && mine.text.ends_with(wanted);
}

double matched_answer(const Answer& mine, const Example& example, const std::string& stop, const Pattern& pattern) {
  const auto wanted = integer(std::string(without_stop(example.answer, stop)));
  if (!wanted)
    throw std::runtime_error("the example's answer " + quoted(example.answer) + " (prompt " + quoted(example.prompt) +
                             ") is not an integer");
  if (!mine.finished) return 0;
  const std::optional<std::string> last = pattern.last_group(mine.text);
  return last && integer(*last) == wanted;
}

// What stands behind the last "A", by the rules of the prompt's task, or where it has one right answer as that.
double solves(const Answer& mine, const Example& example, const std::string& stop) {
  const size_t mark = mine.text.rfind('A');
  if (!mine.finished || mark == std::string::npos) return 0;
  const std::string_view answer = std::string_view(mine.text).substr(mark + 1);
  if (const auto countdown = data::CountdownPrompt::read(example.prompt)) return countdown->solved_by(answer);
  if (const auto path = data::PathPrompt::read(example.prompt)) return path->solved_by(answer);
  return answer == without_stop(example.answer, stop);
}

double shortness(const std::string& text, const RewardConfig& config) {
  // Characters are counted, not bytes: those that continue a UTF-8 character are left out.
  const auto length = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  const double left = static_cast<double>(config.limit - length) / static_cast<double>(config.limit - config.target);
  return std::clamp(left, 0.0, 1.0);
}

// A score of single completions as a function of a batch.
template <class Score>
RewardFunction each(const RewardConfig& config, Score score) {
  return [name = config.metric(), score](const Texts&, const std::vector<Answer>& completions,
                                         const std::vector<Example>& examples, double) {
    std::vector<double> scores;
    try {
      for (size_t i = 0; i < completions.size(); ++i) scores.push_back(score(completions[i], examples[i]));
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(name + ": " + error.what());
    }
    return scores;
  };
}

// FILE.py:NAME, MODULE:NAME, or one of isentrope.rewards.
bool names_a_function(const std::string& function) {
  const size_t colon = function.rfind(':');
  if (colon == std::string::npos) return function == "reasoning_gym" || function == "math";
  return colon > 0 && colon + 1 < function.size();
}

// A conversation's score of that name, where its environment has given it.
RewardFunction of_environment(const std::string& name) {
  return [name](const Texts&, const std::vector<Answer>& completions, const std::vector<Example>&, double) {
    std::vector<std::optional<double>> scores;
    for (const Answer& one : completions) {
      const auto found = one.scores.find(name);
      scores.push_back(found == one.scores.end() ? std::nullopt : std::optional(found->second));
    }
    return Scores(scores);
  };
}

RewardFunction built_in(const RewardConfig& config, const std::string& stop) {
  using A = const Answer&;
  if (config.kind == "exact") return each(config, [=](A a, const Example& e) { return exact(a, e, stop); });
  if (config.kind == "solves") return each(config, [=](A a, const Example& e) { return solves(a, e, stop); });
  if (config.kind == "length") return each(config, [=](A a, const Example&) { return shortness(a.text, config); });
  if (config.kind == "environment") return of_environment(config.name);
  if (config.pattern.empty()) return each(config, [=](A a, const Example& e) { return tint_answer(a, e, stop); });
  const Pattern pattern(config.pattern);
  if (config.kind == "format") return each(config, [=](A a, const Example&) { return pattern.matches_whole(a.text); });
  return each(config, [=](A a, const Example& e) { return matched_answer(a, e, stop, pattern); });
}

}  // namespace

Answer answer_of(std::vector<int64_t> tokens, bool finished, const data::Tokenizer& tokenizer) {
  if (finished && tokenizer.ends(tokens.back())) tokens.pop_back();
  return {tokenizer.decode(tokens), finished};
}

bool is_built_in(const std::string& kind) { return kBuiltIn.count(kind) > 0; }

bool reads_columns(const std::vector<RewardConfig>& rewards) {
  return std::any_of(rewards.begin(), rewards.end(), [](const auto& reward) { return reward.in_python(); });
}

bool RewardConfig::in_python() const { return kind == "python" || !is_built_in(kind); }

std::string RewardConfig::called() const {
  if (!name.empty() || kind != "python") return name.empty() ? kind : name;
  return function.substr(function.find_last_of(":.") + 1);  // of FILE.py:Class.method the last
}

std::string RewardConfig::problem() const {
  if (kind.empty())
    return "kind is empty; it is exact, answer, solves, format, length, environment, python, or a function's name";
  if (kind == "python" && !names_a_function(function))
    return "function: " + (function.empty() ? "is missing" : quoted(function)) +
           "; a reward of kind python wants FILE.py:NAME, MODULE:NAME, reasoning_gym or math";
  if (kind != "python" && !function.empty())
    return "function: belongs to rewards of kind python, and this one's kind is " + excerpt(kind);
  if (timeout_s > 0 && !in_python()) return "timeout_s: belongs to functions in Python, and " + kind + " is none";
  if (kind == "environment" && name.empty()) return "name: is missing; it says which score of the environment";
  if (!std::isfinite(weight)) return kind + ": weight is not finite";
  if (kind == "format" && pattern.empty()) return "format: pattern is empty; give the regular expression to match";
  if (kind == "length" && !(target >= 0 && limit > target))
    return "length: limit (" + std::to_string(limit) + ") must be above target (" + std::to_string(target) + ")";
  if (!pattern.empty() && (kind == "format" || kind == "answer")) {
    try {
      if (Pattern(pattern).groups() < 1 && kind == "answer")
        return "answer: pattern " + quoted(pattern) + " has no group; put the integer in ( )";
    } catch (const std::invalid_argument& error) {
      return kind + ": " + error.what();
    }
  }
  return "";
}

std::string example_problem(const RewardConfig& config, const Example& example, const std::string& stop) {
  const bool exact = config.kind == "exact";
  if (config.kind == "solves" &&
      (data::CountdownPrompt::read(example.prompt) || data::PathPrompt::read(example.prompt)))
    return "";
  if (!exact && config.kind != "answer" && config.kind != "solves") return "";
  const bool completion = exact && !example.completion.empty();
  std::string wanted = completion ? example.completion : example.answer;
  const std::string name = completion ? "completion" : "answer", shown = "the " + name + " \"" + excerpt(wanted) + "\"";
  if (wanted.empty()) return "the answer is missing, which the reward " + config.kind + " compares with";
  if (wanted.ends_with(stop)) wanted.resize(wanted.size() - stop.size());
  if (wanted.find(stop) != std::string::npos)
    return shown + " goes on behind \"" + excerpt(stop) +
           "\", which ends a sequence (tokenizer.eos); no completion can reach it";
  if (config.kind == "answer" && !config.pattern.empty() && !integer(wanted))
    return shown + " is no integer, which the reward answer with a pattern compares with";
  return "";
}

RewardSum::RewardSum(const std::vector<RewardConfig>& configs, const std::string& stop,
                     const std::map<std::string, RewardFunction>& custom) {
  if (configs.empty()) throw std::invalid_argument("reward: none is given; add for example {kind: answer}");
  if (stop.empty()) throw std::invalid_argument("reward: the stop text is empty");
  std::string known;
  for (const auto& kind : kBuiltIn) known += (known.empty() ? "" : ", ") + kind;
  const auto given = [](const std::string& name) {
    return !name.starts_with("python ");
  };  // by another way than `function`
  for (const auto& [name, function] : custom) {
    if (kBuiltIn.count(name))
      throw std::invalid_argument("reward: the function \"" + name + "\" has the name of a built-in");
    if (!function) throw std::invalid_argument("reward: the function \"" + name + "\" is empty");
    if (given(name)) known += ", " + name;
  }
  std::set<std::string> names;
  for (const RewardConfig& config : configs) {
    if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("reward: " + wrong);
    const auto function = custom.find(config.given_as());
    if (function == custom.end() && config.kind == "python")
      throw std::invalid_argument("reward: the function " + quoted(config.function) +
                                  " is of Python, which this process does not run");
    if (function == custom.end() && !kBuiltIn.count(config.kind))
      throw std::invalid_argument("reward: no kind \"" + excerpt(config.kind) + "\"; there are " + known +
                                  ". A function of your own is given as --reward " + excerpt(config.kind) +
                                  "=FILE.py:FUNCTION on the command line, or as Trainer(config, rewards={\"" +
                                  excerpt(config.kind) + "\": f}) in Python");
    if (!names.insert(config.metric()).second)
      throw std::invalid_argument("reward: two are called " + config.metric() + "; give one of them a name");
    parts_.push_back({config, function == custom.end() ? built_in(config, stop) : function->second});
  }
}

Rewards RewardSum::operator()(const Texts& prompts, const std::vector<Answer>& completions,
                              const std::vector<Example>& examples) const {
  const size_t count = completions.size();
  if (prompts.size() != count || examples.size() != count)
    throw std::invalid_argument("reward: " + std::to_string(prompts.size()) + " prompts and " +
                                std::to_string(examples.size()) + " examples for " + std::to_string(count) +
                                " completions");
  Rewards rewards{std::vector<double>(count, 0.0), {}, {}};
  std::vector<bool> scored(count, false);
  for (const Part& part : parts_) {
    const Scores found = count > 0 ? part.score(prompts, completions, examples, part.config.timeout_s)
                                   : Scores(std::vector<double>());  // a process that drew none
    const std::vector<std::optional<double>>& scores = found.of;
    const std::string name = part.config.metric();
    if (scores.size() != count)
      throw std::runtime_error(name + ": returned " + std::to_string(scores.size()) + " scores for " +
                               std::to_string(count) + " completions");
    double sum = 0, applies = 0;
    for (size_t i = 0; i < count; ++i) {
      if (!scores[i]) continue;
      const double score = *scores[i];
      if (!std::isfinite(score))
        throw std::runtime_error(name + ": score " + std::to_string(i) + " is " + std::to_string(score) +
                                 " for the prompt " + quoted(prompts[i]) + "; scores must be finite");
      rewards.total[i] += part.config.weight * score;
      scored[i] = true;
      sum += score;
      ++applies;
    }
    if (&part == &parts_.front()) rewards.first = scores;
    if (applies > 0) rewards.stats[name] = sum / applies;
    if (part.config.timeout_s > 0)
      rewards.timeouts["timeouts/" + part.config.called()] = found.timed_out ? static_cast<double>(count) : 0;
    rewards.scores.emplace_back(name, scores);
  }
  if (const auto none = std::find(scored.begin(), scored.end(), false); none != scored.end())
    rewards.unscored = static_cast<size_t>(none - scored.begin());
  return rewards;
}

}  // namespace isentrope::rl
