#include "csrc/data/json_object.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace isentrope::data {
namespace {

int depth_of(std::string_view content) {
  int depth = 0, most = 0;
  bool quoted = false;
  for (size_t i = 0; i < content.size(); ++i) {
    const char c = content[i];
    if (quoted && c == '\\')
      ++i;
    else if (c == '"')
      quoted = !quoted;
    else if (!quoted && (c == '{' || c == '['))
      most = std::max(most, ++depth);
    else if (!quoted && (c == '}' || c == ']'))
      --depth;
  }
  return most;
}

}  // namespace

nlohmann::json parse_json_object(std::string_view content) {
  if (depth_of(content) > kDeepestJson)
    throw std::runtime_error("its objects stand more than " + std::to_string(kDeepestJson) +
                             " deep in each other; "
                             "the file is damaged");
  nlohmann::json json = nlohmann::json::parse(content, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw std::runtime_error("not a JSON object; the file is damaged");
  return json;
}

}  // namespace isentrope::data
