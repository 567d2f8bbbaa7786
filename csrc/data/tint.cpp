#include "csrc/data/tint.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <stdexcept>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "csrc/data/shuffle.h"
#include "csrc/data/split.h"
#include "csrc/data/tint_trace.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

// One prompt in 16 for validation, one in 16 for test: signed sums of five terms have 974 000 prompts, those
// of three 3000, so that even there each list has some 190.
constexpr double kHeldOutShare = 1.0 / 16;
constexpr int64_t kLetters = 26;
// A prompt space is taken to be used up when this many draws in a row gave nothing new.
constexpr int kVainDraws = 2000;
// Of a stream as many examples are looked at before it begins: enough for the characters of a task, whose lines differ little.
constexpr int64_t kProbes = 64;
constexpr int64_t kTermsDraw = -1;  // index of the stream that chooses the number of terms

bool has_list(const TintConfig& config) { return config.task == "sort" || config.task == "median"; }
bool recalls(const TintConfig& config) { return config.task == "recall"; }
bool has_terms(const TintConfig& config) {
  return has_list(config) || config.task == "signed_sum" || searches(config) || recalls(config);
}

// Nodes of a graph of path: the right way, and at each of its nodes but the last `branches` more, as long as what is left.
int64_t path_nodes(int64_t steps, int64_t branches) { return 1 + steps + branches * steps * (steps + 1) / 2; }

std::string operations_problem(const std::string& operations) {
  for (size_t i = 0; i < operations.size(); ++i)
    if (std::string("+-*/").find(operations[i]) == std::string::npos || operations.find(operations[i]) != i)
      return "operations is " + quoted(operations) + "; it has some of + - * /, each once";
  return operations.find('+') == std::string::npos
             ? "operations is " + quoted(operations) + ", without +, and few numbers would be reached"
             : "";
}

int64_t draw_number(const TintConfig& config, Stream& stream) {
  if (config.sampling == "magnitude") {
    const auto span = static_cast<uint64_t>(config.high - config.low) + 1;
    if (span <= 0xFFFFFFFFull) return config.low + stream.below(static_cast<uint32_t>(span));
    const uint64_t mask = ~0ull >> __builtin_clzll(span);  // as many bits as span has; what is too large is drawn again
    for (;;) {
      const uint64_t high = stream.bits();
      const uint64_t value = ((high << 32) | stream.bits()) & mask;
      if (value < span) return config.low + static_cast<int64_t>(value);
    }
  }
  const int64_t digits =
      config.digits.min + stream.below(static_cast<uint32_t>(config.digits.max - config.digits.min + 1));
  int64_t value = 1 + stream.below(9);
  for (int64_t i = 1; i < digits; ++i) value = 10 * value + stream.below(10);
  return value;
}

Split split_of_prompt(const std::string& prompt) { return split_of(prompt, kHeldOutShare, kHeldOutShare); }

// The next problem of the stream that belongs to the split.
TintProblem draw_from_split(const TintConfig& config, int64_t terms, Split split, Stream& stream) {
  for (int i = 0; i < kVainDraws; ++i) {
    TintProblem problem = draw_problem(config, terms, stream);
    if (split_of_prompt(problem.prompt) == split) return problem;
  }
  throw std::invalid_argument("tint: " + config.task +
                              " has so few different prompts that none is left for training; " +
                              "give it more terms or larger numbers");
}

Trace run(const TintConfig& config, const TintProblem& problem, const SignedSumSteps& steps, Faults& faults) {
  return config.task == "signed_sum" ? run_signed_sum(problem.values, steps, faults)
                                     : run_program(config, problem.values, faults);
}

// Tries until one is right or the patience is at an end; the last is answered.
TintSample make_search(const TintConfig& config, const TintProblem& problem, Stream& stream) {
  TintSample sample{
      .prompt = problem.prompt, .answer_true = problem.right.answer, .answer_trace = problem.right.answer};
  if (config.cot) {
    const int64_t patience = 1 + stream.below(static_cast<uint32_t>(config.tries));
    Try last;
    for (int64_t i = 0; i < patience && !last.right; ++i) {
      last = stream.uniform() < config.insight ? problem.right
             : config.task == "countdown"      ? try_countdown(config, problem, stream)
                                               : try_path(problem, stream);
      sample.completion += last.text + ';';
    }
    sample.answer_trace = last.answer;
  }
  sample.completion += "A" + sample.answer_trace + ".";
  return sample;
}

