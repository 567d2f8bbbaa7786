#include "csrc/train/samples.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace isentrope::train {

std::string to_json(const std::string& phase, int64_t step, const std::string& split,
                    const std::vector<Sample>& samples) {
  using Json = nlohmann::ordered_json;
  Json shown = Json::array();
  for (const Sample& sample : samples) {
    Json entropy = Json::array();
    for (const double H : sample.entropy) entropy.push_back(std::round(H * 1e4) / 1e4);
    shown.push_back({{"prompt", sample.prompt}, {"tokens", sample.tokens}, {"entropy", entropy}});
    if (sample.right) shown.back()["right"] = *sample.right;
  }
  const Json line{{"phase", phase}, {"step", step}, {"eval/split", split}, {"samples", shown}};
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace isentrope::train
