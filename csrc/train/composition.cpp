#include "csrc/train/composition.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <map>
#include <memory>
#include <stdexcept>

#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/cpu_parallel.h"
#include "csrc/train/checkpoint.h"
#include "csrc/train/json_file.h"
#include "csrc/train/resume.h"
#include "csrc/train/run_checkpoints.h"
#include "csrc/train/weights.h"

namespace isentrope::train {

namespace DEFAULT {
void compose_sum(const ComposePiece& piece);
void compose_products(const ComposePiece& piece);
}  // namespace DEFAULT
namespace AVX2 {
void compose_sum(const ComposePiece& piece);
void compose_products(const ComposePiece& piece);
}  // namespace AVX2
namespace AVX512 {
void compose_sum(const ComposePiece& piece);
void compose_products(const ComposePiece& piece);
}  // namespace AVX512

void compose_sum(const ComposePiece& piece) {
  static auto* const widest = ISENTROPE_PICK(compose_sum);
  widest(piece);
}
void compose_products(const ComposePiece& piece) {
  static auto* const widest = ISENTROPE_PICK(compose_products);
  widest(piece);
}

namespace {

using torch::Tensor;

// The folder's weights, mapped, each as wanted says.
std::map<std::string, Tensor> mapped_weights(const std::string& dir, const NamedTensors& wanted) {
  if (exists(dir + "/adapter_config.json"))
    throw std::runtime_error("model.compose.vectors: " + dir +
                             " is an adapter; merge it into a model with isentrope export");
  auto found = map_weights(dir);
  std::string missing, other;
  for (const auto& [name, weight] : wanted) {
    const auto place = found.find(name);
    if (place == found.end())
      missing += (missing.empty() ? "" : ", ") + name;
    else if (place->second.sizes() != weight.sizes() || !place->second.is_floating_point())
      other += (other.empty() ? "" : ", ") + name + " " + text_of(place->second.sizes()) + ", wanted " +
               text_of(weight.sizes());
  }
  if (!missing.empty() || !other.empty())
    throw std::runtime_error("model.compose.vectors: " + dir + ": no model that was trained from the base: " +
                             (missing.empty() ? "" : "it lacks " + missing) +
                             (missing.empty() || other.empty() ? "" : "; ") + (other.empty() ? "" : "it has " + other));
  return found;
}

void require_origin(const std::string& dir, int64_t origin) {
  if (!exists(dir + "/DONE")) return;  // of another program: it says nothing of what it was trained from
  const CheckpointState state = load_checkpoint_state(dir);
  const auto told = state.extra.find(kOrigin);
  if (told == state.extra.end() || told->second.item<int64_t>() == origin) return;
  throw std::runtime_error("model.compose.vectors: " + dir +
                           ": its run began from other weights than those of model.pretrained (their digests differ); "
                           "name that model there, or write any_base: true");
}

}  // namespace

// Adds up the products of a parameter's gradient, and drops it.
class Composition::Products : public torch::autograd::PostAccumulateGradHook {
 public:
  // views: of the parameter; its first element is at begin.
  Products(Composition& of, std::vector<const Weight*> weights, std::vector<int64_t> firsts)
      : of_(of), weights_(std::move(weights)), firsts_(std::move(firsts)) {}
  void operator()(const torch::autograd::Variable& parameter) override {
    const torch::NoGradGuard no_grad;
    const Tensor gradient = parameter.grad().to(torch::kCPU, torch::kFloat32).contiguous().view({-1});
    parameter.mutable_grad() = Tensor();
    for (size_t i = 0; i < weights_.size(); ++i)
      of_.add_products(*weights_[i], gradient.slice(0, firsts_[i], firsts_[i] + weights_[i]->view.numel()));
  }

