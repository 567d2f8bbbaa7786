#include "csrc/train/rollout_log.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>

namespace isentrope::train {
namespace fs = std::filesystem;
namespace {

// The digest of the first `bytes` bytes, line by line; nothing where no line ends there.
std::optional<int64_t> digest_until(const std::string& file, int64_t bytes) {
  std::ifstream in(file, std::ios::binary);
  LineDigest digest;
  int64_t read = 0;
  for (std::string line; read < bytes && std::getline(in, line) && !in.eof();) {
    digest.add(line);
    read += static_cast<int64_t>(line.size()) + 1;
  }
  return read == bytes ? std::optional(digest.value()) : std::nullopt;
}

}  // namespace

RolloutLog::RolloutLog(const std::string& file, const Metrics::Place& kept) : file_(file), kept_(kept) {
  std::error_code error;
  const bool there = fs::exists(file, error);
  if (there && !fs::is_regular_file(file, error))
    throw std::runtime_error(file + ": is no regular file, and the run writes one of that name; move it away");
  if (kept.bytes > 0 && !there) {
    lost_ = true;
    kept_ = {};
  } else if (kept.bytes > 0 && digest_until(file, kept.bytes) != kept.digest.value()) {
    throw std::runtime_error(
        file +
        ": its lines are not those that the run had written before its checkpoint: some were changed or are missing. "
        "Put the file back, or move it away to go on without what it holds");
  }
}

void RolloutLog::cut() {
  std::error_code error;
  if (!fs::exists(file_, error)) return;
  if (kept_.bytes == 0) return remove_rollouts({file_});
  fs::resize_file(file_, static_cast<uintmax_t>(kept_.bytes), error);
  if (error) throw std::runtime_error(file_ + ": cannot be cut: " + error.message());
}

void RolloutLog::write(const std::string& line) {
  if (!lines_) {
    std::error_code error;
    const std::string folder = fs::path(file_).parent_path().string();
    fs::create_directories(folder, error);
    if (error) throw std::runtime_error(folder + ": the folder of rollouts cannot be made: " + error.message());
    lines_ = std::make_unique<Metrics>(file_, kept_.digest);
  }
  lines_->write(line);
}

void RolloutLog::commit() {
  if (lines_) kept_ = lines_->place();
}

void RolloutLog::back() noexcept {
  if (lines_) lines_->back_to(kept_);
}

void remove_rollouts(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    std::error_code error;
    fs::remove(file, error);
    if (error) throw std::runtime_error(file + ": cannot be removed: " + error.message());
  }
}

}  // namespace isentrope::train
