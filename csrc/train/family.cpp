#include "csrc/train/family.h"

#include <algorithm>
#include <stdexcept>

namespace isentrope::train {

// Of one that transformers has no model for: it opens such a checkpoint by the code that stands in it (model_code.h), or not at all, and does
// not give other logits.
const Family kIsentrope{.type = "isentrope",
                        .architecture = "IsentropeForCausalLM",
                        .biases = Biases::kKey,
                        .mlp_bias = true,
                        .windows = Windows::kByLayer,
                        .own = true};

namespace {

// Where several compute the same, the first is taken.
const Family* const kFamilies[]{&kLlama, &kQwen2, &kQwen3, &kMistral};

}  // namespace

std::string Family::misfit(const model::DecoderConfig& c) const {
  if (own) return "";
  if (std::any_of(c.mixers.begin(), c.mixers.end(), [](const std::string& kind) { return kind != "softmax"; }))
    return "mixers";
  if (!c.causal) return "causal";
  const model::AttentionConfig& a = c.attention;
  if (a.softcap > 0) return "attention.softcap";
  if (a.temperature != "none") return "attention.temperature";
  if (c.norm != "pre") return "norm";
  if (!c.swiglu()) return "activation";
  if (a.qk_norm != qk_norm) return "attention.qk_norm";
  const bool has_bias = biases == Biases::kKey ? a.bias != "qkv" : a.bias == (biases == Biases::kQkv ? "qkv" : "none");
  if (!has_bias) return "attention.bias";
  if (c.mlp_bias && !mlp_bias) return "mlp_bias";
  if (a.window > 0 && windows == Windows::kNone) return "attention.window";
  if (!a.layer_types.empty() && windows != Windows::kByLayer) return "attention.layer_types";
  return "";
}

const Family& family_named(const std::string& file, const std::string& type) {
  std::string known;
  for (const Family* family : kFamilies) {
    if (type == family->type) return *family;
    known += (known.empty() ? "" : ", ") + std::string(family->type);
  }
  if (type == kIsentrope.type) return kIsentrope;
  throw std::runtime_error(file + ": model_type is '" + type + "'; wanted one of " + known +
                           ", the families that are read (docs/models.md)");
}

const Family& family_of(const model::DecoderConfig& config) {
  for (const Family* family : kFamilies)
    if (config.family == family->type || (config.family == "auto" && family->misfit(config).empty())) return *family;
  return kIsentrope;
}

}  // namespace isentrope::train
