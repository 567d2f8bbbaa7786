// The batch source of pretraining: windows of a fixed length over a long row of tokens, with no padding in between.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "csrc/data/batch.h"
#include "csrc/data/masking.h"
#include "csrc/data/token_shard.h"

namespace isentrope::data {

// The row of n tokens is a ring: after its last comes its first. In epoch e it is cut into size() = ⌈n/T⌉ windows of T
// tokens, T the context, from an offset in 0 … T − 1 on, and they come in an order of their own; both are drawn from
// (seed, e). The target of a token is the one that follows it, in the next window where need be, so that each of the
// n tokens is a target once an epoch; what the last window would see for a second time has the target −100.
// masking: the targets are tokens of the window itself (mask_tokens), of which window w of the stream draws its own from (seed, w): others in
// every epoch.
class Windows {
 public:
  // Throws std::runtime_error, with `name` for what the tokens are, where n ≤ T.
  Windows(std::shared_ptr<const TokenShard> tokens, int64_t context, uint64_t seed, const std::string& name,
          const std::optional<Masking>& masking = {});

  // Windows first … first + count − 1 of the endless stream of epochs: tokens and target [count, T]. A pure function of
  // (tokens, seed, masking, first, count).
  Batch take(int64_t first, int64_t count) const;
  int64_t size() const { return size_; }
  bool masked() const { return masking_.has_value(); }
  const TokenShard& shard() const { return *tokens_; }

 private:
  std::shared_ptr<const TokenShard> tokens_;
  int64_t context_, size_;
  uint64_t seed_;
  std::optional<Masking> masking_;
};

class PackedSource : public BatchSource {
 public:
  PackedSource(std::shared_ptr<const TokenShard> tokens, int64_t sequences, int64_t context, uint64_t seed,
               const std::optional<Masking>& masking = {});

  // The windows that follow those taken so far, whatever sequences was when they were taken.
  StepData next(int64_t step) override;
  void commit() override { taken_ = next_taken_; }
  // {"taken": windows, "tokens", "digest": of the training tokens}
  std::map<std::string, torch::Tensor> state() const override;
  // Throws std::runtime_error where the tokens are not those of the state: the corpus has changed.
  void restore(const std::map<std::string, torch::Tensor>& state) override;

 private:
  Windows windows_;
  int64_t sequences_;
  int64_t taken_ = 0, next_taken_ = 0;  // windows; the second with those of the step that is not whole yet
};

}  // namespace isentrope::data
