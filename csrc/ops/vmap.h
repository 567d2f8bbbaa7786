// torch.func.vmap of the ops. Where an op has a dimension that it treats element by element, the mapped one is folded into it and
// the op runs once; elsewhere it runs once for each element.
#pragma once
#include <torch/library.h>

namespace isentrope::ops {

// Registers the rule of every op of tensors, under the dispatch key FuncTorchBatched.
void vmap_rules(torch::Library& m);

}  // namespace isentrope::ops
