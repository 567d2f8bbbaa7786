#include "csrc/train/mixer_figures.h"

#include <vector>

#include "csrc/model/mixer.h"

namespace isentrope::train {

std::map<std::string, double> mixer_figures(const model::Decoder& model) {
  std::vector<torch::Tensor> shares, estimates;
  for (const model::LayerWeights& layer : model->layers()) {
    if (const torch::Tensor share = layer.mixer->softmax_share(); share.defined()) shares.push_back(share);
    if (const torch::Tensor estimate = layer.mixer->estimate(); estimate.defined()) estimates.push_back(estimate);
  }
  std::map<std::string, double> figures;
  const auto tell = [&](const std::string& name, const torch::Tensor& all) {
    figures[name] = all.mean().item<double>();
    figures[name + "/least"] = all.min().item<double>();
    figures[name + "/most"] = all.max().item<double>();
  };
  if (!shares.empty()) tell("natsl/softmax_share", torch::cat(shares));
  if (!estimates.empty()) {
    const torch::Tensor all = torch::cat(estimates);
    figures["estimated/kl"] = all.select(1, 0).mean().item<double>();
    tell("estimated/kept", all.select(1, 1));
  }
  return figures;
}

}  // namespace isentrope::train
