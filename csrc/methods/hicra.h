// Advantage: the tokens that plan learn more (arXiv 2509.03646, "HICRA": hierarchy-aware credit assignment).
//
//   A ← A + alpha |A| on planning tokens
//
// A planning token holds part of a strategic gram: a phrase of a file that `isentrope grams` mines from right answers (3 to 5 words that
// many answers have). Words are runs of letters, digits, _ and ' (bytes beyond ASCII count as letters), and every other character but
// white space is a word of its own; upper and lower case of ASCII are alike, white space between words does not matter, and grams may
// overlap.
#pragma once
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "csrc/field.h"
#include "csrc/methods/method.h"
#include "csrc/methods/token_text.h"

namespace isentrope::methods {

// [B, T] of advantage's dtype, 0 where mask does not mark. planning [B, T] bool or number. alpha 0 to 1, so that no sign changes; 0
// changes nothing. float32 or float64.
Tensor hicra(const Tensor& advantage, const Tensor& planning, const Tensor& mask, double alpha);

// Grams by their words.
class Grams {
 public:
  explicit Grams(const std::vector<Gram>& grams);

  struct Place {
    size_t begin = 0, end = 0;  // bytes
    int64_t cluster = 0;
  };
  // Every place of a gram in text, in order of their beginnings, then of their lengths.
  std::vector<Place> find(const std::string& text) const;

 private:
  std::unordered_map<std::string, int64_t> cluster_;  // of a gram's words, one space between them
  std::vector<size_t> lengths_;                       // that grams have, in words, rising
};

// −Σ q log q over the shares q of counts, nats; 0 of none.
double semantic_entropy(const std::map<int64_t, int64_t>& counts);

struct Hicra {
  static constexpr const char* kKind = "hicra";
  static constexpr const char* kScope = "completion";
  static constexpr const char* kHelp =
      "A + alpha |A| on the tokens of strategic grams, phrases with which right answers plan: right answers reinforce "
      "their planning more, wrong ones punish it less (HICRA, arXiv 2509.03646, with advantage: [{kind: dr_grpo}, …]).";
  double alpha = 0.2;
  std::string grams;

  std::string problem() const {
    return grams.empty() ? "grams: names no file; make one of right answers with isentrope grams" : "";
  }
  template <class Visitor>
  void visit(Visitor& v) {
    v("alpha", alpha, "Share of |A| that planning tokens gain; 0: no effect.", between(0, 1));
    v("grams", grams, "File of the grams, as isentrope grams writes it.");
  }

  TextOf text = {};                            // of tokens, by bind(); not a key
  std::shared_ptr<const Grams> found_in = {};  // what the file holds; not a key
  // Throws std::invalid_argument where the file is none of grams, or none of its grams can be written in tokens.
  void bind(const TokenText& tokens);
  void apply(Completions& c, Context& context) const;
};

}  // namespace isentrope::methods
