#include "csrc/data/reasoning_gym.h"

#include <algorithm>
#include <cctype>
#include <cstdio>

#include "csrc/data/token_shard.h"
#include "csrc/message.h"

namespace isentrope::data {

std::string ReasoningGymConfig::problem() const {
  if (task.empty()) return "task is missing; name one, such as chain_sum";
  if (!std::all_of(task.begin(), task.end(), [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-'; }))
    return "task: " + quoted(task) + " is no name of a task, which has letters, digits and _ alone";
  if (cache.empty()) return "cache is empty; give a folder for the files";
  return "";
}

std::string ReasoningGymConfig::folder() const {
  Hash hash;
  hash.add(task);
  for (const int64_t number : {size, validation_size, test_size, seed}) hash.add(static_cast<uint64_t>(number));
  for (const auto& [key, value] : settings) hash.add(key), hash.add(value);
  char digits[17];
  std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(hash.value));
  return cache + "/" + task + "-" + digits;
}

JsonlConfig ReasoningGymConfig::files() const {
  JsonlConfig files;
  files.path = {folder() + "/train.jsonl"};
  files.validation_path = validation_size > 0 ? folder() + "/validation.jsonl" : "";
  files.test_path = test_size > 0 ? folder() + "/test.jsonl" : "";
  if (validation_size == 0) files.validation_fraction = 0;
  if (test_size == 0) files.test_fraction = 0;
  return files;
}

}  // namespace isentrope::data
