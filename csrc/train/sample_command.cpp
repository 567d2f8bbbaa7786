// isentrope sample: completions of prompts, as text or as JSON.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "csrc/data/jsonl.h"
#include "csrc/data/messages.h"
#include "csrc/message.h"
#include "csrc/rl/prompt.h"
#include "csrc/rl/rollout.h"
#include "csrc/rl/text_rules.h"
#include "csrc/train/chat_template.h"
#include "csrc/train/checkpoint.h"
#include "csrc/train/commands.h"
#include "csrc/train/completions.h"
#include "csrc/train/probe.h"
#include "csrc/train/process.h"
#include "csrc/train/prune_words.h"
#include "csrc/train/run_checkpoints.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {
namespace {

// Completions that are drawn before any is printed: many times what runs at once, so that threads stay busy, and few
// megabytes, so that any number of prompts can be completed.
constexpr int64_t kTogether = 1024;

// The conversation of a prompt, behind the system's message.
data::Conversation conversation_of(const data::Prompt& prompt, const std::string& system) {
  using Json = nlohmann::json;
  Json object = prompt.conversation.empty()
                    ? Json{{"messages", {{{"role", "user"}, {"content", valid_utf8(prompt.text)}}}}}
                    : Json::parse(prompt.conversation);
  Json& messages = object["messages"];
  if (!system.empty() && messages[0]["role"] != "system")
    messages.insert(messages.begin(), Json{{"role", "system"}, {"content", valid_utf8(system)}});
  return object.dump();
}

// Puts what the model's template makes of the prompts in their place.
void render(std::vector<data::Prompt>& prompts, const std::string& system, const std::string& checkpoint,
            const data::Tokenizer& tokenizer) {
  const data::Renderer chat = chat_template_of("default", tokenizer, "--chat");
  if (!chat)
    throw std::runtime_error(
        "--chat: " + checkpoint +
        " has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json; "
        "leave --chat out, and write the prompt as the model was trained on it");
  std::vector<data::Conversation> conversations;
  for (const data::Prompt& prompt : prompts) conversations.push_back(conversation_of(prompt, system));
  std::vector<data::Rendering> renderings = chat(conversations);
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (!renderings[i].problem.empty()) throw std::runtime_error(prompts[i].where + ": " + renderings[i].problem);
    data::Example example;
    data::apply(std::move(renderings[i]), example);
    prompts[i].text = example.prompt;
  }
}

// Throws what is wrong with a prompt, with the place that it came from. templated: a chat template wrote its special tokens.
std::vector<int64_t> encoded(const data::Prompt& prompt, bool templated, const data::Tokenizer& tokenizer,
                             int64_t context) {
  std::vector<int64_t> tokens;
  try {
    tokens = templated ? tokenizer.encode(prompt.text) : tokenizer.encode_prompt(prompt.text);
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(prompt.where + ": the prompt " + isentrope::quoted(prompt.text) + ": " + error.what());
  }
  if (tokens.empty())
    throw std::runtime_error(prompt.where + ": the prompt is empty; a completion follows at least one token");
  if (static_cast<int64_t>(tokens.size()) >= context)
    throw std::runtime_error(prompt.where + ": the prompt " + isentrope::quoted(prompt.text) + " has " +
                             std::to_string(tokens.size()) + " tokens, and the model's context (" +
                             std::to_string(context) + ") leaves no room for a completion; wanted at most " +
                             std::to_string(context - 1));
  return tokens;
}

// Throws what is wrong with a text, with the option that it came from.
rl::SamplingConfig sampling_of(const SampleOptions& options, const data::Tokenizer& tokenizer) {
  try {
    return rl::with_rules({.temperature = options.temperature,
                           .top_k = options.top_k,
                           .top_p = options.top_p,
                           .min_p = options.min_p,
                           .repetition_penalty = options.repetition_penalty,
                           .max_new_tokens = options.max_new_tokens,
                           .min_new_tokens = options.min_new_tokens,
                           .stop = options.stop,
                           .bad_words = options.bad_words},
                          tokenizer);
  } catch (const std::invalid_argument& error) {
    std::string text = error.what();
    if (text.starts_with("stop")) throw std::runtime_error("--" + text);
    throw std::runtime_error(text.replace(0, std::string("bad_words").size(), "--bad-word"));
  }
}

// The embeddings of a file, [P, C] float; undefined where there is no file.
torch::Tensor prefix_of(const std::string& file, int64_t width) {
  if (file.empty()) return {};
  const auto tensors = read_safetensors(file);
  const auto found = tensors.find("embeddings");
  if (found == tensors.end() || found->second.dim() != 2 || found->second.size(0) < 1 ||
      found->second.size(1) != width || !found->second.is_floating_point())
    throw std::runtime_error("--prefix: " + file + " has no tensor embeddings of [P, " + std::to_string(width) +
                             "] floats, rows as wide as the model's hidden_size");
  return found->second.to(torch::kFloat32);
}