// noise: null for a clean sample. The order of a signed sum is drawn from stream, so that noise does not
// change it.
TintSample make_sample(const TintConfig& config, const TintProblem& problem, Stream& stream, Stream* noise) {
  if (searches(config)) return make_search(config, problem, stream);
  if (recalls(config))
    return {.prompt = problem.prompt,
            .completion = (config.cot ? problem.right.text : "") + "A" + problem.right.answer + ".",
            .answer_true = problem.right.answer,
            .answer_trace = problem.right.answer};
  const SignedSumSteps steps =
      config.task == "signed_sum" ? draw_steps(problem.values, config.merge, stream) : SignedSumSteps{};
  const std::string thoughts = config.think > 0 ? draw_thoughts(problem.values, config.think, stream) : "";
  Faults none(nullptr, 0);
  Trace trace = run(config, problem, steps, none);
  TintSample sample{.prompt = problem.prompt, .answer_true = trace.answer};
  std::string written = trace.answer;
  if (noise != nullptr && config.noise != "none" && noise->uniform() < config.contamination) {
    sample.noised = true;
    if (config.noise == "dynamic") {
      Faults faults(noise, config.intensity);
      trace = run(config, problem, steps, faults);
      if (config.label == "propagated") written = trace.answer;
    } else {
      add_static_noise(config, *noise, trace);
      written = trace.answer;
    }
  }
  sample.answer_trace = trace.answer;
  sample.n_errors = trace.n_errors;
  sample.first_error_line = trace.first_error_line;
  sample.completion = thoughts + (config.cot ? trace.text() : "") + "A" + written + ".";
  return sample;
}

// Up to config.held_out different prompts, the numbers of terms in turn.
std::vector<Example> held_out_list(const TintConfig& config, Split split) {
  std::vector<Example> list;
  std::unordered_set<std::string> seen;
  const size_t lengths = has_terms(config) ? config.terms.size() : 1;
  std::vector<Stream> streams;  // one a number of terms: its prompts are the same whichever others are in the list
  for (size_t i = 0; i < lengths; ++i)
    streams.emplace_back(0, Purpose::evaluation, static_cast<uint64_t>(split), static_cast<uint64_t>(config.terms[i]));
  std::vector<bool> used_up(lengths, false);
  size_t left = lengths;
  for (size_t turn = 0; left > 0 && static_cast<int64_t>(list.size()) < config.held_out; turn = (turn + 1) % lengths) {
    if (used_up[turn]) continue;
    bool found = false;
    for (int i = 0; i < kVainDraws && !found; ++i) {
      const TintProblem problem = draw_problem(config, config.terms[turn], streams[turn]);
      if (split_of_prompt(problem.prompt) != split || !seen.insert(problem.prompt).second) continue;
      const TintSample sample = make_sample(config, problem, streams[turn], nullptr);
      list.push_back({sample.prompt, sample.completion, sample.answer_true, "", split});
      found = true;
    }
    if (found) continue;
    used_up[turn] = true;
    --left;
  }
  return list;
}

}  // namespace

TintProblem draw_problem(const TintConfig& config, int64_t terms, Stream& stream) {
  if (config.task == "signed_sum") return draw_signed_sum(terms, stream);
  if (config.task == "countdown") return draw_countdown(config, terms, stream);
  if (config.task == "path") return draw_path(config, terms, stream);
  if (config.task == "recall") return draw_recall(config, terms, stream);
  TintProblem problem;
  const int64_t count = has_list(config) ? terms : 2;
  for (int64_t i = 0; i < count; ++i) problem.values.push_back(draw_number(config, stream));
  auto& values = problem.values;
  if (config.task == "sub" && values[0] < values[1]) std::swap(values[0], values[1]);
  if (has_list(config)) {
    problem.prompt = config.task.substr(0, 1) + join(values) + "=";
  } else {
    const char sign = config.task == "add" ? '+' : config.task == "sub" ? '-' : '*';
    problem.prompt = std::to_string(values[0]) + sign + std::to_string(values[1]) + "=";
  }
  return problem;
}

