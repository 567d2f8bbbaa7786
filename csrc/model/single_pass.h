// Whether each weight is used once in each direction, and then changes.
#pragma once

namespace isentrope::model {

// While one stands with true, no copy in bfloat16 (csrc/model/bfloat16_training.h) of a weight that is trained is kept for a second
// product of this thread: there will be none before the weight is another. Results have the same bits.
class SinglePass {
 public:
  explicit SinglePass(bool single);
  ~SinglePass();
  SinglePass(const SinglePass&) = delete;

 private:
  bool before_;
};

}  // namespace isentrope::model
