// Activations that are made again in the backward pass instead of being kept: a forward pass more, for the memory of all that lies
// between a block's inputs and its outputs (Chen et al. 2016, arXiv 1604.06174).
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace isentrope::model {

using Tensors = std::vector<at::Tensor>;  // undefined ones may stand among them

// block(inputs), of which the graph holds the inputs alone. block: the same function of inputs and parameters whenever it is called,
// until the graph is gone; whatever else has a gradient in it is among parameters. Outputs and gradients have the bits of a plain
// block(inputs). First order: the gradient has no graph of its own.
Tensors recomputed(const std::function<Tensors(const Tensors&)>& block, const Tensors& inputs,
                   const Tensors& parameters);

}  // namespace isentrope::model
