// The paths that a pattern of a shell stands for.
#pragma once
#include <string>
#include <vector>

namespace isentrope::data {

// Sorted; none where nothing matches. Throws std::runtime_error that begins with what, such as "corpus", where a folder on the
// way cannot be searched.
std::vector<std::string> glob_paths(const std::string& what, const std::string& pattern);

}  // namespace isentrope::data
