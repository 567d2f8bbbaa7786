#include "csrc/rl/rollout.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/model/decode.h"
#include "csrc/rl/sample.h"

namespace isentrope::rl {
namespace {

using model::DecodeRow;

// What all workers of one call share.
struct Job {
  const model::DecodeModel& model;
  const std::vector<std::vector<int64_t>>& prompts;
  int64_t samples, vocabulary, context;
  const SamplingConfig& sampling;
  const std::vector<int64_t>& stop_tokens;
  std::vector<bool> stops;  // [V]
  const RolloutKey& key;
  std::vector<Completion>& out;  // [prompts · samples]
  int64_t parts;  // a prompt's samples are cut into so many tasks: 1 unless threads outnumber prompts
  std::atomic<int64_t> next_task{0};
};

// A sequence that is being written, in a slot of the worker's cache.
struct Live {
  Completion* completion;
  data::Stream stream;
  int64_t limit;   // most tokens of the completion
  DecodeRow next;  // its last token, not yet fed
};

// Takes tasks (samples of one prompt) and keeps its batch full: where a sequence ends, the next one takes its
// slot.
class Worker {
 public:
  // At most `most` sequences at a time.
  Worker(Job& job, int64_t most)
      : job_(job),
        prompt_slot_(most),
        prompt_rows_(job.model.preferred_rows()),
        session_(job.model.session(most + 1, std::max(most, prompt_rows_))),
        sampler_(job.sampling, job.vocabulary) {
    for (int64_t slot = most; slot-- > 0;) free_slots_.push_back(slot);
  }

  void run() {
    std::vector<DecodeRow> rows;
    while (admit()) {
      rows.clear();
      for (const Live& live : live_) rows.push_back(live.next);
      const model::Logits logits = session_->step(rows, 0);
      size_t kept = 0;
      for (size_t i = 0; i < live_.size(); ++i) {
        Live& live = live_[i];
        ++live.next.position;
        if (extend(live, logits.row(i))) {
          free_slots_.push_back(live.next.slot);
        } else {
          if (kept != i) live_[kept] = std::move(live);
          ++kept;
        }
      }
      live_.erase(live_.begin() + kept, live_.end());
    }
  }

 private:
  // Fills free slots with waiting sequences; false where none lives.
  bool admit() {
    while (!free_slots_.empty()) {
      if (sample_ == last_sample_ && !take_task()) break;
      const int64_t length = job_.prompts[prompt_].size(), room = job_.context - length;
      const int64_t wanted = job_.sampling.max_new_tokens;
      const RolloutKey& key = job_.key;
      Live live{&job_.out[prompt_ * job_.samples + sample_],
                data::Stream(key.seed, key.evaluation ? data::Purpose::evaluation : data::Purpose::rollout,
                             key.step, key.first_prompt + prompt_, sample_),
                wanted > 0 ? std::min(wanted, room) : room,
                {0, length, free_slots_.back()}};
      ++sample_;
      if (extend(live, prompt_logits_.data())) continue;
      session_->copy(prompt_slot_, live.next.slot, length);
      free_slots_.pop_back();
      live_.push_back(std::move(live));
    }
    return !live_.empty();
  }

  // The next prompt goes through the model once, into its own slot.
  bool take_task() {
    const int64_t task = job_.next_task++, tasks = job_.prompts.size() * job_.parts;
    if (task >= tasks) return false;
    prompt_ = task / job_.parts;
    sample_ = job_.samples * (task % job_.parts) / job_.parts;
    last_sample_ = job_.samples * (task % job_.parts + 1) / job_.parts;
    const std::vector<int64_t>& prompt = job_.prompts[prompt_];
    const int64_t length = prompt.size();
    std::vector<DecodeRow> rows;
    for (int64_t first = 0; first < length; first += prompt_rows_) {
      rows.clear();
      for (int64_t t = first; t < std::min(first + prompt_rows_, length); ++t)
        rows.push_back({prompt[t], t, prompt_slot_});
      const bool last = first + prompt_rows_ >= length;
      const int64_t logits_from = rows.size() - (last ? 1 : 0);
      const model::Logits logits = session_->step(rows, logits_from);
      if (last) prompt_logits_.assign(logits.data, logits.data + job_.vocabulary);
    }
    return true;
  }

