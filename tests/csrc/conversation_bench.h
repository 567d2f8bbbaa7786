// What model_bench times of conversations.
//
//   converse FOLDER     conversations about 16 questions, 8 each, of the environment search by the model of a checkpoint (scripts/benchmarks/environments.py);
//                       prints seconds, those in which the environment answered, tokens fed, and positions of the cache, of which each is
//                       fed once where nothing is computed again
//   retrieve N          1000 queries of N documents; prints the seconds and what the first 20 found
#pragma once
#include <chrono>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "csrc/data/episodes.h"
#include "csrc/data/facts.h"
#include "csrc/rl/conversation.h"
#include "csrc/rl/search.h"
#include "csrc/rl/text_rules.h"
#include "csrc/train/checkpoint.h"

namespace isentrope::bench {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// An environment, and how long it took to answer; of one thread.
struct TimedEnvironment : rl::Environment {
  std::shared_ptr<const rl::Environment> inner;
  mutable double seconds = 0;
  std::unique_ptr<rl::Episode> reset(const data::Example& example, uint64_t seed, std::string* prompt) const override {
    const double start = seconds_now();
    auto episode = inner->reset(example, seed, prompt);
    seconds += seconds_now() - start;
    return episode;
  }
  std::vector<rl::Reply> step(std::span<rl::Episode* const> episodes,
                              std::span<const std::string> texts) const override {
    const double start = seconds_now();
    auto replies = inner->step(episodes, texts);
    seconds += seconds_now() - start;
    return replies;
  }
};

inline std::string converse(const std::string& folder) {
  const data::Tokenizer tokenizer(data::TokenizerConfig{.characters = "\n abcdefghijklmnopqrstuvwxyzA01.;?-$"});
  model::Decoder decoder(train::read_model_config(folder), 0);
  train::load_weights(folder, decoder);
  const data::SearchTask task{.distractors = 4};
  std::vector<data::Example> examples;
  std::vector<std::vector<int64_t>> prompts;
  for (uint64_t i = 0; i < 16; ++i) {
    data::Stream stream(1, data::Purpose::example, i);
    examples.push_back(task.draw(stream, nullptr));
    prompts.push_back(tokenizer.encode(examples.back().prompt));
  }
  auto timed = std::make_shared<TimedEnvironment>();
  timed->inner = rl::Search().make();
  rl::SamplingConfig sampling;
  rl::ConversationConfig limits{.turns = 8, .turn_tokens = 24, .at_limit = "end"};
  sampling.stop = limits.stop;
  sampling.conversing = std::make_shared<rl::Conversing>(timed, limits, tokenizer);
  sampling = rl::with_rules(sampling, tokenizer);
  rl::RolloutCounts counts;
  const double start = seconds_now();
  const auto drawn = rl::rollout(decoder, prompts, std::vector<int64_t>(prompts.size(), 8), sampling,
                                 tokenizer.end_ids(), {.seed = 1}, {}, {}, &counts, rl::Peers(), examples);
  const double seconds = seconds_now() - start;
  int64_t positions = 0, turns = 0;
  for (const auto& prompt : prompts) positions += std::ssize(prompt);
  for (const rl::Completion& c : drawn) positions += c.size() - 1, turns += std::ssize(c.turns);
  std::ostringstream out;
  out << "{\"conversations\": " << drawn.size() << ", \"turns\": " << turns << ", \"seconds\": " << seconds
      << ", \"waited\": " << timed->seconds << ", \"fed\": " << counts.fed << ", \"positions\": " << positions << "}";
  return out.str();
}

inline std::string retrieve(int64_t count) {
  std::vector<std::string> documents;
  for (int64_t i = 0; i < count; ++i)
    documents.push_back("a" + std::to_string(i * 7919 % 1009) + " r" + std::to_string(i % 7) + " b" +
                        std::to_string(i * 104729 % 997));
  const data::Retriever library(documents);
  constexpr int64_t kQueries = 1000;
  std::ostringstream out;
  out << "{\"found\": [";
  const double start = seconds_now();
  for (int64_t i = 0; i < kQueries; ++i) {
    const size_t found = library.best("a" + std::to_string(i * 31 % 1009) + " r" + std::to_string(i % 7));
    if (i < 20) out << (i > 0 ? ", " : "") << found;
  }
  out << "], \"queries\": " << kQueries << ", \"seconds\": " << seconds_now() - start << "}";
  return out.str();
}

}  // namespace isentrope::bench
