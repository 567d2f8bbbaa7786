// What a run tells: one JSON object a line in metrics.jsonl, and the console.
//
// A line speaks of one step of a phase or of one evaluation. Keys, in this order; those that do not apply are
// left out, as a mean over no token is; a value that is not finite is null. None depends on batch.micro_tokens but by
// rounding, and with objective.scope: micro, which picks tokens by micro-batch:
//
//   phase, step            the step's number counts from 1; an evaluation at step n is of the weights after n steps
//   loss                   as minimised, mean over the step's updates
//   reward/mean, reward/std           of the step's completions
//   entropy/mean, entropy/std         of the policy at the tokens that are learnt, nats
//   kl/k1, kl/k2, kl/k3    estimators of KL(policy that drew ‖ policy); ref_kl/… of KL(policy ‖ reference), if there is one
//   ref_kl/easy, ref_kl/medium, ref_kl/hard   with rollout.ares.kl: its k3 over the tokens of prompts of a difficulty
//   ratio/max              largest policy / policy that drew
//   clip/frac              share of tokens whose gradient the clipping removes
//   cov/mean, cov/max      covariance of log-probability and advantage, over the tokens; about the means of the whole update
//   select/frac            share of tokens that the loss picks (clip_cov, kl_cov, random)
//   grad_norm              before clipping
//   lr                     learning rate
//   length/mean            of the completions, tokens
//   tokens_per_s           tokens learnt and drawn, prompts included, per second of the step
//   rollout_tokens_per_s   tokens drawn per second of the rollouts
//   law/a, law/b, law/r2, law/rmse   of R = -a exp(H) + b over the steps of a grpo phase so far (csrc/rl/entropy_law.h), where
//                          nothing holds the entropy up
//   law/ceiling            b - a, the reward at entropy 0
//   sigma/time_share       share of the step's time that the power steps of model.sigma_reparam took
//   ares/threshold         with rollout.ares (csrc/rl/ares.h): entropy from which on a window is high, nats
//   ares/groups/…, ares/high/…, ares/target/…   for easy, medium and hard: groups of the step, the mean number of high
//                          windows of their completions, and the number they are compared with
//   ares/beta/…            with rollout.ares.kl: weights of the divergence from the reference in this step
//   ares/shaping           mean of what was added to the rewards, which reward/mean does not tell
//   generated              tokens drawn in the step, those of dropped branches included
//   length/truncated, groups/flat     shares: completions cut at the length limit, groups whose rewards are equal
//   groups/kept, groups/empty_steps   with rollout.filter_groups: groups that the step learns from, and how many steps in a row
//                          had too few, this one included; such a step has no loss
//   branch/threshold       with rollout.branch: entropy of a window at which sequences branch, nats
//   branch/kept, branch/dropped       branches a prompt that went on, and that ended after their trial (csrc/rl/rollout.h)
//   samples/std            with rollout.allocation: standard deviation of the samples a prompt
//   cache/preempted        with rollout.cache_tokens: how often a sequence gave its pages up; depends on the number of threads
//   eval/split             validation or test; evaluations alone, as all that follows
//   eval/loss              cross-entropy of held-out text, nats a token
//   eval/bits_per_byte     of held-out text: its bits in all, over its bytes
//   eval/greedy, eval/sampled, eval/pass@k, eval/k   shares of right answers; k samples a prompt
//   eval/entropy, eval/length         of the samples: nats a token, tokens
//   eval/sampled/7, eval/length/7     the same of prompts of one size, where data.tint.mix is example
//   time_s                 seconds since the run began or was resumed
//
//   attention_entropy      every objective.attention_entropy.every steps, an object: entropy, normalized, max_logit and, if asked
//                          for, bound, certified (layer × head), collapsed, overloaded, alarms: AttentionStatistics below
//   sigma                  every model.sigma_reparam.every steps, an object {"layers.0.q": [σ, γ], …} of the weights after the
//                          step: SigmaFigures below
//
// Any other name is written before these two, in alphabetical order. All but tokens_per_s, rollout_tokens_per_s,
// sigma/time_share and time_s repeat themselves when a run is repeated or resumed; all but the third number of sigma, which
// LAPACK computes, with another number of threads too.
//
// What an evaluation shows of its answers stands beside it, in samples.jsonl: csrc/train/samples.h.
#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace isentrope::train {

