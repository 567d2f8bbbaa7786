// A file of strategic grams, as `isentrope grams` writes it (python/isentrope/grams.py):
//
//   {"grams": [{"text": "let me check", "cluster": 3}, …], …}
//
// cluster: grams of one meaning have one number; left out, each is its own.
#pragma once
#include <string>
#include <vector>

#include "csrc/methods/method.h"

namespace isentrope::rl {

// Throws std::invalid_argument, "grams: …", with the file and what is wrong with it: it cannot be read, is no such object, has no gram,
// one without words, or a cluster that is no number from 0 on.
std::vector<methods::Gram> read_grams(const std::string& path);

}  // namespace isentrope::rl