std::string TintConfig::problem() const {
  if (train > 0 && mix != "example")
    return "train: a list of examples needs mix: example, since a batch from the list cannot choose its number of "
           "terms";
  const auto named = [](const std::string& key, const std::string& value, std::initializer_list<const char*> names) {
    std::string known;
    for (const char* name : names) {
      if (value == name) return std::string();
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    return key + " is \"" + value + "\"; it can be " + known;
  };
  for (const std::string& wrong :
       {named("task", task, {"signed_sum", "add", "sub", "mul", "median", "sort", "countdown", "path", "recall"}),
        named("sampling", sampling, {"magnitude", "length"}), named("algorithm", algorithm, {"selection", "insertion"}),
        named("even", even, {"lower", "mean"}), named("label", label, {"true", "propagated"}),
        named("noise", noise, {"none", "static_char", "static_int", "static_line", "dynamic"})})
    if (!wrong.empty()) return wrong;
  if (terms.empty()) return "terms is empty; give at least one number of terms, for example [5]";
  for (const int64_t count : terms)
    if (count < 1 || count > 26) return "terms holds " + std::to_string(count) + "; each is in 1 … 26";
  using Share = std::pair<const char*, double>;
  for (const auto& [key, value] : {Share{"merge", merge}, Share{"insight", insight},
                                   Share{"contamination", contamination}, Share{"intensity", intensity}})
    if (!(value >= 0 && value <= 1)) return std::string(key) + " is " + std::to_string(value) + "; it is in 0 … 1";
  if (held_out < 1) return "held_out is " + std::to_string(held_out) + "; it is at least 1";
  using Count = std::tuple<const char*, int64_t, int64_t, int64_t>;
  for (const auto& [key, value, least, most] :
       {Count{"think", think, 0, 64}, Count{"tries", tries, 1, 64}, Count{"branches", branches, 0, 24},
        Count{"queries", queries, 1, 26}, Count{"gap", gap, 0, 4096}, Count{"vocabulary", vocabulary, 2, 26}})
    if (value < least || value > most)
      return std::string(key) + " is " + std::to_string(value) + "; it is in " + std::to_string(least) + " … " +
             std::to_string(most);
  const auto [fewest_terms, most_terms] = std::minmax_element(terms.begin(), terms.end());
  if (think > 0 && task != "signed_sum") return "think is for signed_sum, and the task is " + task;
  if (think > 0 && *fewest_terms < 2) return "think: its lines are of two terms, and terms holds 1";
  if (searches(*this)) {
    if (noise != "none") return "noise is for traces of programs and signed sums; " + task + " searches";
    if (task == "path" && path_nodes(*most_terms, branches) > kLetters)
      return "terms: a way of " + std::to_string(*most_terms) + " steps with " + std::to_string(branches) +
             " branches at each node has more than the " + std::to_string(kLetters) + " nodes that have a letter";
    if (task == "path") return "";
    if (*fewest_terms < 2 || *most_terms > 5)
      return "terms holds " + std::to_string(*fewest_terms < 2 ? *fewest_terms : *most_terms) +
             "; countdown has 2 to 5 numbers";
    if (const std::string wrong = operations_problem(operations); !wrong.empty()) return wrong;
    return "";
  }
  if (task == "recall") {
    if (noise != "none") return "noise is for traces of programs and signed sums; recall has none";
    if (*most_terms > vocabulary)
      return "terms holds " + std::to_string(*most_terms) + ", and the keys of recall are of " +
             std::to_string(vocabulary) + " letters (vocabulary), each once";
    if (queries > *fewest_terms)
      return "queries is " + std::to_string(queries) + ", and a problem of recall may have " +
             std::to_string(*fewest_terms) + " keys (terms)";
    return "";
  }
  if (task == "signed_sum") return "";
  if (sampling == "magnitude") {
    if (low < 0 || low > high)
      return "low (" + std::to_string(low) + ") must be in 0 … high (" + std::to_string(high) + ")";
    if (high > (task == "mul" ? 99'999'999 : 999'999'999'999'999))
      return "high (" + std::to_string(high) + ") has more than " + (task == "mul" ? "8 digits" : "15 digits") +
             " for " + task;
  } else {
    if (digits.min < 1 || digits.min > digits.max)
      return "digits.min (" + std::to_string(digits.min) + ") must be in 1 … digits.max (" +
             std::to_string(digits.max) + ")";
    if (digits.max > (task == "mul" ? 8 : 15))
      return "digits.max (" + std::to_string(digits.max) + ") is more than " + (task == "mul" ? "8" : "15") + " for " +
             task;
  }
  if (cot && !show.line_no && !show.code && !show.vars && !show.delta)
    return "cot is on, but show hides every part of a line; set one of line_no, code, vars, delta, or cot: "
           "false";
  return "";
}

bool searches(const TintConfig& config) { return config.task == "countdown" || config.task == "path"; }

std::string tint_alphabet(const TintConfig& config) {
  if (config.task == "path") return std::string(config.cot ? ";" : "") + ",:=>Aabcdefghijklmnopqrstuvwxyz.";
  if (recalls(config))
    return "0123456789" + std::string(config.gap > 0 ? "-" : "") + ":=A" +
           std::string("abcdefghijklmnopqrstuvwxyz").substr(0, config.vocabulary) + ".";
  std::set<char> extra;
  const auto add = [&extra](const std::string& text) {
    for (const char c : text)
      if (c < '0' || c > '9') extra.insert(c);
  };
  add("=A");
  if (config.task == "countdown") {
    add(config.operations + ",:()");
    if (config.cot) add(";");
  } else if (config.task == "signed_sum") {
    add("+-");
    if (config.cot || config.think > 0) add(":");
    if (config.think > 0) add(";");
    for (int64_t i = 0; i < *std::max_element(config.terms.begin(), config.terms.end()); ++i)
      add(std::string(1, static_cast<char>('a' + i)));
  } else {
    add(has_list(config)       ? config.task.substr(0, 1) + ","
        : config.task == "add" ? "+"
        : config.task == "sub" ? "-"
                               : "*");
    if (config.cot) {
      const TintShow& show = config.show;
      const bool list = has_list(config), selection = config.algorithm == "selection";
      std::string variables = list ? (selection ? "mtx" : "tx") : config.task == "mul" ? "pr" : "cds";
      if (config.task == "median") variables += "r";
      if (show.vars) variables += list ? (selection ? "ij" : "j") : "abi";
      if (show.vars && config.task == "median") variables += "k";
      add("\n");
      if (show.line_no) add("L");
      if (show.code) add(program_text(config));
      if (show.vars && variables.size() > 1) add(";");
      if (show.vars || show.delta) add(variables + "=");
      if (show.line_no + show.code + show.vars + show.delta > 1) add(" ");
    }
  }
  return "0123456789" + std::string(extra.begin(), extra.end()) + ".";
}

Tint::Tint(const TintConfig& config, uint64_t seed, Split split, const Use* use) : config_(config), seed_(seed) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("tint: " + wrong);
  if (split != Split::train) {
    held_out_ = held_out_list(config, split);
    if (held_out_.empty())
      throw std::invalid_argument("tint: " + config.task + " has so few different prompts that none belongs to the " +
                                  name_of(split) + " split; give it more terms or larger numbers");
  }
  if (use) look(*use);
}