// The attention of one update, as csrc/train/attention_watch.h sees it. L layers, H heads; a row is a query with n > 1 keys in
// sight.
using HeadTable = std::vector<std::vector<double>>;  // [L][H]
struct AttentionStatistics {
  HeadTable entropy;      // mean over rows of the row's entropy, nats
  HeadTable normalized;   // mean over rows of entropy / log n: 1 where all keys weigh alike, 0 where one has all
  HeadTable max_logit;    // largest logit of any row
  double collapsed = 0;   // share of the L · H heads whose normalized entropy is below 0.05
  double overloaded = 0;  // share whose entropy is in the highest quarter of [0, largest entropy of any head]
  std::vector<std::string> alarms;  // "layer 2: 3 of 4 heads have collapsed …"
  HeadTable bound = {};      // mean over rows of bound / log n (csrc/model/entropy_bound.h); never above normalized
  HeadTable certified = {};  // share of rows whose bound / log n is above 0.1
};

// A layer of learned spectral norm after an update.
struct SigmaFigures {
  std::string layer;               // "layers.0.q", "head"
  double sigma = 0;                // spectral norm of its weight as the power steps find it
  double gamma = 0;                // the learned norm
  std::optional<double> svd = {};  // the true spectral norm, with model.sigma_reparam.svd: the list's third number
};

struct Record {
  std::string phase;
  int64_t step = 0;
  std::map<std::string, double> values;
  std::string split = {};  // eval/split; empty for a step of training
  std::optional<AttentionStatistics> attention = {};
  std::vector<SigmaFigures> sigma = {};
};

// Named values in the order above.
std::vector<std::pair<std::string, double>> in_order(const std::map<std::string, double>& values);

// The record as one line of JSON, without its end of line. Numbers read back to the same double.
std::string to_json(const Record& record);

// Removes every line that a run standing after step `step` of phase `phases[phase]` has still to write, and a
// torn last line. The file is rewritten beside and renamed. A file that is not there is left so.
void keep_metrics_until(const std::string& file, const std::vector<std::string>& phases, int64_t phase, int64_t step);

class Metrics {
 public:
  explicit Metrics(const std::string& file);  // appends
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  // One write a line: a killed process leaves whole lines, but for the last at most.
  void write(const std::string& line);  // without its end of line
  void write(const Record& record) { write(to_json(record)); }

 private:
  std::string file_;
  int fd_ = -1;
};

// What a person sees. On a terminal: a bar that is redrawn at most ten times a second. Elsewhere: a line
// every `interval` seconds and at the end of a phase. quiet: warnings alone.
class Console {
 public:
  explicit Console(bool quiet = false, std::FILE* out = stdout, double interval = 10.0);
  ~Console();
  void begin_phase(const std::string& name, int64_t steps, int64_t done = 0);
  // Shows step, reward or loss, entropy, tokens/s and the time left, and warns of an alarm when it begins or changes.
  void step(const Record& record);
  void end_phase();                     // leaves the last line standing
  void print(const std::string& text);  // a line of its own; the bar is cleared before and drawn again after
  void warn(const std::string& text);   // likewise, to stderr, quiet or not

 private:
  using Clock = std::chrono::steady_clock;
  std::string line(bool bar) const;
  void clear();
  void draw();

  bool quiet_, terminal_;
  std::FILE* out_;
  double interval_;
  std::string name_;
  int64_t steps_ = 0, first_ = 0;
  Record last_;
  std::vector<std::string> alarms_;  // of the last look at attention
  bool drawn_ = false, in_phase_ = false;
  Clock::time_point begun_, shown_;
};

}  // namespace isentrope::train
