#include "csrc/methods/hicra.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {
namespace {

struct Word {
  size_t begin = 0, end = 0;
  std::string text = {};  // in lower case
};

bool of_word(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9') || byte == '_' ||
         byte == '\'' || byte >= 0x80;
}
bool white(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::vector<Word> words_of(const std::string& text) {
  std::vector<Word> words;
  for (size_t at = 0; at < text.size();) {
    if (white(text[at])) {
      ++at;
      continue;
    }
    size_t end = at + 1;
    if (of_word(text[at]))
      while (end < text.size() && of_word(text[end])) ++end;
    Word word{at, end, text.substr(at, end - at)};
    for (char& c : word.text)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    words.push_back(std::move(word));
    at = end;
  }
  return words;
}

}  // namespace

Tensor hicra(const Tensor& advantage, const Tensor& planning, const Tensor& mask, double alpha) {
  constexpr const char* kOp = "method_hicra";
  TokenArguments given(kOp, "advantage", advantage, mask);
  PlanLoop p{given.rows()};
  p.advantage = given.first(), p.plans = given.take_flags("planning", planning), p.alpha = alpha;
  check_number(kOp, "alpha", alpha, alpha >= 0 && alpha <= 1, "0 to 1");
  return given.made(p, ISENTROPE_PICK(plan_on_cpu));
}

Grams::Grams(const std::vector<Gram>& grams) {
  std::set<size_t> lengths;
  for (const Gram& gram : grams) {
    const std::vector<Word> words = words_of(gram.text);
    std::string joined;
    for (const Word& word : words) joined += (joined.empty() ? "" : " ") + word.text;
    if (words.empty()) continue;
    cluster_.emplace(joined, gram.cluster);
    lengths.insert(words.size());
  }
  lengths_.assign(lengths.begin(), lengths.end());
}

std::vector<Grams::Place> Grams::find(const std::string& text) const {
  const std::vector<Word> words = words_of(text);
  std::vector<Place> places;
  for (size_t w = 0; w < words.size(); ++w) {
    std::string joined;
    size_t held = 0;
    for (const size_t length : lengths_) {
      if (w + length > words.size()) break;
      for (; held < length; ++held) joined += (held == 0 ? "" : " ") + words[w + held].text;
      if (const auto found = cluster_.find(joined); found != cluster_.end())
        places.push_back({words[w].begin, words[w + length - 1].end, found->second});
    }
  }
  return places;
}

double semantic_entropy(const std::map<int64_t, int64_t>& counts) {
  double total = 0, entropy = 0;
  for (const auto& [cluster, count] : counts) total += static_cast<double>(count);
  for (const auto& [cluster, count] : counts)
    if (count > 0) entropy -= static_cast<double>(count) / total * std::log(static_cast<double>(count) / total);
  return entropy;
}

void Hicra::bind(const TokenText& tokens) {
  const std::vector<Gram> read = tokens.read_grams(grams);
  // Its words one by one, since a text may have nothing between them; a tokenizer may have letters of one case alone.
  const auto writes = [&](const Gram& gram) {
    const std::vector<Word> words = words_of(gram.text);
    return std::all_of(words.begin(), words.end(), [&](const Word& word) {
      std::string upper = word.text;
      for (char& c : upper)
        if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
      return tokens.writes(word.text) || tokens.writes(upper);
    });
  };
  if (std::none_of(read.begin(), read.end(), writes))
    throw std::invalid_argument("grams: " + grams +
                                ": the tokenizer can write none of its phrases; mine them of answers of this model, "
                                "with isentrope grams");
  found_in = std::make_shared<const Grams>(read);
  text = tokens.of;
}

void Hicra::apply(Completions& c, Context& context) const {
  const Tensor token = c.token.contiguous();
  const int64_t B = token.size(0), T = token.size(1);
  Tensor planning = torch::zeros({B, T}, torch::kBool);
  const auto length = c.length.accessor<int64_t, 1>();
  std::map<int64_t, int64_t> counts;  // of each cluster
  for (int64_t b = 0; b < B; ++b) {
    const TokenizedText own({token.const_data_ptr<int64_t>() + b * T, static_cast<size_t>(length[b])}, text);
    for (const Grams::Place& place : found_in->find(own.text())) {
      ++counts[place.cluster];
      std::fill(planning.mutable_data_ptr<bool>() + b * T + own.token_at(place.begin),
                planning.mutable_data_ptr<bool>() + b * T + own.token_at(place.end - 1) + 1, true);
    }
  }
  const double tokens = std::max(c.mask.sum().item<double>(), 1.0);
  context.stats["hicra/planning"] = (planning & c.mask).sum().item<double>() / tokens;
  context.stats["hicra/semantic_entropy"] = semantic_entropy(counts);
  c.advantage = hicra(c.advantage, planning, c.mask, alpha);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_hicra(Tensor advantage, Tensor planning, Tensor mask, *, float alpha=0.2) -> Tensor", hicra);
}

}  // namespace isentrope::methods
