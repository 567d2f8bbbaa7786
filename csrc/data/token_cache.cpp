#include "csrc/data/token_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "csrc/data/split.h"

namespace isentrope::data {
namespace {

// Held while shards are looked for and written: one process writes, the others wait and then find them.
class CacheLock {
 public:
  explicit CacheLock(const TokenCache& cache) {
    std::error_code error;
    std::filesystem::create_directories(cache.folder, error);
    const std::string file = cache.folder + "/lock";
    if (!error) fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0 || ::flock(fd_, LOCK_EX) != 0) {
      const std::string reason = error ? error.message() : std::strerror(errno);
      if (fd_ >= 0) ::close(fd_);
      throw std::runtime_error(cache.kind + ": the cache " + cache.folder + " cannot be used: " + reason +
                               "; name another folder in data." + cache.kind + ".cache");
    }
  }
  ~CacheLock() { ::close(fd_); }
  CacheLock(const CacheLock&) = delete;
  CacheLock& operator=(const CacheLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace

std::shared_ptr<const TokenShard> cached_tokens(const TokenCache& cache, const Hash& name, Split split,
                                                uint64_t fingerprint, const Tokenizer& tokenizer,
                                                const std::function<void(const std::string& file)>& write) {
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(name.value));
  const std::string shard = cache.folder + "/" + digits.data() + "." + name_of(split) + ".tokens";
  const CacheLock lock(cache);
  std::shared_ptr<const TokenShard> tokens;
  if (TokenShard::fingerprint_of(shard) == fingerprint) {
    try {
      tokens = std::make_shared<const TokenShard>(shard);
    } catch (const std::runtime_error&) {  // damaged: a cache is made anew
    }
  }
  if (!tokens) {
    write(shard);
    tokens = std::make_shared<const TokenShard>(shard);
  }
  const Tokens& all = tokens->tokens();
  for (size_t i = 0; i < all.size(); ++i)
    if (all[i] >= tokenizer.size())
      throw std::runtime_error(cache.kind + ": " + shard + " is damaged: token " + std::to_string(i) + " is " +
                               std::to_string(all[i]) + ", and the tokenizer has " + std::to_string(tokenizer.size()) +
                               "; delete the file, and it is made anew");
  return tokens;
}

}  // namespace isentrope::data
