// Which weights of a model are trained, and models that are a sum of others.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/field.h"

namespace isentrope::model {

// What is chosen has all that is written: a name, a block, a condition number among the best of those that have the other two.
struct TrainOnlyConfig {
  int64_t condition_number = 0;
  std::string cache;
  std::vector<std::string> names;
  std::vector<int64_t> blocks;

  std::string problem() const {
    if (condition_number == 0 && names.empty() && blocks.empty())
      return "nothing is chosen; write condition_number, names or blocks, or leave the section out";
    if (!cache.empty() && condition_number == 0)
      return "cache: keeps condition numbers, and condition_number is not written; leave it out";
    if (!blocks.empty() && (blocks.size() != 2 || blocks[0] > blocks[1]))
      return "blocks: wanted the first and the last block, such as [0, 3]";
    return "";
  }

  template <class Visitor>
  void visit(Visitor& v) {
    v("condition_number", condition_number,
      "Train so many matrices, those of the least condition number, largest over smallest singular value (KappaTune); "
      "0: not by that.",
      at_least(0));
    v("cache", cache,
      "File that keeps the condition numbers, with a digest of the weights that they are of; empty: "
      "condition_numbers.json in the run's folder.");
    v("names", names,
      "Train weights of these names as checkpoints have them; * stands for any letters, as in *.mlp.*; empty: all "
      "names.");
    v("blocks", blocks, "Train weights of the first to the last of these blocks, from 0; empty: wherever they stand.",
      at_least(0));
  }
};

// θ = θ₀ + Σ c τ, τ = θ' − θ₀ of each folder: what is trained are the coefficients c alone.
struct ComposeConfig {
  std::vector<std::string> vectors;
  std::string per = "tensor";
  double start = 0;
  bool any_base = false;

  std::string problem() const {
    return vectors.empty() ? "vectors: names no folder; write those of models that were trained from model.pretrained"
                           : "";
  }

  template <class Visitor>
  void visit(Visitor& v) {
    v("vectors", vectors,
      "Folders of models that were trained from model.pretrained: what each learnt, its task vector, is its weights "
      "less those.");
    v("per", per, "One coefficient a vector and tensor, or one a vector.", one_of({"tensor", "vector"}));
    v("start", start, "Coefficients at the start: 0 for model.pretrained itself.");
    v("any_base", any_base,
      "Take folders that say that they were trained from other weights than those of model.pretrained.");
  }
};

}  // namespace isentrope::model
