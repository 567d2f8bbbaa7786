#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "csrc/rl/rollout_worker.h"
#include "csrc/rl/text_rules.h"

namespace isentrope::rl {

void RolloutWorker::extend(Sequence& s, const float* logits) {
  Completion& c = s.leaf.completion;
  const bool early = static_cast<int64_t>(c.tokens.size()) < job_.sampling.min_new_tokens;
  const Draw draw = this->draw(s, logits, early);
  c.tokens.push_back(draw.token);
  c.logprob.push_back(draw.logprob);
  c.entropy.push_back(draw.entropy);
  if (job_.sampling.sum_p2) c.sum_p2.push_back(draw.sum_p2);
  if (cuts_) c.sampling_logprob.push_back(draw.sampling_logprob);
  const TextRules* rules = job_.sampling.rules.get();
  c.stopped = job_.stops[draw.token] || (rules && !early && rules->stops(std::span(c.tokens).subspan(turn_of(c))));
  ++counts_.drawn;
  if (converses()) return end_turn(s);
  const auto n = static_cast<int64_t>(c.tokens.size());
  const bool ended = c.stopped || n >= s.limit;
  if (s.on_trial && (ended || n == c.begin + job_.branching->window) && !end_trial(s)) {
    ++counts_.dropped;
    return remove(s);
  }
  if (job_.branching && !s.on_trial) try_branch(s, ended);
  if (!ended) return;
  counts_.branches += !s.leaf.path.empty();
  job_.trees[job_.first_tree[c.prompt] + c.sample].push_back(std::move(s.leaf));
  remove(s);
}

Draw RolloutWorker::draw(Sequence& s, const float* logits, bool early) {
  const SamplingConfig& sampling = job_.sampling;
  const double uniform = s.stream.uniform();
  if (!sampling.rules && sampling.repetition_penalty == 1 && !early) return sampler_.draw(logits, uniform);
  before_.clear();
  forbidden_.clear();
  if (sampling.rules || sampling.repetition_penalty != 1) {
    before_.assign(prompt_of(s).begin() + job_.prefix(s.leaf.completion.prompt), prompt_of(s).end());
    const std::vector<int64_t> said = s.leaf.completion.said();
    before_.insert(before_.end(), said.begin(), said.end());
  }
  if (sampling.rules) sampling.rules->forbid(before_, forbidden_);
  const bool bad = !forbidden_.empty();
  if (early) forbidden_.insert(forbidden_.end(), job_.stop_tokens.begin(), job_.stop_tokens.end());
  try {
    return sampler_.draw(logits, uniform, forbidden_, before_);
  } catch (const NothingAllowed&) {
    const Completion& c = s.leaf.completion;
    throw std::runtime_error(
        "rollout: token " + std::to_string(c.tokens.size() + 1) + " of a completion of prompt " +
        std::to_string(job_.key.first_prompt + c.prompt) + ": " +
        (early ? std::string("min_new_tokens") + (bad ? " and bad_words together forbid" : " forbids")
               : "bad_words forbid") +
        " every token that the logits allow");
  }
}

bool RolloutWorker::hesitates(const Completion& c, int64_t t) const {
  const int64_t w = job_.branching->window;
  if (t < 0 || t + w > static_cast<int64_t>(c.entropy.size())) return false;
  double sum = 0;
  for (int64_t i = t; i < t + w; ++i) sum += c.entropy[i];
  return sum / static_cast<double>(w) >= job_.branching->threshold;
}

void RolloutWorker::try_branch(Sequence& s, bool ended) {
  const Completion& c = s.leaf.completion;
  const int64_t w = job_.branching->window, t = static_cast<int64_t>(c.tokens.size()) - w, longest = s.limit - t;
  if (t < s.next_branch || s.branches == 0 || s.spare < longest || !hesitates(c, t)) return;
  const int64_t from = std::exchange(s.next_branch, t + w);
  data::Stream mix(s.id, data::Purpose::rollout, static_cast<uint64_t>(t), /*b=*/1);
  const uint64_t id = (uint64_t{mix.bits()} << 32 | mix.bits()) | uint64_t{1} << 63;  // no number of a sample
  auto branch = std::make_unique<Sequence>(Sequence{.leaf = {},
                                                    .id = id,
                                                    .stream = stream(c.prompt, id),
                                                    .limit = s.limit,
                                                    .branches = s.branches - 1,
                                                    .spare = s.spare - longest,
                                                    .next_branch = t + w,
                                                    .trial_from = from,
                                                    .on_trial = true,
                                                    .parent = ended ? nullptr : &s,
                                                    .table = {}});
  Completion& mine = branch->leaf.completion;
  mine.prompt = c.prompt;
  mine.sample = c.sample;
  mine.begin = t;
  mine.tokens.assign(c.tokens.begin(), c.tokens.begin() + t);
  mine.logprob.assign(c.logprob.begin(), c.logprob.begin() + t);
  mine.entropy.assign(c.entropy.begin(), c.entropy.begin() + t);
  if (!c.sum_p2.empty()) mine.sum_p2.assign(c.sum_p2.begin(), c.sum_p2.begin() + t);
  if (cuts_) mine.sampling_logprob.assign(c.sampling_logprob.begin(), c.sampling_logprob.begin() + t);
  branch->leaf.path = s.leaf.path;
  branch->leaf.path.push_back(t);
  branch->table = table_.fork(*s.table, position(*branch));
  s.paused = !ended;
  waiting_.push_front(std::move(branch));
}

bool RolloutWorker::end_trial(Sequence& s) {
  const Completion& c = s.leaf.completion;
  const int64_t spare = s.spare + s.limit - c.begin;  // the parent's when it left
  bool kept = hesitates(c, c.begin);
  for (int64_t t = s.trial_from; t < c.begin; ++t) kept = kept && !(hesitates(c, t) && spare >= s.limit - t);
  s.on_trial = false;
  if (Sequence* parent = std::exchange(s.parent, nullptr)) {
    parent->paused = false;
    if (kept) {
      parent->branches = s.branches - s.branches / 2;
      parent->spare = s.spare - s.spare / 2;
      s.branches /= 2;
      s.spare /= 2;
    }
  }
  return kept;
}

void RolloutWorker::remove(Sequence& s) {
  table_.close(*s.table);
  std::find_if(running_.begin(), running_.end(), [&](const Owned& r) { return r.get() == &s; })->reset();
}

}  // namespace isentrope::rl