void Tint::look(const Use& use) {
  const auto fit = [&](const Example& example) {
    try {
      return fits(example, use);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("tint: " + config_.task + ": the example " +
                                  excerpt(example.prompt + example.completion) + ": " + error.what());
    }
  };
  const std::string all = "tint: " + config_.task + ": the examples are too long for the context (" +
                          std::to_string(use.context) + " tokens)";
  if (!held_out_.empty()) {
    left_out_ = static_cast<int64_t>(std::erase_if(held_out_, [&](const Example& example) { return !fit(example); }));
    if (held_out_.empty()) throw std::invalid_argument(all + "; raise model.max_position_embeddings");
    return;
  }
  for (const int64_t terms : has_terms(config_) ? config_.terms : std::vector<int64_t>{config_.terms.front()}) {
    int64_t fitting = 0;
    for (int64_t i = 0; i < kProbes; ++i) {
      const TintSample sample = this->sample(i, terms);
      fitting += fit({sample.prompt, sample.completion, sample.answer_true});
    }
    if (fitting == 0)
      throw std::invalid_argument(all + " with " + std::to_string(terms) +
                                  " terms; raise model.max_position_embeddings");
  }
}

int64_t Tint::terms_of(int64_t first) const {
  Stream stream(seed_, Purpose::example, static_cast<uint64_t>(kTermsDraw), static_cast<uint64_t>(first));
  return config_.terms[stream.below(static_cast<uint32_t>(config_.terms.size()))];
}

TintSample Tint::sample(int64_t index, int64_t terms) const {
  const auto i = static_cast<uint64_t>(index), k = static_cast<uint64_t>(terms);
  Stream stream(seed_, Purpose::example, static_cast<uint64_t>(Split::train), i, k);
  Stream noise(seed_, Purpose::noise, static_cast<uint64_t>(Split::train), i, k);
  return make_sample(config_, draw_from_split(config_, terms, Split::train, stream), stream, &noise);
}

std::vector<Example> Tint::take(int64_t first, int64_t count) const {
  if (first < 0 || count < 0)
    throw std::invalid_argument("tint: take(" + std::to_string(first) + ", " + std::to_string(count) + ") is negative");
  std::vector<Example> examples;
  examples.reserve(static_cast<size_t>(count));
  const int64_t terms = terms_of(first);
  for (int64_t i = first; i < first + count; ++i) {
    if (held_out_.empty()) {
      const int64_t N = config_.train;
      const int64_t index = N > 0 ? static_cast<int64_t>(Shuffle(seed_, i / N, N)(i % N)) : i;
      TintSample sample = this->sample(index, config_.mix == "example" ? terms_of(index) : terms);
      examples.push_back({std::move(sample.prompt), std::move(sample.completion), std::move(sample.answer_true)});
    } else {
      examples.push_back(held_out_[static_cast<size_t>(i) % held_out_.size()]);
    }
  }
  return examples;
}

}  // namespace isentrope::data
