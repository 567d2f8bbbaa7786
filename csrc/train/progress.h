// What a person sees of a trainer at work, in the program and in Python alike.
#pragma once
#include <string>
#include <vector>

#include "csrc/train/console.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {

class Progress {
 public:
  // Prints what the run is made of, where it is not finished. Both outlive it.
  Progress(const Trainer& trainer, Console& console);
  // Around each advance() of the trainer, with what that returned.
  void before_step();
  void after_step(const std::vector<Record>& records);
  void end_phase();  // leaves its last line standing, where one has begun
  // Of a finished run: the table of its evaluations on test data, and what the last phase says of reward and entropy.
  std::string results() const;

 private:
  const Trainer& trainer_;
  Console& console_;
  size_t phase_ = 0;
  bool in_phase_ = false;
  Record last_;  // step
};

}  // namespace isentrope::train
