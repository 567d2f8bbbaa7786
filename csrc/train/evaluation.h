// What a phase is measured by on held-out data: the loss on text, or the accuracy of answers to prompts.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/packed_source.h"
#include "csrc/data/source.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"
#include "csrc/model/decoder.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"
#include "csrc/train/interval.h"
#include "csrc/train/samples.h"

namespace isentrope::train {

struct EvaluationConfig {
  bool skip = false;
  int64_t every = 0;
  int64_t from = 0;
  int64_t prompts = 256;
  int64_t sampled_prompts = 128;
  int64_t num_generations = 8;
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0;
  double repetition_penalty = 1.0;
  int64_t max_new_tokens = 0;
  std::vector<std::string> stop = {}, bad_words = {};
  std::string probe;
  bool repeat_prompt = false;
  bool tasks = false;
  std::optional<model::PruneConfig> prune = {};
  int64_t windows = 64;
  int64_t show = 4;

  template <class Visitor>
  void visit(Visitor& v) {
    v("skip", skip, "Make none of these evaluations; their data need not be there.");
    v("every", every,
      "Steps between evaluations on validation data; 0 for none. Test data are for the end of the phase (test).",
      at_least(0));
    v("from", from, "First step that is evaluated.", at_least(0));
    v("prompts", prompts, "Held-out prompts answered greedily.", between(1, 1 << 20));
    v("sampled_prompts", sampled_prompts, "Held-out prompts answered by samples.", between(1, 1 << 20));
    v("num_generations", num_generations, "Samples a prompt; pass@k is told for k up to it.", between(1, 1 << 16));
    v("temperature", temperature, "Temperature of the samples.", between(1e-3, 100));
    v("top_k", top_k, "Of the samples, as rollout.top_k, which says nothing here.", at_least(0));
    v("top_p", top_p, "Of the samples, as rollout.top_p, which says nothing here.", between(0, 1));
    v("min_p", min_p, "Of the samples, as rollout.min_p, which says nothing here.", between(0, 1));
    v("repetition_penalty", repetition_penalty,
      "Of all answers, as rollout.repetition_penalty, which says nothing here.", above_to(0, 100));
    v("max_new_tokens", max_new_tokens,
      "Longest answer in tokens; 0 for that of the rollouts, or what the context leaves.", at_least(0));
    v("stop", stop, "Texts that end an answer; none for those of the rollouts.");
    v("bad_words", bad_words, "Of all answers, as rollout.bad_words, which says nothing here.");
    v("probe", probe,
      "File of isentrope probe for this model: samples are drawn at the temperature and, of the longest, the length "
      "that it foretells for their prompt (DiffAdapt); empty: all alike.");
    v("repeat_prompt", repeat_prompt,
      "Prompts stand twice before the answer, a line break between (JRT-Prompt, arXiv 2407.05483), which helps models "
      "that cannot look back. Rewards read the prompt once.");
    v("tasks", tasks,
      "Of test: at the end of each phase also on the test data of every phase up to it, and what was forgotten of them "
      "(docs/metrics.md).");
    v("prune", prune,
      "Tokens of each prompt that later layers do not read, by their matrix entropy (EntropyPrune, docs/options.md); "
      "what needs no answers, as eval/loss, is not measured then. Absent: none.");
    v("windows", windows, "Held-out windows of a context each whose loss is measured; pretrain phases.", at_least(1));
    v("show", show, "Samples, or windows of text, that go to samples.jsonl with the entropy of each token.",
      at_least(0));
  }
};

// What was found, under the names that csrc/train/metrics.h documents: eval/loss, eval/greedy, …
using Evaluation = std::map<std::string, double>;

struct HeldOutSize {
  int64_t examples = 0;  // prompts, or windows of text
  int64_t tokens = 0;    // of text
  int64_t left_out = 0;  // prompts that are too long
  int64_t skipped = 0;   // lines that are broken
  std::vector<std::string> notes = {};
};

// An answer to a held-out prompt, and how it was judged.
struct Answer {
  int64_t group;  // number of the prompt among those answered
  std::string prompt;
  rl::Completion completion;
  std::vector<int64_t> prompt_tokens;
  bool greedy;                  // its likeliest tokens, else a sample
  std::optional<double> score;  // by the first reward; nothing where it does not apply
};

class HeldOut {
 public:
  virtual ~HeldOut() = default;
  virtual HeldOutSize size() const = 0;
  // What of config asks for more than there is: a text for each key, which begins with section and key.
  virtual std::vector<std::string> shortages(const EvaluationConfig& config, const std::string& section) const = 0;
  // A pure function of weights and config: two evaluations of the same weights agree. shown: gets the first
  // config.show samples; answers: gets all, the greedy ones first, text has none; intervals: gets those of docs/evaluation.md.
  // peers: call this alike, each computes a part, and all return the same, bit for bit what one alone does.
  virtual Evaluation evaluate(const model::Decoder& model, const EvaluationConfig& config,
                              std::vector<Sample>* shown = nullptr, std::vector<Answer>* answers = nullptr,
                              Intervals* intervals = nullptr, const rl::Peers& peers = rl::Peers()) const = 0;
};

// Windows of a held-out text: eval/loss, nats a token, and eval/bits_per_byte, the nats of all targets divided
// by the bytes of text that they stand for, and by ln 2. Ends of documents cost nats and stand for no byte. Of a hidden Markov model
// also eval/floor, what its exact filter pays for the same targets, nats a token, and eval/excess, the loss above it.
// masking: of masked tokens, the same at every evaluation, eval/loss alone.
class HeldOutText : public HeldOut {
 public:
  // rows: windows that are computed together. Throws as data::Windows does.
  HeldOutText(std::shared_ptr<const data::TokenShard> tokens, const data::Tokenizer& tokenizer, int64_t context,
              int64_t rows, const std::string& name, const std::optional<data::Masking>& masking = {},
              const std::optional<data::HmmConfig>& hmm = {});
  HeldOutSize size() const override;
  std::vector<std::string> shortages(const EvaluationConfig& config, const std::string& section) const override;
  Evaluation evaluate(const model::Decoder& model, const EvaluationConfig& config, std::vector<Sample>* shown,
                      std::vector<Answer>* answers, Intervals* intervals, const rl::Peers& peers) const override;

