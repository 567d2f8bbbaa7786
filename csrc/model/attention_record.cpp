#include "csrc/model/attention_record.h"

#include <ATen/ATen.h>

namespace isentrope::model {

at::Tensor keys_in_sight(const AttentionRecord& record, int64_t T, const at::TensorOptions& options) {
  if (!record.causal) {
    if (!record.lengths.defined()) return at::full({1, T}, T, options);
    return record.lengths.to(options).unsqueeze(1).expand({-1, T});
  }
  if (record.position.defined()) return (record.position + 1).to(options);
  return at::arange(1, T + 1, options).unsqueeze(0);  // a row sees itself too
}

}  // namespace isentrope::model
