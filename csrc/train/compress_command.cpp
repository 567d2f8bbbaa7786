// isentrope compress: texts without the words that a tagger (objective tag) would drop first (LLMLingua-2, arXiv 2403.12968).
#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "csrc/data/jsonl.h"
#include "csrc/data/keep_labels.h"
#include "csrc/message.h"
#include "csrc/train/checkpoint.h"
#include "csrc/train/commands.h"
#include "csrc/train/completions.h"
#include "csrc/train/config_fields.h"
#include "csrc/train/process.h"
#include "csrc/train/run_checkpoints.h"

namespace isentrope::train {
namespace {

constexpr int64_t kRows = 8;  // stretches of text that are computed together

// Where tokens are cut into stretches of at most `context`, between words where one fits.
std::vector<std::pair<size_t, size_t>> stretches_of(const data::TokenWords& tokens, size_t context) {
  std::vector<std::pair<size_t, size_t>> found;
  for (size_t begin = 0; begin < tokens.ids.size();) {
    size_t end = std::min(begin + context, tokens.ids.size());
    if (end < tokens.ids.size()) {
      size_t cut = end;
      while (cut > begin && tokens.word[cut] == tokens.word[cut - 1]) --cut;
      if (cut > begin) end = cut;
    }
    found.emplace_back(begin, end);
    begin = end;
  }
  return found;
}

// Of each word the mean over its tokens of the probability of the label 1.
std::vector<double> kept_probabilities(model::Decoder& model, const data::TokenWords& tokens, size_t words) {
  const torch::NoGradGuard no_grad;
  const auto stretches = stretches_of(tokens, static_cast<size_t>(model->config().max_position_embeddings));
  std::vector<double> sums(words), counts(words);
  for (size_t first = 0; first < stretches.size(); first += kRows) {
    const size_t rows = std::min<size_t>(kRows, stretches.size() - first);
    std::vector<int64_t> length;
    for (size_t r = 0; r < rows; ++r)
      length.push_back(static_cast<int64_t>(stretches[first + r].second - stretches[first + r].first));
    const int64_t T = *std::max_element(length.begin(), length.end());
    torch::Tensor ids = torch::zeros({static_cast<int64_t>(rows), T}, torch::kInt64);
    for (size_t r = 0; r < rows; ++r)
      std::copy_n(tokens.ids.begin() + static_cast<std::ptrdiff_t>(stretches[first + r].first), length[r],
                  ids.data_ptr<int64_t>() + static_cast<int64_t>(r) * T);
    const torch::Tensor kept = model->label_logits(ids, nullptr, torch::tensor(length))
                                   .to(torch::kFloat64)
                                   .softmax(-1)
                                   .select(-1, 1)
                                   .contiguous();  // [rows, T]
    for (size_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < length[r]; ++t) {
        const int64_t word = tokens.word[stretches[first + r].first + static_cast<size_t>(t)];
        if (word < 0) continue;
        sums[word] += kept.const_data_ptr<double>()[static_cast<int64_t>(r) * T + t];
        ++counts[word];
      }
  }
  for (size_t w = 0; w < words; ++w) sums[w] /= std::max(counts[w], 1.0);
  return sums;
}

// The model with that model.compute, which its folder does not tell.
model::Decoder computed_in(const std::string& compute, const model::Decoder& model) {
  if (compute == model->config().compute) return model;
  const torch::NoGradGuard no_grad;
  model::DecoderConfig config = model->config();
  config.compute = compute;
  config.lora.reset();
  model::Decoder other(config, std::nullopt);
  const auto from = model->folded_weights(), to = other->named_weights();
  for (size_t i = 0; i < to.size(); ++i) torch::Tensor(to[i].second).copy_(from[i].second);
  return other;
}

bool forced(const std::string& word, const CompressOptions& options) {
  if (options.keep_digits && std::any_of(word.begin(), word.end(), [](unsigned char c) { return std::isdigit(c); }))
    return true;
  return std::any_of(options.force_keep.begin(), options.force_keep.end(), [&](const std::string& one) {
    const bool marks = std::all_of(one.begin(), one.end(), [](unsigned char c) { return std::ispunct(c); });
    return marks ? word.find(one) != std::string::npos : data::compared_word(word) == data::compared_word(one);
  });
}

}  // namespace

int compress_command(const std::string& path, const CompressOptions& options) {
  if (!(options.rate > 0 && options.rate <= 1))
    throw std::runtime_error("--rate: " + to_text(options.rate) +
                             " is out of range; wanted the share of words that stay, above 0, at most 1");
  for (const std::string& one : options.force_keep)  // "" stands in every word, "New York" in none
    if (one.empty() || std::any_of(one.begin(), one.end(), [](unsigned char c) { return std::isspace(c); }))
      throw std::runtime_error(
          "--force-keep: '" + one +
          "' is not one word; words are parted by white space: give one, or marks that words hold, "
          "and the option once for each");
  const std::string checkpoint = resolve_checkpoint(path);
  const data::Tokenizer tokenizer = load_tokenizer(checkpoint);
  model::Decoder model = computed_in(options.compute, load_model(checkpoint, tokenizer.size()));
  if (model->config().num_labels != 2)
    throw std::runtime_error(checkpoint + ": has " + std::to_string(model->config().num_labels) +
                             " labels of tokens (num_labels in config.json), and a word is kept or dropped by 2; train "
                             "one with objective: {kind: tag} (docs/encoders.md)");
  for (const data::Prompt& prompt : data::read_prompts(options.data)) {
    const std::string& text = prompt.text;
    const std::vector<data::Word> words = data::words_of(text);
    std::vector<double> probability;
    try {
      probability = kept_probabilities(model, data::token_words(text, words, tokenizer), words.size());
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(prompt.where + ": " + error.what());
    }
    std::vector<bool> must;
    for (const data::Word& word : words) must.push_back(forced(text.substr(word.text, word.end - word.text), options));
    std::vector<size_t> order(words.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return must[a] != must[b] ? must[a] : probability[a] > probability[b];
    });
    const auto asked = static_cast<size_t>(std::llround(options.rate * static_cast<double>(words.size())));
    std::vector<bool> stays = must;
    for (size_t i = 0; i < asked; ++i) stays[order[i]] = true;
    std::string compressed;
    size_t kept = 0;
    for (size_t w = 0; w < words.size(); ++w) {
      if (!stays[w]) continue;
      const size_t begin = compressed.empty() ? words[w].text : words[w].begin;
      compressed += text.substr(begin, words[w].end - begin);
      ++kept;
    }
    if (!options.json) {
      print(valid_utf8(compressed) + "\n");
      continue;
    }
    nlohmann::ordered_json line{
        {"prompt", valid_utf8(compressed)}, {"original", valid_utf8(text)}, {"words", words.size()}, {"kept", kept}};
    line["threshold"] =
        asked > 0 ? nlohmann::ordered_json(probability[order[asked - 1]]) : nlohmann::ordered_json(nullptr);
    line["probability"] = probability;
    print(line_of(line) + "\n");
  }
  return 0;
}

}  // namespace isentrope::train
