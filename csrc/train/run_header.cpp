#include "csrc/train/run_header.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "csrc/data/corpus.h"
#include "csrc/data/sequence.h"
#include "csrc/data/text_stream.h"
#include "csrc/durable_file.h"
#include "csrc/message.h"
#include "csrc/train/metrics.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {

std::string time_text(double seconds) {
  constexpr double kMinute = 60, kHour = 3600, kDay = 86400;
  char text[32];
  if (seconds < kMinute)
    std::snprintf(text, sizeof(text), "%.2g s", seconds);
  else if (seconds < 2 * kHour)
    std::snprintf(text, sizeof(text), "%.0f min", seconds / kMinute);
  else if (seconds < 2 * kDay)
    std::snprintf(text, sizeof(text), "%.1f h", seconds / kHour);
  else
    std::snprintf(text, sizeof(text), "%.3g days", seconds / kDay);
  return text;
}

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kCounted = 4096;      // examples whose tokens are counted: a start does not wait for a large file
constexpr size_t kExampleTokens = 256;  // of the example

std::vector<std::string> beginning_of(const data::Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  return data::texts_of(tokenizer, {ids.begin(), ids.begin() + std::min(ids.size(), kExampleTokens)});
}

// 2600 → "2,600"
std::string grouped(double value) {
  std::string text = std::to_string(static_cast<int64_t>(value + 0.5));
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text;
}
std::string grouped(int64_t value) { return grouped(static_cast<double>(value)); }

// "a·+·5·= → 5·a·." of the first tokens.
std::string example_text(const PhaseHeader& phase) {
  constexpr size_t kShown = 40;  // what a line has room for
  std::string text;
  for (size_t i = 0; i < std::min(phase.example.size(), kShown); ++i) {
    const std::string token = Json(valid_utf8(phase.example[i])).dump();
    if (i > 0) text += static_cast<int64_t>(i) == phase.prompt ? " → " : "·";
    text.append(token, 1, token.size() - 2);  // control characters as escapes, without the quotes
  }
  return text + (phase.example.size() > kShown ? "…" : "");
}

std::string phase_text(const PhaseHeader& p) {
  const std::string each = p.unit == "tokens" ? "windows" : p.unit;
  std::string text = grouped(p.steps) + " steps of " + grouped(p.batch) + " " + each;
  if (p.samples > 0) text += " × " + grouped(p.samples) + " completions";
  if (p.pairs_of) {
    text += " that are drawn of " + grouped(*p.pairs_of) + " prompts";
  } else if (p.train) {
    text += "; training " + grouped(*p.train) + " " + p.unit;
    if (p.epoch_tokens && p.unit != "tokens") text += " (" + grouped(*p.epoch_tokens) + " tokens an epoch)";
    char epochs[48];
    std::snprintf(epochs, sizeof(epochs), ", %.3g epochs", p.epochs.value_or(0));
    if (p.epochs) text += epochs;
  } else {
    text += "; training without end";
  }
  for (const auto& [name, size] : {std::pair{"validation", p.validation}, {"test", p.test}})
    if (size) text.append(", ").append(name).append(" ").append(grouped(*size));
  if (p.least_seconds > 0) text += "; at least " + time_text(p.least_seconds) + " of products";
  return text;
}

Json to_object(const PhaseHeader& p) {
  Json object{{"name", p.name}, {"objective", p.objective}, {"steps", p.steps}, {"batch", p.batch}};
  if (p.samples > 0) object["samples"] = p.samples;
  object["unit"] = p.unit;
  if (p.pairs_of) object["pairs_of"] = *p.pairs_of;
  object["train"] = p.train ? Json(*p.train) : Json(nullptr);
  if (p.validation) object["validation"] = *p.validation;
  if (p.test) object["test"] = *p.test;
  if (p.epoch_tokens) object["epoch_tokens"] = *p.epoch_tokens;
  if (p.epochs) object["epochs"] = *p.epochs;
  object["prompt"] = p.prompt;
  object["example"] = Json::array();
  for (const std::string& token : p.example) object["example"].push_back(valid_utf8(token));
  return object;
}

}  // namespace