  // Draws the next token; true where it ends the completion.
  bool extend(Live& live, const float* logits) {
    Completion& completion = *live.completion;
    const bool early = static_cast<int64_t>(completion.tokens.size()) < job_.sampling.min_new_tokens;
    const Draw draw = sampler_.draw(logits, live.stream.uniform(),
                                    early ? std::span(job_.stop_tokens) : std::span<const int64_t>());
    completion.tokens.push_back(draw.token);
    completion.logprob.push_back(draw.logprob);
    completion.entropy.push_back(draw.entropy);
    completion.stopped = job_.stops[draw.token];
    live.next.token = draw.token;
    return completion.stopped || static_cast<int64_t>(completion.tokens.size()) >= live.limit;
  }

  Job& job_;
  int64_t prompt_slot_, prompt_rows_;
  std::unique_ptr<model::DecodeSession> session_;
  Sampler sampler_;
  std::vector<Live> live_;
  std::vector<int64_t> free_slots_;
  int64_t prompt_ = 0, sample_ = 0,
          last_sample_ = 0;           // the task in hand: samples sample_ … last_sample_ − 1 wait
  std::vector<float> prompt_logits_;  // [V], after the prompt's last token
};

void check(const model::DecoderConfig& config, const std::vector<std::vector<int64_t>>& prompts,
           int64_t samples, const std::vector<int64_t>& stop_tokens) {
  if (samples < 1)
    throw std::invalid_argument("rollout: samples is " + std::to_string(samples) + ", wanted at least 1");
  auto in_vocabulary = [&](int64_t token) { return token >= 0 && token < config.vocabulary; };
  const std::string range = ", outside the vocabulary 0 … " + std::to_string(config.vocabulary - 1);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::string name = "rollout: prompt " + std::to_string(i);
    if (prompts[i].empty()) throw std::invalid_argument(name + " is empty; it needs at least one token");
    if (static_cast<int64_t>(prompts[i].size()) >= config.context)
      throw std::invalid_argument(name + " has " + std::to_string(prompts[i].size()) +
                                  " tokens and leaves no room in model.context (" +
                                  std::to_string(config.context) + "); shorten it or raise model.context");
    for (const int64_t token : prompts[i])
      if (!in_vocabulary(token))
        throw std::invalid_argument(name + " holds token " + std::to_string(token) + range);
  }
  for (const int64_t token : stop_tokens)
    if (!in_vocabulary(token))
      throw std::invalid_argument("rollout: stop token " + std::to_string(token) + range);
}

}  // namespace

std::vector<Completion> rollout(const model::Decoder& decoder,
                                const std::vector<std::vector<int64_t>>& prompts, int64_t samples,
                                const SamplingConfig& sampling, const std::vector<int64_t>& stop_tokens,
                                const RolloutKey& key) {
  const model::DecoderConfig& config = decoder->config();
  check(config, prompts, samples, stop_tokens);
  const int64_t P = prompts.size();
  std::vector<Completion> out(P * samples);
  for (int64_t i = 0; i < P * samples; ++i) out[i].prompt = i / samples;
  if (out.empty()) return out;
  const auto model = model::make_decode_model(decoder);
  const int64_t threads = model->parallel() ? at::get_num_threads() : 1;
  Job job{*model,
          prompts,
          samples,
          config.vocabulary,
          config.context,
          sampling,
          stop_tokens,
          std::vector<bool>(config.vocabulary),
          key,
          out,
          std::min(samples, (threads + P - 1) / P)};
  for (const int64_t token : stop_tokens) job.stops[token] = true;
  const int64_t workers = std::min(threads, P * job.parts);
  const int64_t most = std::min(model->preferred_rows(), (P * samples + workers - 1) / workers);
  if (workers == 1) {
    Worker(job, most).run();
  } else {
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) Worker(job, most).run();
    });
  }
  return out;
}

}  // namespace isentrope::rl