std::string shown(const std::optional<double>& score) {
  if (!score) return "none";
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", *score);
  return text;
}

// Of each completion the score by every reward, by name.
std::vector<std::map<std::string, std::optional<double>>> scores_of(
    const std::map<std::string, rl::RewardFunction>& rewards, const std::vector<rl::Completion>& completions,
    const std::vector<data::Prompt>& prompts, int64_t first, const data::Tokenizer& tokenizer) {
  std::vector<std::map<std::string, std::optional<double>>> scores(completions.size());
  std::vector<std::string> texts;
  std::vector<rl::Answer> answers;
  std::vector<data::Example> examples;
  for (const rl::Completion& completion : completions) {
    const data::Prompt& prompt = prompts[first + completion.prompt];
    texts.push_back(prompt.text);
    answers.push_back(rl::answer_of(completion.tokens, completion.stopped, tokenizer));
    examples.push_back({prompt.text, "", "", prompt.columns, data::Split::test});
  }
  for (const auto& [name, function] : rewards) {
    rl::RewardConfig config;
    config.kind = name;
    const rl::RewardSum sum({config}, tokenizer.eos(), rewards);
    const std::vector<std::optional<double>> found = sum(texts, answers, examples).first;
    for (size_t i = 0; i < found.size(); ++i) scores[i][name] = found[i];
  }
  return scores;
}

}  // namespace

int sample_command(const std::string& path, const SampleOptions& options) {
  const std::string checkpoint = resolve_checkpoint(path);
  const data::Tokenizer tokenizer = load_tokenizer(checkpoint);
  const model::Decoder decoder = load_model(checkpoint, tokenizer.size());
  std::vector<data::Prompt> prompts;
  for (const std::string& text : options.prompts) prompts.push_back({"--prompt", text});
  if (!options.file.empty())
    for (data::Prompt& prompt : data::read_prompts(options.file, options.chat)) prompts.push_back(std::move(prompt));
  if (options.chat) render(prompts, options.system, checkpoint, tokenizer);
  const torch::Tensor prefix = prefix_of(options.prefix, decoder->config().hidden_size);
  const int64_t P = prefix.defined() ? prefix.size(0) : 0;
  std::vector<std::vector<int64_t>> tokens;
  for (data::Prompt prompt : prompts) {
    if (options.repeat_prompt)
      prompt.text = rl::read_twice({.prompt = prompt.text, .completion = "", .answer = ""}).prompt;
    tokens.push_back(encoded(prompt, options.chat, tokenizer, decoder->config().max_position_embeddings - P));
    tokens.back().insert(tokens.back().begin(), P, model::kHidden);
  }

  const auto rewards = load_rewards(options.rewards);
  rl::SamplingConfig sampling = sampling_of(options, tokenizer);
  if (!options.prune.empty()) try {
      sampling.prune = model::with_layer(parse_prune(options.prune), decoder, tokens,
                                         std::vector<torch::Tensor>(P > 0 ? tokens.size() : 0, prefix));
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("--").append(error.what()));
    }
  std::optional<Probe> probe;
  if (!options.probe.empty()) probe = load_probe(options.probe, decoder->config().hidden_size);
  const auto count = static_cast<int64_t>(prompts.size()), some = std::max<int64_t>(kTogether / options.samples, 1);
  for (int64_t first = 0; first < count; first += some) {
    const std::vector<std::vector<int64_t>> part(tokens.begin() + first,
                                                 tokens.begin() + std::min(first + some, count));
    std::string text;
    const rl::RolloutKey key{.seed = options.seed, .first_prompt = first};
    sampling.embeddings.assign(P > 0 ? part.size() : 0, prefix);
    const auto completions = probe ? rollout_by_class(*probe, probe->classes(hidden_of(decoder, part)), decoder, part,
                                                      options.samples, sampling, tokenizer.end_ids(), key)
                                   : rl::rollout(decoder, part, options.samples, sampling, tokenizer.end_ids(), key);
    const auto scores = scores_of(rewards, completions, prompts, first, tokenizer);
    for (size_t i = 0; i < completions.size(); ++i) {
      const rl::Completion& completion = completions[i];
      const int64_t group = first + completion.prompt;
      if (options.json) {
        nlohmann::ordered_json line = to_json(group, prompts[group].text, completion, tokenizer);
        for (const auto& [name, score] : scores[i])
          line["rewards"][name] = score ? nlohmann::ordered_json(*score) : nlohmann::ordered_json(nullptr);
        text += line_of(line) + "\n";
        continue;
      }
      text += options.chat ? rl::answer_of(completion.tokens, completion.stopped, tokenizer).text
                           : prompts[group].text + tokenizer.decode(completion.tokens);
      if (!completion.stopped) text += "  [cut at the length limit]";
      for (const auto& [name, score] : scores[i]) text += "  [" + name + " " + shown(score) + "]";
      text += "\n";
    }
    print(valid_utf8(text));  // a completion of bytes may end within a character
  }
  return 0;
}

}  // namespace isentrope::train
