// What a run tells: one JSON object a line in metrics.jsonl, and the console. Every key, with unit and meaning: docs/metrics.md,
// which also says what depends on what; a new key belongs there (tests/python/test_readme.py looks).
//
// A line speaks of one step of a phase or of one evaluation. Keys that do not apply are left out, a value that is not finite is
// null; kOrder in metrics.cpp says which come first (pass@1, pass@2, … by their k), others follow in alphabetical order, then
// attention_entropy and sigma.
//
// What an evaluation shows of its answers stands beside it, in samples.jsonl: csrc/train/samples.h.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/data/token_shard.h"

namespace isentrope::train {

// The attention of one update, as csrc/train/attention_watch.h sees it. L layers that attend, H heads; a row is a query with n > 1 keys in
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
  std::vector<int64_t> layers = {};  // which they are of the model's; told where these are not the first L
};

// Of the layers with a state in the place of keys and values, of one update (csrc/model/attention_record.h); rows as above.
struct StateStatistics {
  std::vector<int64_t> layers;  // L of the model's
  HeadTable entropy;     // [L][H] as above, of weights made to sum to 1; a layer whose weights may be negative: empty
  HeadTable normalized;  // [L][H] the same
  HeadTable rank;        // [L][states] mean over sequences of the effective rank of the state behind the last token
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
  int64_t global_step = 0;                 // steps of the run so far, over all phases; 0: not told
  std::vector<std::string> warnings = {};  // new in this step (csrc/train/policy_watch.h)
  std::vector<std::string> of_times = {};  // warnings that two equal runs need not share: shown, not written
  std::optional<StateStatistics> states = {};
};

// Named values in the order above.
std::vector<std::pair<std::string, double>> in_order(const std::map<std::string, double>& values);

// The record as one line of JSON, without its end of line. Numbers read back to the same double.
std::string to_json(const Record& record);

// Values of an evaluation as a person reads them, in their order: ("greedy", "0.85"), ("pass@8", "0.97"), …
std::vector<std::pair<std::string, std::string>> evaluation_figures(const std::map<std::string, double>& values);

// Whether a line is that of csrc/train/run_header.h: what the run is made of, and no step of it.
bool is_header(std::string_view line);

// Of lines what a repeated run repeats: all but headers, and times and bytes sent in the others. A checkpoint keeps it of what was written
// before it.
class LineDigest {
 public:
  void add(std::string_view line);  // as to_json() writes it
  int64_t value() const { return static_cast<int64_t>(hash_.value); }
  LineDigest() = default;
  explicit LineDigest(int64_t value) { hash_.value = static_cast<uint64_t>(value); }  // to go on from

 private:
  data::Hash hash_;
};

// Removes every line that a run standing after step `step` of `phase` has still to write, and a torn last line; lines of the
// phases that ended before it stay, and headers that have a line behind them which stays. evaluated: whether the evaluations of that step are made. Returns the digest of what
// stays; where it is not `wanted`, a line was changed or lost since: std::runtime_error, and the file is as it was. The file is
// rewritten beside and renamed. A file that is not there is left so.
LineDigest keep_metrics_until(const std::string& file, const std::vector<std::string>& ended, const std::string& phase,
                              int64_t step, bool evaluated = true, std::optional<int64_t> wanted = std::nullopt);

class Metrics {
 public:
  explicit Metrics(const std::string& file, LineDigest digest = {});  // appends to what has that digest
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  // One write a line: a killed process leaves whole lines, but for the last at most. Throws std::runtime_error where the line
  // cannot be written, or would go into a file that is no longer there under its name.
  void write(const std::string& line);  // without its end of line
  void write(const Record& record) { write(to_json(record)); }
  // Asks for the room of a line of so many bytes: throws what write() would, now. Where the file system keeps the room, that line cannot
  // fail for the lack of it; readers see nothing of it.
  void make_room(int64_t bytes);
  // Stands before the next line that is written, and goes where that is gone back from: no line, no run.
  void write_before_next(const std::string& header) { header_ = header, headed_ = false; }

  // What was written so far, to be gone back to where a step or an evaluation is not whole.
  struct Place {
    int64_t bytes = 0;
    LineDigest digest = {};
    bool headed = true;
  };
  Place place() const;
  void back_to(const Place& place) noexcept;

 private:
  std::string file_;
  int fd_ = -1;
  void append(const std::string& line);
  void require_name() const;  // that the file is still there under it

  LineDigest digest_;
  std::string header_;
  bool headed_ = true;  // header_ is written, or there is none
};

}  // namespace isentrope::train
