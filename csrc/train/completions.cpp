#include "csrc/train/completions.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "csrc/data/text_stream.h"
#include "csrc/rl/conversation.h"

namespace isentrope::train {
namespace {

using Json = nlohmann::ordered_json;

// The double that has the float's shortest text: JSON shows that text, where the float's own double has up to 17 digits.
double as_short(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  double read = value;
  std::from_chars(text, end, read);
  return read;
}

Json numbers(const std::vector<float>& values) {
  Json list = Json::array();
  for (const float value : values) list.push_back(as_short(value));
  return list;
}

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

}  // namespace

Json to_json(int64_t group, const std::string& prompt, const rl::Completion& completion,
             const data::Tokenizer& tokenizer) {
  Json line{{"group", group},
            {"sample", completion.sample},
            {"prompt", prompt},
            {"completion", rl::answer_of(completion, tokenizer).text},
            {"tokens", data::texts_of(tokenizer, completion.tokens)},
            {"ids", completion.tokens},
            {"logprob", numbers(completion.logprob)},
            {"entropy", numbers(completion.entropy)},
            {"length", completion.tokens.size()},
            {"finished", completion.stopped}};
  if (!completion.sampling_logprob.empty()) line["sampling_logprob"] = numbers(completion.sampling_logprob);
  if (!completion.kept.empty()) line["kept"] = completion.kept;
  // What an environment answered: behind how many of the tokens, its text and its scores.
  for (const rl::Exchange& turn : completion.turns)
    line["turns"].push_back(
        {{"end", turn.end}, {"given", tokenizer.decode(turn.given)}, {"scores", turn.scores}, {"error", turn.error}});
  return line;
}

Json to_json(const std::string& phase, int64_t step, const rl::SavedRollout& rollout,
             const data::Tokenizer& tokenizer) {
  Json line{{"phase", phase}, {"step", step}};
  line.update(to_json(rollout.group, rollout.prompt, rollout.completion, tokenizer));
  line["reward"] = rollout.reward;
  line["rewards"] = Json::object();
  for (const auto& [name, score] : rollout.scores) line["rewards"][name.substr(name.find('/') + 1)] = or_null(score);
  for (const auto& [kind, amount] : rollout.added) line[kind] = amount;
  line["advantage"] = or_null(rollout.advantage);
  if (!rollout.advantages.empty()) line["advantages"] = numbers(rollout.advantages);
  if (!rollout.weight.empty()) line["weight"] = numbers(rollout.weight);
  if (rollout.branches) {
    const int64_t parent = rollout.completion.parent;
    line["parent"] = parent < 0 ? Json(nullptr) : Json(parent);
    line["begin"] = rollout.completion.begin;
  }
  return line;
}

std::string line_of(const Json& object) { return object.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace isentrope::train
