// What the CPU backend of grpo_select and grpo_loss offers its caller: work cut into segments of a sequence, once for
// every instruction set.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/grpo_loss.h"

namespace isentrope::ops {

// The work on segments [begin, end) of the B * grpo_segments(T), counted sequence by sequence; partial [B * segments].
//   grpo_moments         the sums of the first pass; entropy may be null; log_ratio is summed for gspo, luspo, geo_mean, vespo
//   grpo_loss_forward    token losses and slopes, and the sums of the second pass; sequences [B]
//                        are read for those modes
//   grpo_loss_backward   both gradients
//   grpo_select_keys     of one segment: keys [kGrpoSegment] of those tokens that may be chosen and whose key is below limit;
//                        returns how many. Adds to available [1] how many may be chosen by the count rule of the choice.
#define ISENTROPE_DECLARE(ISA)                                                                               \
  namespace ISA {                                                                                            \
  void grpo_moments(const kernels::GrpoLossForward& p, bool means, int64_t begin, int64_t end,               \
                    kernels::GrpoMoments<double>* partial);                                                  \
  void grpo_loss_forward(const kernels::GrpoLossForward& p, const kernels::GrpoCentre& centre,               \
                         const kernels::GrpoSequence<double>* sequences, int64_t begin, int64_t end,         \
                         kernels::GrpoTerms<double>* partial);                                               \
  void grpo_loss_backward(const kernels::GrpoLossBackward& p, int64_t begin, int64_t end);                   \
  int64_t grpo_select_keys(const kernels::GrpoSelect& p, const kernels::GrpoCentre& centre, int64_t segment, \
                           uint64_t limit, uint64_t* keys, int64_t* available);                              \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

// Segments a thread takes at least: about 16k tokens, some microseconds of work.
int64_t grpo_segment_grain(int64_t length);

// The first pass over torch's threads: the sums of each sequence, and what they make together; the means where they are
// wanted, else 0.
kernels::GrpoCentre grpo_centre(const kernels::GrpoLossForward& p, bool means,
                                std::vector<kernels::GrpoMoments<double>>& sequences);

}  // namespace isentrope::ops
