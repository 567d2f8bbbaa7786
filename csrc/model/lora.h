// Low-rank adapters of linear layers: the weight W [M, K] is frozen, and what is learnt is a term of rank R beside it,
//
//   y = x Wᵀ + bias + s · (x Aᵀ) Bᵀ,   A [R, K], B [M, R],   s = alpha / R, or alpha / √R with rslora
//
// (LoRA: Hu et al., ICLR 2022, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; the names are PEFT's). Weights that
// are stored joined have one pair A, B for each of their parts.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/model/linear.h"

namespace isentrope::model {

struct LoraConfig {
  std::string from;
  int64_t rank = 16;
  double alpha = 32;
  bool rslora = false;
  std::vector<std::string> targets = {"all"};

  double scale() const;
  bool takes(const std::string& layer) const;  // q, k, v, o, gate, up or down
  std::vector<std::string> layers() const;     // of those seven, the ones it takes, in that order
  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("from", from,
      "Folder of an adapter to start from, of PEFT or of a run: it gives the keys below (docs/models.md). Left out: a "
      "new one, which changes nothing until it is trained.");
    v("rank", rank, "Rows of A (PEFT: r).", between(1, 1 << 13));
    v("alpha", alpha, "The term is multiplied by alpha / rank (PEFT: lora_alpha).", above(0));
    v("rslora", rslora, "Multiply by alpha / √rank instead.");
    v("targets", targets,
      "Linear layers that have such a term: all, attention (q, k, v, o), mlp (gate, up, down), or some by name.",
      one_of({"all", "attention", "mlp", "q", "k", "v", "o", "gate", "up", "down"}));
  }
};

// y [N, M] + s · (x Aᵀ) Bᵀ, in the place of y, which nothing else may need; x [N, K]. Gradients of first order for y, x, A and B.
// Float and double on the CPU: own kernels with the promises of linear(); elsewhere ATen.
at::Tensor add_lora(const at::Tensor& y, const at::Tensor& x, const Projection& projection);

// W + s B A [M, K], without its gradient. Bits do not depend on the number of threads.
at::Tensor merged(const Projection& projection);

}  // namespace isentrope::model
