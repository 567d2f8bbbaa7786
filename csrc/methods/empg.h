// Advantage: steps of a completion learn by how sure the policy was of them (arXiv 2509.09265, "EMPG": entropy-modulated policy
// gradients).
//
//   H_s   mean entropy of a step's tokens;  h = (H − min H) / (max H − min H + 1e-8) over all steps of what is handed over
//   g_s   exp(−k h_s) / mean of exp(−k h), whose mean over steps is 1
//   A ← A g_s + zeta exp(−future_k h_next), without the second term on a completion's last step
//   A ← A − mean over steps of A (a step's A is the mean of its tokens)
//
// A step is a stretch of a row's tokens with one number; tokens that the mask leaves out are of none. Without steps, or with one h, h is 0.
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"
#include "csrc/methods/token_text.h"

namespace isentrope::methods {

// [B, T] of advantage's dtype, 0 where mask does not mark. entropy [B, T], nats, of the policy that drew; step [B, T] integer, rising in
// a row. centre: "steps", "tokens" (the mean over tokens), "none". k, future_k, zeta ≥ 0; k 0, zeta 0 and centre none change nothing.
// float32 or float64.
Tensor empg(const Tensor& advantage, const Tensor& entropy, const Tensor& mask, const Tensor& step, double k,
            double future_k, double zeta, c10::string_view centre);

struct Empg {
  static constexpr const char* kKind = "empg";
  static constexpr const char* kScope = "step";
  static constexpr const char* kHelp =
      "Steps of low entropy learn more and hesitant ones less, a step gains where the next one is sure, and the mean "
      "over the step's steps is taken away (EMPG, arXiv 2509.09265). A completion's steps end with a text, or are its "
      "turns.";
  std::string steps = "marker";
  std::string marker = "\n\n";
  double k = 1.0;
  double future_k = 1.0;
  double zeta = 0.1;
  std::string centre = "steps";

  std::string problem() const { return marker.empty() ? "marker: is empty; wanted the text that ends a step" : ""; }
  template <class Visitor>
  void visit(Visitor& v) {
    v("steps", steps,
      "What the steps are: marker, stretches that a text ends; turns, those of a conversation with an environment, as "
      "in the paper.",
      one_of({"marker", "turns"}));
    v("marker", marker,
      "Text that ends a step, over however many tokens; a token that holds part of it belongs to the step that ends.");
    v("k", k, "How much less hesitant steps learn; 0: all alike.", at_least(0));
    v("future_k", future_k, "How fast the gain falls with the entropy of the next step.", at_least(0));
    v("zeta", zeta, "Gain of a step whose next one is the surest; 0: none. One port has 0.05.", at_least(0));
    v("centre", centre,
      "Whose mean is taken away in the end: of steps, each counted once; of tokens; or none, which is ours.",
      one_of({"steps", "tokens", "none"}));
  }

  bool needs_turns() const { return steps == "turns"; }
  TextOf text = {};  // of tokens, by bind(); not a key
  // Throws std::invalid_argument where the marker cannot be written in tokens.
  void bind(const TokenText& tokens);
  void apply(Completions& c, Context& context) const;
};

}  // namespace isentrope::methods
