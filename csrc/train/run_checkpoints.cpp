#include "csrc/train/run_checkpoints.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <tuple>

#include "csrc/train/adapter.h"
#include "csrc/train/checkpoint.h"

namespace isentrope::train {
namespace fs = std::filesystem;
namespace {

struct Found {
  std::string dir = {}, phase = {};  // phase and step as the folder's name has them
  int64_t step = 0;
  CheckpointState state = {};
  std::string damage = {};  // why trainer.json cannot be read
};

// Takes <phase>-<number> apart.
bool parse_name(const std::string& name, std::string& phase, int64_t& step) {
  const size_t dash = name.rfind('-');
  if (dash == std::string::npos || dash == 0) return false;
  const std::string number = name.substr(dash + 1);
  if (number.size() < 6 || number.size() > 18 || number.find_first_not_of("0123456789") != std::string::npos)
    return false;
  phase = name.substr(0, dash);
  step = std::stoll(number);
  return true;
}

std::vector<fs::path> entries(const std::string& run_dir) {
  std::vector<fs::path> found;
  std::error_code error, ignored;
  for (fs::directory_iterator at(run_dir + "/checkpoints", error), end; !error && at != end; at.increment(error))
    found.push_back(at->path());
  if (error && fs::exists(run_dir + "/checkpoints", ignored))  // not to be taken for an empty one
    throw std::runtime_error(run_dir + "/checkpoints: cannot be read: " + error.message());
  return found;
}

// The run's own, oldest first; those whose trainer.json cannot be read come last.
std::vector<Found> own_checkpoints(const std::string& run_dir) {
  std::vector<Found> found;
  for (const fs::path& path : entries(run_dir)) {
    std::error_code error;
    Found one{.dir = path.string()};
    if (!parse_name(path.filename().string(), one.phase, one.step)) continue;
    if (!fs::exists(path / "DONE", error) && !error) continue;
    if (error)
      one.damage = one.dir + ": cannot be read: " + error.message();
    else
      try {
        one.state = read_position(one.dir);
      } catch (const std::exception& wrong) {
        one.damage = wrong.what();
      }
    if (!one.damage.empty() || (one.state.phase_name == one.phase && one.state.step == one.step)) found.push_back(one);
  }
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    const auto key = [](const Found& f) {
      return std::make_tuple(!f.damage.empty(), f.state.steps_of_run, f.state.phase_finished, f.phase, f.step);
    };
    return key(a) < key(b);
  });
  return found;
}

// Whether a checkpoint that cannot be read is certainly older than one that can.
bool is_older(const Found& damaged, const Found& whole) {
  const auto& ended = whole.state.ended;
  return (damaged.phase == whole.phase && damaged.step < whole.step) ||
         std::find(ended.begin(), ended.end(), damaged.phase) != ended.end();
}

std::string damage_of(const Found& one) {
  if (!one.damage.empty()) return one.damage;
  try {
    verify_checkpoint(one.dir);
  } catch (const std::exception& wrong) {
    return wrong.what();
  }
  return "";
}

}  // namespace

std::optional<std::string> find_latest(const std::string& run_dir) {
  std::vector<Found> found = own_checkpoints(run_dir);
  const auto damaged =
      std::stable_partition(found.begin(), found.end(), [](const Found& f) { return f.damage.empty(); });
  const Found* whole = damaged == found.begin() ? nullptr : &*(damaged - 1);
  const Found* newest = whole;
  for (auto one = damaged; one != found.end(); ++one)
    if (!whole || !is_older(*one, *whole)) newest = &*one;
  if (!newest) return std::nullopt;
  const std::string damage = damage_of(*newest);
  if (damage.empty()) return newest->dir;
  const auto before = std::find_if(std::make_reverse_iterator(damaged), found.rend(),
                                   [&](const Found& f) { return &f != newest && damage_of(f).empty(); });
  throw std::runtime_error(damage + ". " + newest->dir + " is the newest checkpoint. " +
                           (before == found.rend() ? "There is no whole one before it; begin a new run"
                                                   : "The one before it, " + before->dir +
                                                         ", is whole: to take it, move the damaged folder out of " +
                                                         run_dir + "/checkpoints"));
}

std::string resolve_checkpoint(const std::string& path) {
  std::error_code error;
  if (fs::exists(path + "/DONE", error)) {
    verify_checkpoint(path);
    return path;
  }
  if (const auto latest = find_latest(path)) return *latest;
  if (fs::exists(path + "/config.json", error) || is_adapter(path)) {
    read_model_config(path);  // tells what is wrong with it
    return path;
  }
  throw std::runtime_error(
      path + (fs::exists(path, error)
                  ? ": neither a complete checkpoint, nor the folder of a run that has one, nor a model of "
                    "transformers (a folder with config.json)"
                  : ": there is no such folder; wanted a checkpoint, a run that has one, or a folder that "
                    "transformers saved"));
}

void prune_checkpoints(const std::string& run_dir, int64_t keep, const std::vector<std::string>& phases) {
  const auto plain_folder = [](const fs::path& path) {
    std::error_code error;
    return fs::symlink_status(path, error).type() == fs::file_type::directory;
  };
  std::error_code ignored;
  std::map<std::string, int64_t> kept;  // phase → checkpoints met, newest first
  const auto found = own_checkpoints(run_dir);
  for (auto one = found.rbegin(); one != found.rend(); ++one) {
    if (!one->damage.empty() || one->state.phase_finished || ++kept[one->phase] <= keep || !plain_folder(one->dir))
      continue;
    fs::rename(one->dir, one->dir + ".tmp", ignored);  // one step, so that a half removed folder is not taken for whole
  }
  for (const fs::path& path : entries(run_dir)) {
    std::string phase;
    int64_t step = 0;
    if (path.extension() == ".tmp" && parse_name(path.stem().string(), phase, step) &&
        std::find(phases.begin(), phases.end(), phase) != phases.end() && plain_folder(path))
      fs::remove_all(path, ignored);
  }
}

}  // namespace isentrope::train
