#include "csrc/train/weight_list.h"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>

#include "csrc/model/mixer_shape.h"
#include "csrc/train/trained_weights.h"

namespace isentrope::train {

std::vector<WeightSize> weight_list(const model::DecoderConfig& c, int64_t vocabulary) {
  const int64_t C = c.hidden_size;
  std::vector<WeightSize> list{{"model.embed_tokens.weight", "embedding", vocabulary, C}};
  const bool normed = c.norm != "none";
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + ".";
    const model::MixerShape mixer = model::mixer_shape(c, i);
    const auto add = [&](const std::string& name, const std::string& joined, int64_t rows, int64_t columns,
                         const std::string& layer = "") {
      list.push_back({at + name, joined.empty() ? at + name : at + joined, rows, columns, layer});
    };
    const auto vector = [&](const std::string& name, int64_t rows, const std::string& joined = "") {
      add(name, joined, rows, 1);
    };
    if (normed && !(c.norm == "post" && i == 0)) vector("input_layernorm.weight", C);
    for (const auto& [part, rows] : mixer.parts)
      add("self_attn." + (part == "decay" ? "decay.proj" : part + "_proj") + ".weight", "qkv", rows, C, part);
    add("self_attn.o_proj.weight", "", C, mixer.output, "o");
    if (normed) vector("post_attention_layernorm.weight", C);
    for (const auto& [name, rows, columns] : c.mlp_matrices())
      add("mlp." + name + "_proj.weight", name == "down" ? "" : "gate_up", rows, columns, name);
    if (mixer.attends && mixer.sight == 0) {
      if (c.attention.bias != "none")
        for (const auto& [part, rows] : mixer.parts) vector("self_attn." + part + "_proj.bias", rows, "qkv_bias");
      if (c.attention.bias == "all") vector("self_attn.o_proj.bias", C);
    }
    if (c.mlp_bias)
      for (const auto& [name, rows, columns] : c.mlp_matrices())
        vector("mlp." + name + "_proj.bias", rows, name == "down" ? "" : "gate_up_bias");
    if (c.attention.qk_norm && mixer.attends && mixer.sight == 0)
      for (const char* name : {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}) vector(name, c.head_size());
    if (mixer.others > 0) vector("self_attn.others", mixer.others);
  }
  if (normed) list.push_back({"model.norm.weight", "model.norm.weight", C, 1});
  if (!c.tie_word_embeddings) list.push_back({"lm_head.weight", "head", vocabulary, C});
  return list;
}

TrainedNumbers trained_numbers(const model::DecoderConfig& config, int64_t vocabulary) {
  const std::vector<WeightSize> list = weight_list(config, vocabulary);
  TrainedNumbers found;
  const auto number = [](int64_t x) { return static_cast<double>(x); };
  if (config.compose) {  // a coefficient each, and the gradient of one parameter at a time
    const auto vectors = std::ssize(config.compose->vectors);
    found.all = number(vectors * (config.compose->per == "vector" ? 1 : std::ssize(list)));
    std::map<std::string, int64_t> joined;
    for (const WeightSize& one : list) joined[one.parameter] += one.numbers();
    for (const auto& [parameter, numbers] : joined) found.gradients = std::max(found.gradients, number(numbers));
    found.largest = found.all;
    return found;
  }
  std::vector<std::string> names;
  std::map<std::string, double> kappa;  // the more numbers, the less: the most that a number of matrices can be
  for (const WeightSize& one : list) {
    names.push_back(one.name);
    if (one.columns > 1) kappa[one.name] = 1 / number(one.numbers());
  }
  std::set<std::string> chosen(names.begin(), names.end());
  try {
    chosen = chosen_weights(config, names, kappa);
  } catch (const std::invalid_argument&) {
    // The names of what mixers have beside their projections are not here: the run itself looks at them.
  }
  std::set<std::string> joined;
  for (const WeightSize& one : list) {
    if (!chosen.contains(one.name)) continue;
    double numbers = number(one.numbers());
    if (config.lora) {
      const bool has = !one.layer.empty() && config.lora->takes(one.layer);
      numbers = has ? number((one.rows + one.columns) * config.lora->rank) : 0;
    }
    found.all += numbers;
    found.largest = std::max(found.largest, numbers);
    if (one.parameter == "embedding" || one.parameter == "head") found.embedding += numbers;
    if (config.lora)
      found.gradients += numbers;
    else
      joined.insert(one.parameter);
  }
  for (const WeightSize& one : list)
    if (joined.contains(one.parameter)) found.gradients += number(one.numbers());
  return found;
}

}  // namespace isentrope::train
