#include "csrc/train/attention_watch.h"

#include <algorithm>
#include <cstdio>

namespace isentrope::train {

using torch::Tensor;

namespace {

HeadTable table_of(const Tensor& x) {  // [L, H]
  const Tensor y = x.to(torch::kCPU, torch::kFloat64).contiguous();
  HeadTable t;
  for (int64_t l = 0; l < y.size(0); ++l)
    t.emplace_back(y.const_data_ptr<double>() + l * y.size(1), y.const_data_ptr<double>() + (l + 1) * y.size(1));
  return t;
}

}  // namespace

void AttentionWatch::add(const model::AttentionRecord& record, const Tensor& rows) {
  const torch::NoGradGuard no_grad;
  if (!record.entropy.empty()) add_attention(record, rows);
  if (!record.states.empty()) add_states(record, rows);
}

void AttentionWatch::add_states(const model::AttentionRecord& record, const Tensor& rows) {
  const Tensor keys = model::keys_in_sight(record, rows.size(1), rows.options().dtype(torch::kFloat64));
  const Tensor weight = (rows & (keys > 1)).to(torch::kFloat64);  // [B, T]
  const Tensor inverse_log = torch::where(keys > 1, keys.log().reciprocal(), 0.0).unsqueeze(1);
  for (size_t i = 0; i < record.states.size(); ++i) {
    const model::StateRecord& one = record.states[i];
    const Tensor there = one.there.to(torch::kFloat64);
    States now{one.layer,    {},         {}, one.rank.to(torch::kFloat64).mul(there.unsqueeze(1)).sum(0),
               weight.sum(), there.sum()};
    if (one.entropy.defined()) {
      const Tensor H = one.entropy.to(torch::kFloat64) * weight.unsqueeze(1);  // [B, H, T]
      now.entropy = H.sum(at::IntArrayRef({0, 2}));
      now.normalized = (H * inverse_log).sum(at::IntArrayRef({0, 2}));
    }
    if (states_.size() <= i) {
      states_.push_back(now);
      continue;
    }
    States& sum = states_[i];
    for (const auto& [to, more] : {std::pair(&sum.entropy, &now.entropy),
                                   {&sum.normalized, &now.normalized},
                                   {&sum.rank, &now.rank},
                                   {&sum.rows, &now.rows},
                                   {&sum.sequences, &now.sequences}})
      if (to->defined()) *to = *to + *more;
  }
}

void AttentionWatch::add_attention(const model::AttentionRecord& record, const Tensor& rows) {
  const auto wide = rows.options().dtype(torch::kFloat64);
  const Tensor keys = model::keys_in_sight(record, rows.size(1), wide);
  std::vector<Tensor> entropy, normalized, max_logit, bound, certified, count;
  for (size_t layer = 0; layer < record.entropy.size(); ++layer) {
    const int64_t window = record.window[layer];
    const Tensor seen = window > 0 ? keys.clamp_max(window) : keys;                                // [B or 1, T]
    const Tensor weight = (rows & (seen > 1)).to(torch::kFloat64);                                 // [B, T]
    const Tensor inverse_log = torch::where(seen > 1, seen.log().reciprocal(), 0.0).unsqueeze(1);  // [B or 1, 1, T]
    count.push_back(weight.sum());
    const Tensor H = record.entropy[layer].detach().to(torch::kFloat64) * weight.unsqueeze(1);  // [B, H, T]
    entropy.push_back(H.sum(at::IntArrayRef({0, 2})));
    normalized.push_back((H * inverse_log).sum(at::IntArrayRef({0, 2})));
    max_logit.push_back(record.max_logit[layer].masked_fill(rows.logical_not().unsqueeze(1), -INFINITY).amax({0, 2}));
    if (!record.with_bound) continue;
    const Tensor share = record.bound[layer].to(torch::kFloat64) * inverse_log;  // [B, H, T]
    bound.push_back((share * weight.unsqueeze(1)).sum(at::IntArrayRef({0, 2})));
    certified.push_back(((share > kCertified) * weight.unsqueeze(1)).sum(at::IntArrayRef({0, 2})));
  }
  const auto add = [](Tensor& sum, const Tensor& more) { sum = sum.defined() ? sum + more : more; };
  layers_ = record.layer;
  add(entropy_, torch::stack(entropy));
  add(normalized_, torch::stack(normalized));
  if (record.with_bound) add(bound_, torch::stack(bound)), add(certified_, torch::stack(certified));
  const Tensor M = torch::stack(max_logit);
  max_logit_ = max_logit_.defined() ? torch::maximum(max_logit_, M) : M;
  add(count_, torch::stack(count));
}

void AttentionWatch::over(const Ranks& ranks) {
  if (ranks.alone()) return;
  for (States& one : states_)
    for (Tensor* sum : {&one.entropy, &one.normalized, &one.rank, &one.rows, &one.sequences})
      if (sum->defined()) ranks.sum(*sum);
  if (empty()) return;
  for (Tensor* sum : {&entropy_, &normalized_, &bound_, &certified_, &count_})
    if (sum->defined()) {
      *sum = sum->contiguous();
      ranks.sum(*sum);
    }
  max_logit_ = max_logit_.contiguous();
  ranks.max(max_logit_);
}

AttentionStatistics AttentionWatch::statistics() const {
  const Tensor rows = count_.clamp_min(1).unsqueeze(1);  // [L, 1]
  AttentionStatistics s;
  s.layers = layers_;
  s.entropy = table_of(entropy_ / rows);
  s.normalized = table_of(normalized_ / rows);
  s.max_logit = table_of(max_logit_);
  if (bound_.defined()) s.bound = table_of(bound_ / rows), s.certified = table_of(certified_ / rows);
  double largest = 0, heads = 0;
  for (const auto& layer : s.entropy)
    for (const double H : layer) largest = std::max(largest, H), ++heads;
  for (size_t l = 0; l < s.entropy.size(); ++l)
    for (size_t h = 0; h < s.entropy[l].size(); ++h) {
      s.collapsed += (s.normalized[l][h] < kCollapsed) / heads;
      s.overloaded += (s.entropy[l][h] >= 0.75 * largest) / heads;
    }
  return s;
}

StateStatistics AttentionWatch::states() const {
  StateStatistics s;
  for (const States& one : states_) {
    const auto mean = [](const Tensor& sum, const Tensor& count) {
      return sum.defined() ? table_of((sum / count.clamp_min(1)).unsqueeze(0)).front() : std::vector<double>();
    };
    s.layers.push_back(one.layer);
    s.entropy.push_back(mean(one.entropy, one.rows));
    s.normalized.push_back(mean(one.normalized, one.rows));
    s.rank.push_back(mean(one.rank, one.sequences));
  }
  return s;
}

// ---- alarm -----------------------------------------------------------------------------------------------------------

std::vector<std::string> AttentionAlarm::look(int64_t step, const AttentionStatistics& statistics) {
  std::erase_if(looks_, [&](const Look& look) { return look.step < step - kAlarmSteps; });
  std::vector<double> now, most;
  for (const auto& layer : statistics.normalized) now.insert(now.end(), layer.begin(), layer.end());
  most = now;
  for (const Look& look : looks_)
    for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], look.normalized[i]);
  looks_.push_back({step, now});

  std::vector<std::string> alarms;
  size_t first = 0;
  for (size_t l = 0; l < statistics.normalized.size(); ++l) {
    const size_t heads = statistics.normalized[l].size();
    int64_t collapsed = 0, fallen = 0;
    for (size_t i = first; i < first + heads; ++i) {
      collapsed += now[i] < kCollapsed;
      fallen += now[i] < std::min(0.5 * most[i], kLow);
    }
    first += heads;
    char text[160];
    const auto told = [&](int64_t count, const char* what) {
      const int64_t layer = l < statistics.layers.size() ? statistics.layers[l] : static_cast<int64_t>(l);
      std::snprintf(text, sizeof(text), "layer %ld: %ld of %zu heads %s", static_cast<long>(layer),
                    static_cast<long>(count), heads, what);
      alarms.emplace_back(text);
    };
    if (collapsed > 0) told(collapsed, "have collapsed (entropy / log n below 0.05)");
    if (fallen > 0 && static_cast<double>(fallen) >= kAlarmShare * static_cast<double>(heads))
      told(fallen, "lost more than half of their entropy within 100 steps (entropy / log n below 0.1)");
  }
  return alarms;
}

std::map<std::string, Tensor> AttentionAlarm::state() const {
  if (looks_.empty()) return {};
  const int64_t width = 1 + static_cast<int64_t>(looks_.front().normalized.size());
  Tensor table = torch::empty({static_cast<int64_t>(looks_.size()), width}, torch::kFloat64);
  double* to = table.data_ptr<double>();
  for (const Look& look : looks_) {
    *to++ = static_cast<double>(look.step);
    to = std::copy(look.normalized.begin(), look.normalized.end(), to);
  }
  return {{"attention_alarm", table}};
}

void AttentionAlarm::restore(const std::map<std::string, Tensor>& state) {
  looks_.clear();
  const auto found = state.find("attention_alarm");
  if (found == state.end()) return;
  const Tensor table = found->second.contiguous();
  for (int64_t i = 0; i < table.size(0); ++i) {
    const double* row = table.const_data_ptr<double>() + i * table.size(1);
    looks_.push_back({static_cast<int64_t>(row[0]), {row + 1, row + table.size(1)}});
  }
}

}  // namespace isentrope::train
