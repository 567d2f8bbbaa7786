// Tokens of a prompt that the blocks from a layer on do not read, by the matrix entropy of each (EntropyPrune, code of YahongWang1/EntropyPrune).
// A token's hidden state, or its query, is a matrix of one row a head:
//
//   Z [H, d], less its mean over the heads     A = Z Zᵀ / H     h = -Σ λ ln λ / ln H, of A's eigenvalues λ, none below 1e-10, in double
//
//   normalised   λ over their sum: 0 … 1; 0 where all heads are alike
//   raw          as they are, as the released code has it: no entropy, it ranks by energy too
//   random       a uniform number of the token's place and the prompt's tokens in the place of h: the control
//
// What is kept keeps its order and its position. A rotation of all heads alike, as that of rotary positions, leaves h as it is. The same in
// Python: isentrope.diagnose.token_matrix.
//
// n tokens, H heads, d numbers of a head, C width.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/model/decoder.h"

namespace isentrope::model {

struct PruneConfig {
  std::optional<int64_t> layer = {};
  double keep = 0.5;
  std::string matrix = "query";
  std::string form = "normalised";
  int64_t first = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("layer", layer,
      "First block, from 0, that reads kept tokens alone; left out: where the mean entropy of the first prompts' "
      "tokens "
      "falls most.",
      between(0, 1023));
    v("keep", keep, "Share of a prompt's tokens that is kept, its last token among them.", above_to(0, 1));
    v("matrix", matrix, "What of a token is the matrix of its heads: query, as that block projects it, or hidden.",
      one_of({"query", "hidden"}));
    v("form", form,
      "Which tokens stay: those of the largest entropy, normalised by the trace or raw, as the released code has it; "
      "or "
      "random ones, as a control.",
      one_of({"normalised", "raw", "random"}));
    v("first", first, "Tokens at a prompt's begin that stay, and count.", at_least(0));
  }
};

// What is wrong with it for a model: a layer that is not there, a block from there on that keeps no single tokens or sees a window alone, one
// that reads prefixes, heads that the matrix cannot have. "layer is 12, …", "" where nothing is.
std::string problem_of(const PruneConfig& config, const DecoderConfig& model);

// [n, H, d] → h [n] double on the CPU. form: normalised or raw. H ≥ 2; of more than 128 numbers of a head means of equal groups are taken.
at::Tensor matrix_entropy(const at::Tensor& Z, const std::string& form);

// What sessions prune by (csrc/model/decode.h).
class Pruning {
 public:
  // Throws std::invalid_argument, "prune." and problem_of(). config.layer none: for DecodeSession::matrix_entropies alone.
  Pruning(const Decoder& decoder, const PruneConfig& config);

  int64_t layer() const { return *config_.layer; }
  // Tokens of a prompt of so many, of which the first `prefix` are embeddings, that blocks from layer() on do not read.
  int64_t dropped(int64_t tokens, int64_t prefix) const;
  // x [n, C] that enters the block → h [n].
  at::Tensor entropies(int64_t block, const at::Tensor& x) const;
  // The places that are kept, rising. tokens: of the prompt, kHidden where it has embeddings: these alone are then pruned, and text is kept.
  // x [n, C] enters block layer().
  std::vector<int64_t> kept(std::span<const int64_t> tokens, const at::Tensor& x) const;

 private:
  int64_t stay(int64_t count, bool text) const;

  PruneConfig config_;
  int64_t heads_;
  double eps_;
  struct Query {
    at::Tensor norm, weight, bias;  // [C], [H·d, C], [H·d]; norm and bias undefined without
  };
  std::vector<Query> queries_;  // of each block; undefined weights where they are not asked for
};

// The config with the layer of the largest drop, from one block to the next, of the mean entropy of all tokens of the first prompts, up to
// eight, unless it has one. embeddings: of each prompt those of its tokens kHidden, or none. Throws std::invalid_argument as Pruning, and where
// the mean falls at no layer.
PruneConfig with_layer(const PruneConfig& config, const Decoder& decoder,
                       const std::vector<std::vector<int64_t>>& prompts,
                       const std::vector<at::Tensor>& embeddings = {});

}  // namespace isentrope::model
