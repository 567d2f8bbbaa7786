#include "csrc/methods/combinations.h"

#include <algorithm>
#include <array>

namespace isentrope::methods {
namespace {

// ---- the tables -------------------------------------------------------------------------------------------------

// The order of a list: an entry stands behind those of earlier rows. Kinds that are in no row stand anywhere.
struct Order {
  const char* list;
  std::array<std::array<const char*, 2>, 5> rows;  // kinds of one row, in either order
  const char* reason;
};
constexpr Order kOrders[] = {
    {"advantage",
     {{{"empg"}, {"entropy_advantage", "ceeh"}, {"perplexity"}, {"position"}, {"hicra"}}},
     "empg takes the mean off all that was done before it, and each of the others is bounded by the advantage that it "
     "finds, so that its sign stays"},
    {"weight",
     {{{"clip_b", "clip_v"}, {"top_entropy", "random_tokens"}}},
     "a share is one of the tokens that count, and clip_b and clip_v say which these are"}};

// Two that exclude one another: `one` of `list`, and another key with one of some values.
struct Exclusion {
  const char *list, *one;
  const char* key;                    // of objective
  std::array<const char*, 2> values;  // none: wherever the key is there
  const char* reason;                 // and what to write
};
constexpr Exclusion kExclusions[] = {
    {"weight",
     "attention_entropy",
     "inner_policy",
     {},
     "the layers behind an inner policy are not run, and have no attention to look at; leave one of them out"},
    {"weight",
     "correction",
     "inner_policy",
     {},
     "the ratio of an inner policy to the whole one that drew is no error of sampling, and would be weighed as one; "
     "leave one of them out"}};

// The same where both work, and against one another.
constexpr Exclusion kAgainst[] = {
    {"entropy",
     "entropic",
     "loss",
     {"clip_cov", "kl_cov"},
     "the loss selects tokens by advantages before the controller scales them, and holds the entropy that it steers "
     "by; "
     "one of the two is enough"},
    {"entropy",
     "band",
     "loss",
     {"clip_cov", "kl_cov"},
     "the loss selects tokens by advantages before the controller drops those of one sign, and holds the entropy that "
     "it steers by; one of the two is enough"}};

// ---- what they say ----------------------------------------------------------------------------------------------

const std::vector<Listed>& list_of(const Chosen& chosen, const std::string& name) {
  return name == "reward"      ? chosen.reward
         : name == "advantage" ? chosen.advantage
         : name == "entropy"   ? chosen.entropy
                               : chosen.weight;
}

std::string key_of(const std::string& list) { return list == "entropy" ? "objective.entropy" : list; }

bool has(const Chosen& chosen, const std::string& list, const std::string& kind) {
  const std::vector<Listed>& all = list_of(chosen, list);
  return std::any_of(all.begin(), all.end(), [&](const Listed& one) { return one.kind == kind; });
}

// The same thing done again. Two corrections are one where both give weights: of a token the one, of a completion the other may reject.
bool again(const std::string& list, const Listed& one, const Listed& other) {
  if (one.kind != other.kind) return false;
  if (list == "weight" && one.kind == "correction") return (one.detail == "reject") == (other.detail == "reject");
  return (one.kind != "op" && one.kind != "turn_credit") || one.detail == other.detail;
}

std::string twice(const Chosen& chosen) {
  for (const char* name : {"reward", "advantage", "weight", "entropy"}) {
    const std::vector<Listed>& list = list_of(chosen, name);
    for (size_t i = 0; i < list.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (again(name, list[i], list[j]))
          return key_of(name) + ": " + list[i].kind + " stands there twice; once does it" +
                 (list[i].kind == "correction" ? ", or one of mode reject beside one that weighs" : "");
  }
  return "";
}

int64_t row_of(const Order& order, const std::string& kind) {
  for (size_t row = 0; row < order.rows.size(); ++row)
    for (const char* one : order.rows[row])
      if (one && kind == one) return static_cast<int64_t>(row);
  return -1;
}

std::string order_of(const Order& order) {
  std::string text;
  for (const auto& row : order.rows) {
    if (!row[0]) break;
    text += (text.empty() ? "" : ", ") + std::string(row[0]) + (row[1] ? std::string(" or ") + row[1] : "");
  }
  return text;
}

std::string misplaced(const Chosen& chosen) {
  for (const Order& order : kOrders) {
    const std::vector<Listed>& list = list_of(chosen, order.list);
    for (size_t i = 0; i < list.size(); ++i)
      for (size_t j = 0; j < i; ++j) {
        const int64_t row = row_of(order, list[i].kind);
        if (row >= 0 && row_of(order, list[j].kind) > row)
          return std::string(order.list) + ": " + list[i].kind + " stands behind " + list[j].kind + ", and " +
                 order.reason + "; write them in the order " + order_of(order);
      }
  }
  return "";
}

bool holds(const Chosen& chosen, const Exclusion& rule) {
  if (!has(chosen, rule.list, rule.one)) return false;
  if (std::string(rule.key) == "inner_policy") return chosen.inner_policy;
  return std::any_of(rule.values.begin(), rule.values.end(),
                     [&](const char* value) { return value && chosen.loss == value; });
}

std::string said(const Chosen& chosen, const Exclusion& rule) {
  return key_of(rule.list) + ": " + rule.one + " together with objective." + rule.key +
         (rule.values[0] ? " " + chosen.loss : "") + ": " + rule.reason;
}

}  // namespace

std::string problem_of(const Chosen& chosen) {
  if (std::string problem = twice(chosen); !problem.empty()) return problem;
  if (std::string problem = misplaced(chosen); !problem.empty()) return problem;
  for (const Exclusion& rule : kExclusions)
    if (holds(chosen, rule)) return said(chosen, rule);
  if (has(chosen, "advantage", "gdpo") && chosen.scores == 1)
    return "advantage: gdpo normalises each reward by itself before it adds them up, and there is one; write {kind: "
           "grpo}, or give a second reward";
  return "";
}

std::vector<std::string> warnings_of(const Chosen& chosen) {
  std::vector<std::string> all;
  for (const Exclusion& rule : kAgainst)
    if (holds(chosen, rule)) all.push_back(said(chosen, rule));
  if (chosen.cut) return all;
  for (size_t i = 0; i < chosen.weight.size(); ++i)
    if (chosen.weight[i].micro)
      all.push_back("weight." + std::to_string(i) +
                    ".scope: micro is of each micro-batch, and batch.micro_tokens is 0, so that an update is one; it "
                    "has no effect");
  if (chosen.micro_loss)
    all.push_back(
        "objective.scope: micro is of each micro-batch, and batch.micro_tokens is 0, so that an update is "
        "one; it has no effect");
  return all;
}

}  // namespace isentrope::methods
