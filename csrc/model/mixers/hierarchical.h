// Softmax attention tied in blocks by a tree over the tokens (Hierarchical Self-Attention, Amizadeh et al., arXiv 2509.15448;
// csrc/ops/hierarchical_attention.cpp), of encoders: families of model.hierarchical.branching neighbours, of as many families, up to one
// root. Projections, rotary positions, grouped queries and norms of heads are those of softmax layers.
#pragma once
#include <memory>

#include "csrc/model/mixers/softmax.h"

namespace isentrope::model {

class HierarchicalMixer : public SoftmaxMixer {
 public:
  explicit HierarchicalMixer(const MixerBuilder& builder) : SoftmaxMixer(builder, SoftmaxOptions()) {}
  std::shared_ptr<Mixer> clone() const override { return std::make_shared<HierarchicalMixer>(*this); }

 protected:
  ops::EntropyAttention attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                               const MixerPass& pass) const override;
};

}  // namespace isentrope::model
