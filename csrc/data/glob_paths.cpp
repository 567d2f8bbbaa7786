#include "csrc/data/glob_paths.h"

#include <glob.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace isentrope::data {

std::vector<std::string> glob_paths(const std::string& what, const std::string& pattern) {
  glob_t found{};
  const int failed = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (failed != 0 && failed != GLOB_NOMATCH)
    throw std::runtime_error(what + ": the pattern " + pattern + " could not be searched: " + std::strerror(errno));
  return paths;
}

}  // namespace isentrope::data