PhaseHeader phase_header(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                         const PhaseData& sizes, uint64_t seed) {
  PhaseHeader p{.name = phase.name, .objective = phase.objective.kind, .steps = phase.steps};
  p.batch = phase.rollout ? phase.rollout->prompts : phase.batch.sequences;
  p.samples = phase.rollout ? phase.rollout->num_generations : 0;
  p.unit = phase.data.text() ? "tokens" : phase.rollout ? "prompts" : phase.pairs ? "pairs" : "examples";
  for (const SplitSize& split : sizes.splits) {
    if (split.split == data::Split::train) continue;
    (split.split == data::Split::test ? p.test : p.validation) = phase.data.text() ? split.tokens : split.examples;
  }
  const auto steps = static_cast<double>(phase.steps), batch = static_cast<double>(p.batch);
  if (phase.data.text()) {
    const auto shard = data::open_text(phase.data, tokenizer, data::Split::train);
    const data::Tokens& tokens = shard->tokens();
    p.train = static_cast<int64_t>(tokens.size());
    p.epoch_tokens = static_cast<double>(*p.train);
    const int64_t windows =
        (*p.train + config.model.max_position_embeddings - 1) / config.model.max_position_embeddings;
    p.epochs = steps * batch / static_cast<double>(windows);
    std::vector<int64_t> first;
    for (size_t i = 0; i < std::min(tokens.size(), kExampleTokens); ++i) first.push_back(tokens[i]);
    p.example = beginning_of(tokenizer, first);
    return p;
  }
  const data::Use use = use_of(config, phase, tokenizer);
  const auto source = data::make_source(phase.data, seed, data::Split::train, &use);
  const auto ids_of = [&](const data::Example& example) {
    if (phase.draws()) return data::prompt_ids(example, tokenizer);  // what follows is drawn
    std::vector<int64_t> ids = data::sequence_of(example, tokenizer).ids;
    if (static_cast<int64_t>(ids.size()) > config.model.max_position_embeddings)
      ids.resize(static_cast<size_t>(config.model.max_position_embeddings));
    return ids;
  };
  const data::Example first = source->take(0, 1)[0];
  p.example = beginning_of(tokenizer, ids_of(first));
  p.prompt = static_cast<int64_t>(data::prompt_ids(first, tokenizer).size());
  if (phase.pairs) {
    p.pairs_of = source->size() > 0 ? std::min(source->size(), phase.pairs->prompts) : phase.pairs->prompts;
    return p;
  }
  if (source->size() == 0) return p;
  p.train = source->size();
  p.epochs = steps * batch / static_cast<double>(*p.train);
  if (phase.rollout) return p;
  const int64_t counted = std::min(*p.train, kCounted);
  double tokens = 0;
  for (const data::Example& example : source->take(0, counted)) tokens += static_cast<double>(ids_of(example).size());
  p.epoch_tokens = tokens * static_cast<double>(*p.train) / static_cast<double>(counted);
  return p;
}

std::string to_json(const RunHeader& h) {
  Json phases = Json::array();
  for (const PhaseHeader& phase : h.phases) phases.push_back(to_object(phase));
  Json run{{"version", ISENTROPE_VERSION},
           {"parameters", h.parameters},
           {"trained", h.trained},
           {"dtype", h.dtype},
           {"compute", h.compute},
           {"device", h.device},
           {"instruction_set", h.instruction_set},
           {"threads", h.threads},
           {"product_flops_per_s", h.product_rate},
           {"memory_needed", h.memory_needed.total()},
           {"memory", h.memory ? Json(*h.memory) : Json(nullptr)},
           {"phases", phases}};
  if (h.ranks > 1) run["ranks"] = h.ranks;
  return "{\"run\": " + run.dump(-1, ' ', false, Json::error_handler_t::replace) + "}";
}

std::string to_text(const RunHeader& h) {
  std::vector<std::pair<std::string, std::string>> lines;
  lines.emplace_back("run", h.dir);
  lines.emplace_back("model", grouped(h.parameters) + " weights, " +
                                  (h.trained == h.parameters ? "all" : grouped(h.trained)) + " trained, " + h.dtype +
                                  (h.compute == h.dtype ? "" : ", products in " + h.compute));
  char rate[64];
  std::snprintf(rate, sizeof(rate), ", products %.3g GFLOP/s", h.product_rate / 1e9);
  lines.emplace_back("machine", h.device + ", " + (h.ranks > 1 ? std::to_string(h.ranks) + " ranks of " : "") +
                                    std::to_string(h.threads) + (h.threads == 1 ? " thread, " : " threads, ") +
                                    h.instruction_set + rate);
  lines.emplace_back("memory", "about " + to_text(h.memory_needed) + (h.ranks > 1 ? ", on each rank" : "") +
                                   (h.memory ? "; the machine has " + bytes_text(*h.memory) : ""));
  for (const PhaseHeader& phase : h.phases) lines.emplace_back(phase.name, phase_text(phase));
  if (!h.phases.empty()) lines.emplace_back("example", example_text(h.phases.front()));
  size_t width = 0;
  for (const auto& [name, text] : lines) width = std::max(width, name.size());
  std::string told;
  for (auto& [name, text] : lines) {
    name.resize(width, ' ');
    told.append(told.empty() ? "" : "\n").append(name).append("  ").append(text);
  }
  return told;
}

bool said_before(const std::string& metrics_file, const RunHeader& header) {
  std::error_code error;
  if (!std::filesystem::exists(metrics_file, error)) return false;
  const std::string text = read_whole(metrics_file);
  const std::string begin = "\n{\"run\": ";
  size_t at = text.rfind(begin);
  if (at != std::string::npos)
    ++at;
  else if (is_header(text))
    at = 0;
  else
    return false;
  const auto objects_of = [](std::string_view line) {
    Json run = Json::parse(line, nullptr, false);
    run = run.is_object() && run.contains("run") ? run["run"] : Json();
    for (const char* key : {"product_flops_per_s", "memory_needed"})  // measured anew; of the phases that are left
      if (run.is_object()) run.erase(key);
    return run;
  };
  Json was = objects_of(std::string_view(text).substr(at, text.find('\n', at) - at)), is = objects_of(to_json(header));
  if (!was.is_object() || !was["phases"].is_array()) return false;
  for (const Json& phase : is["phases"])
    if (std::find(was["phases"].begin(), was["phases"].end(), phase) == was["phases"].end()) return false;
  was.erase("phases");
  is.erase("phases");
  return was == is;
}

}  // namespace isentrope::train