 private:
  const data::Tokenizer& tokenizer_;
  std::optional<data::HmmFloor> floor_;
  std::string name_;
  data::Windows windows_;
  torch::Tensor bytes_of_;  // [V] int64: bytes of text that a token stands for
  int64_t rows_;
};

// Prompts and what a right answer to them is: eval/greedy, eval/sampled, eval/pass@<k> for the k of
// rl::pass_ks(config.num_generations), eval/entropy, eval/length; of conversations eval/turns/… (csrc/rl/conversation.h) and
// eval/score/<name>, the mean of each of the environment's scores, of the samples; where the prompts are of several sizes also
// eval/sampled/<size> and eval/length/<size> of each. On request eval/loss: the mean cross-entropy of the tokens of the
// completions that the data have for the prompts answered greedily, nats a token; prompts are not counted, ends of sequence
// are (csrc/data/collate.h). eval/unscored, where it is not 0: share of the answers that the first reward does not apply to; they are
// not right.
class HeldOutPrompts : public HeldOut {
 public:
  // A completion is right where the first of rewards gives it at least 0.5; no reward: exact. context: the model's; throws
  // where an example does not fit, unless data.truncation leaves it out.
  // loss_rows: completions whose loss is computed together; 0: no loss. With it a completion is looked at as training looks at it:
  // what is wrong with it throws, one too long throws, does not count or is cut, as data.truncation says.
  // rollouts: their max_new_tokens and stop are for evaluations that do not set their own; cache: of the rollouts. tint: the largest of its sizes, the one
  // training is for, or with mix: example as many prompts of each.
  HeldOutPrompts(const data::DataConfig& data, const std::vector<rl::RewardConfig>& rewards,
                 const std::map<std::string, rl::RewardFunction>& custom, const data::Tokenizer& tokenizer,
                 data::Split split, int64_t context, const rl::SamplingConfig& rollouts,
                 const rl::CacheConfig& cache = {}, int64_t loss_rows = 0);
  // Of a dpo phase, whose data have pairs: evaluations also tell how the model orders them by its log-ratios to the reference,
  // eval/preference, eval/margin, beta times the mean difference, and eval/information: of the answers sampled to a prompt the entropy of
  // their differential information (csrc/methods/preference.h), nats, mean over prompts.
  void compare_with(const model::Decoder& reference, double beta) { reference_ = reference, beta_ = beta; }
  HeldOutSize size() const override;  // of all parts
  std::vector<std::string> shortages(const EvaluationConfig& config, const std::string& section) const override;
  Evaluation evaluate(const model::Decoder& model, const EvaluationConfig& config, std::vector<Sample>* shown,
                      std::vector<Answer>* answers, Intervals* intervals, const rl::Peers& peers) const override;

 private:
  const data::Tokenizer& tokenizer_;
  struct Part {
    std::string size;  // "" where there is one part
    std::unique_ptr<data::ExampleSource> source;
  };
  int64_t take_of(size_t part, int64_t count) const;
  std::vector<data::Example> take(int64_t count, std::vector<size_t>* part_of) const;
  std::optional<double> loss(const model::Decoder& model, const std::vector<data::Example>& examples,
                             Interval* interval, const rl::Peers& peers) const;

  void prefer(const model::Decoder& model, const std::vector<data::Example>& examples, Evaluation& found,
              const rl::Peers& peers) const;

  std::optional<model::Decoder> reference_;
  double beta_ = 1;
  std::vector<Part> parts_;
  rl::RewardSum score_;
  rl::SamplingConfig rollouts_;
  rl::CacheConfig cache_;
  data::Use learnt_;  // what training would make of a completion
  int64_t loss_rows_;
  std::string more_;  // how to have more of them
  data::Split split_;
};

}  // namespace isentrope::train
