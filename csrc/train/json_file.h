// A file that holds one JSON object, and its fields; what is wrong is told with the file and the key.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "csrc/data/json_object.h"
#include "csrc/durable_file.h"

namespace isentrope::train {

// Whether something has that name; false where it cannot be looked for.
inline bool exists(const std::string& file) {
  std::error_code error;
  return std::filesystem::exists(file, error);
}

inline nlohmann::json read_json(const std::string& file) {
  const std::string content = read_whole(file);
  try {
    return data::parse_json_object(content);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(file + ": " + error.what());
  }
}

template <class T>
T json_field(const std::string& file, const nlohmann::json& object, const char* key) {
  try {
    return object.at(key).get<T>();
  } catch (const nlohmann::json::exception&) {
    throw std::runtime_error(file + ": '" + key + "' is missing or of another type");
  }
}

// As files of models write the ids of tokens: a number, or a list of several.
inline nlohmann::json ids_of(const std::vector<int64_t>& ids) {
  return ids.size() == 1 ? nlohmann::json(ids[0]) : nlohmann::json(ids);
}

}  // namespace isentrope::train
