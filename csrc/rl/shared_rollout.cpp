#include "csrc/rl/shared_rollout.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace isentrope::rl {
namespace {

// Values one after the other, as they lie in memory: the processes of a run have one build.
class Packed {
 public:
  Packed() = default;
  explicit Packed(const std::string& text) : text_(text) {}
  const std::string& text() const { return text_; }

  template <class T>
  void put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  template <class T>
  void put(const std::vector<T>& values) {
    put(static_cast<int64_t>(values.size()));
    if (!values.empty()) text_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  void put(const std::map<std::string, double>& values) {
    put(static_cast<int64_t>(values.size()));
    for (const auto& [name, value] : values) put(std::vector<char>(name.begin(), name.end())), put(value);
  }
  void put(const std::optional<double>& value) {
    put(static_cast<int8_t>(value.has_value()));
    put(value.value_or(0));
  }

  template <class T>
  void take(T& value) {
    std::memcpy(&value, text_.data() + at_, sizeof(T));
    at_ += sizeof(T);
  }
  template <class T>
  void take(std::vector<T>& values) {
    int64_t size = 0;
    take(size);
    values.resize(static_cast<size_t>(size));
    if (size > 0) std::memcpy(values.data(), text_.data() + at_, values.size() * sizeof(T));
    at_ += values.size() * sizeof(T);
  }
  void take(std::map<std::string, double>& values) {
    int64_t size = 0;
    for (take(size); size > 0; --size) {
      std::vector<char> name;
      take(name);
      take(values[{name.begin(), name.end()}]);
    }
  }
  void take(std::optional<double>& value) {
    int8_t there = 0;
    double x = 0;
    take(there);
    take(x);
    value = there ? std::optional(x) : std::nullopt;
  }

 private:
  std::string text_;
  size_t at_ = 0;
};

void put_conversation(Packed& to, const Completion& c) {
  to.put(static_cast<int8_t>(c.at_limit));
  to.put(c.scores);
  to.put(static_cast<int64_t>(c.turns.size()));
  for (const Exchange& turn : c.turns) {
    to.put(turn.end);
    to.put(turn.given);
    to.put(turn.scores);
    to.put(static_cast<int8_t>(turn.error));
  }
}

void take_conversation(Packed& from, Completion& c) {
  int8_t flag = 0;
  from.take(flag);
  c.at_limit = flag != 0;
  from.take(c.scores);
  int64_t turns = 0;
  for (from.take(turns); turns > 0; --turns) {
    Exchange& turn = c.turns.emplace_back();
    from.take(turn.end);
    from.take(turn.given);
    from.take(turn.scores);
    from.take(flag);
    turn.error = flag != 0;
  }
}

// A completion with all that was said of it, and its place among those of all ranks.
struct Judged {
  Completion completion;
  double total = 0;
  std::optional<double> first;
  std::vector<std::optional<double>> scores;
  int64_t rank = 0, index = 0;
};

}  // namespace

void gather(const Peers& peers, std::vector<Completion>& completions, Rewards& rewards, RolloutCounts& counts) {
  Packed own;
  own.put(counts);
  own.put(static_cast<int64_t>(completions.size()));
  for (size_t i = 0; i < completions.size(); ++i) {
    const Completion& c = completions[i];
    for (const int64_t value : {c.prompt, c.sample, c.parent, c.begin, static_cast<int64_t>(c.stopped)}) own.put(value);
    own.put(c.tokens);
    own.put(c.logprob);
    own.put(c.entropy);
    own.put(c.sum_p2);
    own.put(c.sampling_logprob);
    own.put(c.kept);
    put_conversation(own, c);
    own.put(rewards.total[i]);
    own.put(rewards.first[i]);
    for (const auto& [name, scores] : rewards.scores) own.put(scores[i]);
  }
  for (const auto& [name, count] : rewards.timeouts) own.put(count);

  std::vector<Judged> all;
  counts = {};
  for (auto& [name, count] : rewards.timeouts) count = 0;
  const std::vector<std::string> texts = peers.gather(own.text());
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    Packed from(texts[rank]);
    RolloutCounts some;
    from.take(some);
    counts += some;
    int64_t size = 0;
    from.take(size);
    for (int64_t i = 0; i < size; ++i) {
      Judged one{.completion = {}, .first = {}, .scores = {}, .rank = static_cast<int64_t>(rank), .index = i};
      Completion& c = one.completion;
      int64_t stopped = 0;
      for (int64_t* value : {&c.prompt, &c.sample, &c.parent, &c.begin, &stopped}) from.take(*value);
      c.stopped = stopped != 0;
      from.take(c.tokens);
      from.take(c.logprob);
      from.take(c.entropy);
      from.take(c.sum_p2);
      from.take(c.sampling_logprob);
      from.take(c.kept);
      take_conversation(from, c);
      from.take(one.total);
      from.take(one.first);
      one.scores.resize(rewards.scores.size());
      for (auto& score : one.scores) from.take(score);
      all.push_back(std::move(one));
    }
    for (auto& [name, count] : rewards.timeouts) {
      double more = 0;
      from.take(more);
      count += more;
    }
  }
  // A tree was drawn by one rank, which gave it in its order.
  std::stable_sort(all.begin(), all.end(), [](const Judged& a, const Judged& b) {
    return std::pair(a.completion.prompt, a.completion.sample) < std::pair(b.completion.prompt, b.completion.sample);
  });

  completions.clear();
  rewards.total.clear();
  rewards.first.clear();
  rewards.stats.clear();
  rewards.unscored.reset();
  for (auto& [name, scores] : rewards.scores) scores.clear();
  for (size_t i = 0; i < all.size(); ++i) {
    Judged& one = all[i];
    if (one.completion.parent >= 0) one.completion.parent += static_cast<int64_t>(i) - one.index;
    completions.push_back(std::move(one.completion));
    rewards.total.push_back(one.total);
    rewards.first.push_back(one.first);
    bool scored = false;
    for (size_t part = 0; part < one.scores.size(); ++part) {
      rewards.scores[part].second.push_back(one.scores[part]);
      scored = scored || one.scores[part];
    }
    if (!scored && !rewards.unscored) rewards.unscored = i;
  }
  for (const auto& [name, scores] : rewards.scores) {
    double sum = 0, applies = 0;
    for (const auto& score : scores)
      if (score) sum += *score, ++applies;
    if (applies > 0) rewards.stats[name] = sum / applies;
  }
}

}  // namespace isentrope::rl
