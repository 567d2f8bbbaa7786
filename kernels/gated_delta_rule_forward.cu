// gated_delta_rule forward (kernels/gated_delta_rule.cuh).
#include "kernels/gated_delta_rule.cuh"

namespace isentrope::kernels {

int64_t gated_delta_rule_workspace(const RecurrenceShape& shape, DType) {
  return recurrence::delta_workspace_bytes(shape, false);
}

void gated_delta_rule_forward_cuda(const GatedDeltaForward& parameters, void* stream) {
  GatedDeltaForward p = parameters;
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf>(
      "gated_delta_rule_forward: dtype", p.dtype, [&](auto type) {
        const recurrence::Gate gate = recurrence::divide(p);
        recurrence::launch_forward<gpu::TypeOf<type()>>(p, gate, p.out, p.out_strides, p.last_state, stream);
      });
}

}  // namespace isentrope::kernels
