// A completion as a JSON object: one shape for the rollouts that a run saves (rollouts/<phase>.jsonl), `isentrope sample --json` and
// `isentrope evaluate --completions`, which each add what only they know (docs/metrics.md).
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "csrc/data/tokenizer.h"
#include "csrc/rl/rollout.h"
#include "csrc/rl/rollout_source.h"

namespace isentrope::train {

// group: number of the prompt. Its tokens are the T that were drawn, the end of sequence included:
//   {"group": g, "sample": s, "prompt": "…", "completion": "…", "tokens": [T texts], "ids": [T integers], "logprob": [T nats],
//    "entropy": [T nats], "length": T, "finished": whether the end of sequence was drawn, or a text of stop written}
// and where keys of sampling cut or change the policy's distribution, "sampling_logprob": [T nats].
// completion is the text without the end of sequence. logprob, entropy and sampling_logprob read back to the same float32.
nlohmann::ordered_json to_json(int64_t group, const std::string& prompt, const rl::Completion& completion,
                               const data::Tokenizer& tokenizer);

// The same of step `step` of a phase, these two in front, with reward, rewards, advantage and what else is there behind.
nlohmann::ordered_json to_json(const std::string& phase, int64_t step, const rl::SavedRollout& rollout,
                               const data::Tokenizer& tokenizer);

// The object in one line, without its end of line: bytes that are not UTF-8 become U+FFFD, numbers that are not finite null.
std::string line_of(const nlohmann::ordered_json& object);

}  // namespace isentrope::train
