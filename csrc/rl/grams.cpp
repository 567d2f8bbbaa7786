#include "csrc/rl/grams.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/data/json_object.h"

namespace isentrope::rl {

std::vector<methods::Gram> read_grams(const std::string& path) {
  const auto fail = [&](const std::string& what) { throw std::invalid_argument("grams: " + path + ": " + what); };
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot be read; wanted a file of `isentrope grams`");
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  std::vector<methods::Gram> grams;
  try {
    const nlohmann::json object = data::parse_json_object(content);
    const auto list = object.find("grams");
    if (list == object.end() || !list->is_array() || list->empty()) fail("has no list \"grams\" with something in it");
    for (const nlohmann::json& one : *list) {
      const std::string which = "gram " + std::to_string(grams.size());
      if (!one.is_object() || !one.contains("text") || !one["text"].is_string()) fail(which + " has no text");
      methods::Gram gram{one["text"].get<std::string>(), std::ssize(grams)};
      if (gram.text.find_first_not_of(" \t\r\n") == std::string::npos) fail(which + " has no words");
      if (one.contains("cluster")) {
        if (!one["cluster"].is_number_unsigned()) fail(which + ": its cluster is no whole number from 0 on");
        gram.cluster = one["cluster"].get<int64_t>();
      }
      grams.push_back(std::move(gram));
    }
  } catch (const std::runtime_error& error) {
    fail(error.what());
  }
  return grams;
}

}  // namespace isentrope::rl
