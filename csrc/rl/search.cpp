#include "csrc/rl/search.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "csrc/data/facts.h"
#include "csrc/data/json_object.h"
#include "csrc/data/random.h"
#include "csrc/message.h"

namespace isentrope::rl {
namespace {

// A turn in its parts.
struct Said {
  std::optional<bool> judged;
  std::string entity, relation, query;  // of a search
  std::optional<std::string> answer;
};

std::optional<Said> read(std::string text) {
  Said said;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.starts_with("r0") || text.starts_with("r1")) {
    said.judged = text[1] == '1';
    text.erase(0, 2);
  }
  if (text.starts_with('A')) {
    said.answer = text.substr(1);
    return said;
  }
  const size_t dot = text.find('.'), mark = text.find(";q");
  if (!text.starts_with('g') || dot == std::string::npos || mark == std::string::npos || dot > mark)
    return std::nullopt;
  said.entity = text.substr(1, dot - 1);
  said.relation = text.substr(dot + 1, mark - dot - 1);
  said.query = text.substr(mark + 2);
  if (said.entity.empty() || said.relation.empty()) return std::nullopt;
  return said;
}

class Inquiry : public Episode {
 public:
  Inquiry(const Search& config, const data::Example& example, uint64_t seed)
      : perturb_(config.perturb), answer_(example.answer), seed_(seed) {
    const auto columns = data::parse_json_object(example.columns);
    for (const auto& fact : columns.at("facts")) facts_.push_back(fact);
    library_.emplace(facts_);
    // The chain of the question ENTITY.RELATION.RELATION…?
    std::string entity = example.prompt.substr(0, example.prompt.find('.'));
    for (size_t at = entity.size() + 1; at < example.prompt.size();) {
      const size_t end = std::min(example.prompt.find_first_of(".?", at), example.prompt.size());
      const std::string goal = entity + " " + example.prompt.substr(at, end - at) + " ";
      chain_.push_back(goal);
      for (const std::string& fact : facts_)
        if (fact.starts_with(goal)) entity = fact.substr(goal.size());
      at = end + 1;
    }
    for (const std::string& name : Search::scores()) scores[name] = 0;
  }

  Reply step(const std::string& text) override {
    const std::optional<Said> said = read(text);
    valid_ = valid_ && said && said->judged.has_value() == goal_.has_value();
    if (said && goal_ && said->judged) judge(*said->judged);
    if (said && said->answer) {
      scores["answer"] = *said->answer == answer_ ? 1 : 0;
      scores["format"] = valid_ ? 1 : 0;
      scores["search_r1"] = scores["answer"] > 0 ? (valid_ ? 1 : 0.8) : (valid_ ? 0.2 : 0.1);
      return {.done = true};
    }
    goal_.reset();
    if (!said) return {.text = "?\n", .error = true};
    goal_ = said->entity + " " + said->relation + " ";
    ++searches_;
    for (const std::string& link : chain_) on_chain_ += link == *goal_;
    scores["searches"] = searches_;
    scores["goals"] = on_chain_ / searches_;
    const size_t found = library_->best(sent(said->query));
    const std::string fact = found < facts_.size() ? facts_[found] : "-";
    met_ = fact.starts_with(*goal_);
    return {.text = fact + "\n"};
  }

 private:
  void judge(bool yes) {
    ++judged_[met_];
    right_[met_] += yes == met_;
    const auto share = [&](int met) { return right_[met] / judged_[met]; };
    scores["reflect"] = (right_[0] + right_[1]) / (judged_[0] + judged_[1]);
    scores["reflect_balanced"] =
        judged_[0] > 0 && judged_[1] > 0 ? (share(0) + share(1)) / 2 : share(judged_[1] > 0 ? 1 : 0);
  }

  std::string sent(const std::string& query) const {
    const auto number = static_cast<uint64_t>(searches_);
    data::Stream stream(seed_, data::Purpose::noise, number);
    if (perturb_.probability == 0 || (perturb_.search > 0 && number != static_cast<uint64_t>(perturb_.search)) ||
        stream.uniform() >= perturb_.probability)
      return query;
    return perturbed(query, perturb_.operations[stream.below(static_cast<uint32_t>(perturb_.operations.size()))],
                     facts_, seed_, number);
  }

  PerturbConfig perturb_;
  std::string answer_;
  uint64_t seed_;
  std::vector<std::string> facts_, chain_;
  std::optional<data::Retriever> library_;
  std::optional<std::string> goal_;  // of the fact that was given last
  bool met_ = false, valid_ = true;
  double searches_ = 0, on_chain_ = 0, judged_[2] = {}, right_[2] = {};
};

class Library : public Environment {
 public:
  explicit Library(const Search& config) : config_(config) {}
  std::unique_ptr<Episode> reset(const data::Example& example, uint64_t seed, std::string*) const override {
    try {
      return std::make_unique<Inquiry>(config_, example, seed);
    } catch (const std::exception& error) {
      throw std::runtime_error("environment, search: the example " + isentrope::quoted(example.prompt) + ": " +
                               error.what() + "; it wants those of data.episodes");
    }
  }

 private:
  Search config_;
};

}  // namespace

std::string Search::problem() const {
  return perturb.probability > 0 && perturb.operations.empty()
             ? "perturb.operations: is empty; name delete, add or replace"
             : "";
}

std::shared_ptr<const Environment> Search::make() const { return std::make_shared<Library>(*this); }

std::string perturbed(const std::string& query, const std::string& operation, const std::vector<std::string>& documents,
                      uint64_t seed, uint64_t search) {
  data::Stream stream(seed, data::Purpose::noise, search, /*b=*/1);
  std::vector<std::string> words = data::terms_of(query), corpus;
  for (const std::string& document : documents)
    for (const std::string& word : data::terms_of(document)) corpus.push_back(word);
  const auto place = [&](size_t n) { return stream.below(static_cast<uint32_t>(n)); };
  if (corpus.empty() || (words.empty() && operation != "add")) return query;
  if (operation == "add") {
    words.insert(words.begin() + place(words.size() + 1), corpus[place(corpus.size())]);
  } else {
    const auto at = words.begin() + place(words.size());
    if (operation == "delete")
      words.erase(at);
    else
      *at = corpus[place(corpus.size())];
  }
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

}  // namespace isentrope::rl
