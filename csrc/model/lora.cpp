#include "csrc/model/lora.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "csrc/model/cpu_product.h"
#include "csrc/model/layers.h"

namespace isentrope::model {

// ---- configuration ---------------------------------------------------------------------------------------------------

double LoraConfig::scale() const {
  const auto r = static_cast<double>(rank);
  return alpha / (rslora ? std::sqrt(r) : r);
}

bool LoraConfig::takes(const std::string& layer) const {
  static const std::map<std::string, std::string> groups{{"q", "attention"}, {"k", "attention"}, {"v", "attention"},
                                                         {"o", "attention"}, {"gate", "mlp"},    {"up", "mlp"},
                                                         {"down", "mlp"}};
  const auto group = groups.find(layer);
  if (group == groups.end()) return false;
  return std::any_of(targets.begin(), targets.end(),
                     [&](const std::string& x) { return x == layer || x == "all" || x == group->second; });
}

std::vector<std::string> LoraConfig::layers() const {
  std::vector<std::string> found;
  for (const char* layer : {"q", "k", "v", "o", "gate", "up", "down"})
    if (takes(layer)) found.emplace_back(layer);
  return found;
}

std::string LoraConfig::problem() const {
  return targets.empty() ? "targets: names no layer, so that nothing would be trained; write all, or some of q, k, v, "
                           "o, gate, up, down"
                         : "";
}

// ---- the term --------------------------------------------------------------------------------------------------------

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// f(first row of the weight, rows, number of the part, first row in B) for each part; parts: first and rows, one after the other.
template <class F>
void for_parts(const std::vector<int64_t>& parts, const F& f) {
  int64_t row = 0;
  for (size_t i = 0; i < parts.size(); i += 2) {
    f(parts[i], parts[i + 1], static_cast<int64_t>(i / 2), row);
    row += parts[i + 1];
  }
}

std::vector<int64_t> firsts_and_rows(const std::vector<SigmaPart>& parts) {
  std::vector<int64_t> rows;
  for (const SigmaPart& part : parts) rows.insert(rows.end(), {part.first, part.rows});
  return rows;
}

struct AddLora : torch::autograd::Function<AddLora> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& x_in, const Tensor& a_in,
                        const Tensor& b_in, const std::vector<int64_t>& parts, double scale, const Origin& origin) {
    TORCH_CHECK(y.is_contiguous(), "add_lora: y is not contiguous");
    const Tensor x = x_in.contiguous(), a = a_in.contiguous(), b = b_in.contiguous();
    const int64_t N = x.size(0), K = x.size(1), M = y.size(1), PR = a.size(0), R = b.size(1);
    const Tensor h = at::empty({N, PR}, x.options());  // s · x Aᵀ
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "add_lora", [&] {
      const std::vector<scalar_t> s(static_cast<size_t>(PR), static_cast<scalar_t>(scale));
      auto* hidden = h.data_ptr<scalar_t>();
      multiply<scalar_t>(N, PR, K, x.const_data_ptr<scalar_t>(), K, a.const_data_ptr<scalar_t>(), 1, K, nullptr,
                         s.data(), hidden, PR, false);
      for_parts(parts, [&](int64_t first, int64_t rows, int64_t part, int64_t row) {
        multiply<scalar_t>(N, rows, R, hidden + part * R, PR, b.const_data_ptr<scalar_t>() + row * R, 1, R, nullptr,
                           nullptr, y.data_ptr<scalar_t>() + first, M, true);
      });
    });
    ctx->mark_dirty({y});
    variable_list saved{origin.made == Origin::kElsewhere ? x : Tensor(), a, b, h};
    saved.insert(saved.end(), origin.from.begin(), origin.from.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["made"] = static_cast<int64_t>(origin.made);
    ctx->saved_data["parts"] = parts;
    ctx->saved_data["scale"] = scale;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &a = saved[1], &b = saved[2], &h = saved[3], dy = grads[0].contiguous();
    const Origin origin{static_cast<Origin::Made>(ctx->saved_data["made"].toInt()), {saved.begin() + 4, saved.end()}};
    const Tensor x = origin.made == Origin::kElsewhere ? saved[0] : origin.again().to(h.scalar_type()).contiguous();
    const std::vector<int64_t> parts = ctx->saved_data["parts"].toIntVector();
    const double scale = ctx->saved_data["scale"].toDouble();
    const int64_t N = x.size(0), K = x.size(1), M = dy.size(1), PR = a.size(0), R = b.size(1);
    const Tensor dh = at::empty({N, PR}, x.options());  // with the factor s
    Tensor dx, da = at::zeros_like(a), db = at::zeros_like(b);
    if (ctx->needs_input_grad(1)) dx = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "add_lora_backward", [&] {
      const std::vector<scalar_t> s(static_cast<size_t>(R), static_cast<scalar_t>(scale));
      const auto* d = dy.const_data_ptr<scalar_t>();
      auto* dhidden = dh.data_ptr<scalar_t>();
      for_parts(parts, [&](int64_t first, int64_t rows, int64_t part, int64_t row) {
        multiply<scalar_t>(N, R, rows, d + first, M, b.const_data_ptr<scalar_t>() + row * R, R, 1, nullptr, s.data(),
                           dhidden + part * R, PR, false);
        if (N > 0)
          weight_gradient<scalar_t>(N, rows, R, d + first, M, h.const_data_ptr<scalar_t>() + part * R, PR,
                                    db.data_ptr<scalar_t>() + row * R);
      });
      if (N > 0)
        weight_gradient<scalar_t>(N, PR, K, dhidden, PR, x.const_data_ptr<scalar_t>(), K, da.data_ptr<scalar_t>());
      if (dx.defined())
        multiply<scalar_t>(N, K, PR, dhidden, PR, a.const_data_ptr<scalar_t>(), K, 1, nullptr, nullptr,
                           dx.data_ptr<scalar_t>(), K, false);
    });
    return {dy, dx, da, db, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor add_lora(const Tensor& y, const Tensor& x, const Projection& p, const Origin& origin) {
  const int64_t R = p.lora_b.size(1);
  if (has_cpu_kernels(x))
    return AddLora::apply(y, x, p.lora_a, p.lora_b, firsts_and_rows(p.lora), p.lora_scale, origin);
  const Tensor h = at::linear(x, p.lora_a);  // [N, P'·R]
  for_parts(firsts_and_rows(p.lora), [&](int64_t first, int64_t rows, int64_t part, int64_t row) {
    const Tensor term = at::linear(h.slice(1, part * R, (part + 1) * R), p.lora_b.slice(0, row, row + rows));
    y.slice(1, first, first + rows).add_(term, p.lora_scale);
  });
  return y;
}

Tensor add_lora(const Tensor& y, const Tensor& x, const Projection& p) { return add_lora(y, x, p, Origin()); }

Tensor merged(const Projection& p) {
  const at::NoGradGuard no_grad;
  const Tensor weight = p.weight.detach().clone(at::MemoryFormat::Contiguous), a = p.lora_a.contiguous(),
               b = p.lora_b.contiguous();
  const int64_t K = weight.size(1), R = b.size(1);
  for_parts(firsts_and_rows(p.lora), [&](int64_t first, int64_t rows, int64_t part, int64_t row) {
    if (!has_cpu_kernels(weight)) {
      weight.slice(0, first, first + rows)
          .addmm_(b.slice(0, row, row + rows), a.slice(0, part * R, (part + 1) * R), 1, p.lora_scale);
      return;
    }
    AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "merge_lora", [&] {
      const std::vector<scalar_t> s(static_cast<size_t>(R), static_cast<scalar_t>(p.lora_scale));
      multiply<scalar_t>(rows, K, R, b.const_data_ptr<scalar_t>() + row * R, R,
                         a.const_data_ptr<scalar_t>() + part * R * K, K, 1, s.data(), nullptr,
                         weight.data_ptr<scalar_t>() + first * K, K, true);
    });
  });
  return weight;
}

}  // namespace isentrope::model