 private:
  Composition& of_;
  std::vector<const Weight*> weights_;
  std::vector<int64_t> firsts_;
};

Composition::Composition(const model::ComposeConfig& config, const std::string& base, int64_t origin,
                         model::Decoder decoder)
    : decoder_(std::move(decoder)) {
  const torch::NoGradGuard no_grad;
  const auto named = decoder_->named_weights();
  const auto of_base = mapped_weights(base, named);
  std::vector<std::map<std::string, Tensor>> of_vectors;
  for (const std::string& vector : config.vectors) {
    const std::string dir = resolve_checkpoint(vector);
    if (!config.any_base) require_origin(dir, origin);
    of_vectors.push_back(mapped_weights(dir, named));
  }
  for (const auto& [name, view] : named) {
    Weight weight{.name = name, .view = view, .base = of_base.at(name).view({-1}), .others = {}};
    for (const auto& vector : of_vectors) weight.others.push_back(vector.at(name).view({-1}));
    weight.column = config.per == "tensor" ? static_cast<int64_t>(weights_.size()) : 0;
    weights_.push_back(std::move(weight));
  }
  const auto V = static_cast<int64_t>(config.vectors.size());
  const int64_t columns = config.per == "tensor" ? static_cast<int64_t>(weights_.size()) : 1;
  coefficients_ = torch::full({V, columns}, config.start, torch::kFloat32);
  coefficients_.requires_grad_(true);
  for (auto& item : decoder_->named_parameters()) {
    const Tensor& parameter = item.value();
    std::vector<const Weight*> within;
    std::vector<int64_t> firsts;
    for (const Weight& weight : weights_) {
      const int64_t bytes =
          static_cast<const char*>(weight.view.const_data_ptr()) - static_cast<const char*>(parameter.const_data_ptr());
      if (!weight.view.storage().is_alias_of(parameter.storage()) || bytes < 0 ||
          bytes >= static_cast<int64_t>(parameter.nbytes()))
        continue;
      within.push_back(&weight);
      firsts.push_back(bytes / static_cast<int64_t>(parameter.element_size()));
    }
    torch::autograd::impl::set_post_acc_grad_hooks(
        parameter, std::make_unique<Products>(*this, std::move(within), std::move(firsts)));
  }
}

Composition::~Composition() {
  for (const auto& parameter : decoder_->parameters())
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
}

// body(first element, pointers and count of a piece), in any order.
template <class Body>
void Composition::for_pieces(const Weight& weight, const Body& body) const {
  const int64_t pieces = (weight.base.numel() + kComposePiece - 1) / kComposePiece;
  ops::for_tasks(pieces, [&](int64_t i) {
    const torch::NoGradGuard no_grad;
    const int64_t first = i * kComposePiece, count = std::min(kComposePiece, weight.base.numel() - first);
    std::vector<Tensor> kept;  // pieces of tensors that are not float
    const auto data = [&](const Tensor& x) {
      if (x.scalar_type() == torch::kFloat32) return x.const_data_ptr<float>() + first;
      kept.push_back(x.slice(0, first, first + count).to(torch::kFloat32));
      return kept.back().const_data_ptr<float>();
    };
    std::vector<const float*> others;
    for (const Tensor& other : weight.others) others.push_back(data(other));
    ComposePiece piece;
    piece.count = count, piece.vectors = static_cast<int64_t>(others.size());
    piece.base = data(weight.base), piece.others = others.data();
    body(i, first, piece);
  });
}

void Composition::apply() {
  const torch::NoGradGuard no_grad;
  const Tensor by_weight = coefficients_.detach().to(torch::kCPU).t().contiguous();  // [columns, V]
  for (const Weight& weight : weights_) {
    const bool direct = weight.view.is_cpu() && weight.view.scalar_type() == torch::kFloat32;
    const Tensor out = direct ? weight.view : torch::empty(weight.view.sizes(), torch::kFloat32);
    for_pieces(weight, [&](int64_t, int64_t first, ComposePiece& piece) {
      piece.factors = by_weight.const_data_ptr<float>() + weight.column * by_weight.size(1);
      piece.out = out.data_ptr<float>() + first;
      compose_sum(piece);
    });
    if (!direct) weight.view.copy_(out);
    torch::autograd::impl::bump_version(weight.view);  // copies of a weight know by it that it is another
  }
}

void Composition::add_products(const Weight& weight, const Tensor& gradient) {
  const auto V = static_cast<int64_t>(weight.others.size());
  const int64_t pieces = (weight.base.numel() + kComposePiece - 1) / kComposePiece;
  std::vector<double> products(static_cast<size_t>(pieces * V));
  for_pieces(weight, [&](int64_t i, int64_t first, ComposePiece& piece) {
    piece.gradient = gradient.const_data_ptr<float>() + first;
    piece.products = products.data() + i * V;
    compose_products(piece);
  });
  Tensor& sum = coefficients_.mutable_grad();
  if (!sum.defined()) sum = torch::zeros_like(coefficients_).detach();
  for (int64_t v = 0; v < V; ++v) {
    double product = 0;
    for (int64_t i = 0; i < pieces; ++i) product += products[static_cast<size_t>(i * V + v)];
    sum.data_ptr<float>()[v * sum.size(1) + weight.column] += static_cast<float>(product);
  }
}

}  // namespace isentrope::train
