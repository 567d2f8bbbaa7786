// The JSON files of a model's folder, which others wrote. Pure C++.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string_view>

namespace isentrope::data {

// Objects and lists in each other, the outermost counted: what copies or writes a value calls itself, and 2 MB of [ are a stack's end.
// The files of transformers have less than ten.
inline constexpr int kDeepestJson = 100;

// Throws std::runtime_error without the file's name: no JSON object, or deeper than kDeepestJson.
nlohmann::json parse_json_object(std::string_view content);

}  // namespace isentrope::data
