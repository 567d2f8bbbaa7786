#include "csrc/train/metrics.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "csrc/durable_file.h"

namespace isentrope::train {
namespace {

constexpr std::array<std::string_view, 36> kOrder{"loss",
                                                  "reward/mean",
                                                  "reward/std",
                                                  "entropy/mean",
                                                  "entropy/std",
                                                  "kl/k1",
                                                  "kl/k2",
                                                  "kl/k3",
                                                  "ratio/max",
                                                  "clip/frac",
                                                  "cov/mean",
                                                  "cov/max",
                                                  "select/frac",
                                                  "grad_norm",
                                                  "lr",
                                                  "length/mean",
                                                  "tokens_per_s",
                                                  "rollout_tokens_per_s",
                                                  "mfu",
                                                  "law/a",
                                                  "law/b",
                                                  "law/ceiling",
                                                  "law/r2",
                                                  "law/rmse",
                                                  "sigma/time_share",
                                                  "ranks/bytes",
                                                  "eval/loss",
                                                  "eval/bits_per_byte",
                                                  "eval/floor",
                                                  "eval/excess",
                                                  "eval/greedy",
                                                  "eval/sampled",
                                                  "eval/pass@1",
                                                  "eval/entropy",
                                                  "eval/length",
                                                  "time_s"};

// The shortest text that reads back to the same double.
std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

// The name in kOrder of a numbered key: eval/pass@1 of eval/pass@8.
std::string_view family(std::string_view key) { return key.starts_with("eval/pass@") ? "eval/pass@1" : key; }

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

std::string to_json(const HeadTable& table) {
  std::string text;
  for (const auto& layer : table) {
    std::string heads;
    for (const double value : layer) heads += (heads.empty() ? "" : ", ") + number(value);
    text += (text.empty() ? "" : ", ") + (layer.empty() ? "null" : "[" + heads + "]");
  }
  return "[" + text + "]";
}

// "layers": [1, 3], "" where every layer up to the last is there.
std::string layers_of(const AttentionStatistics& a) {
  for (size_t i = 0; i < a.layers.size(); ++i)
    if (a.layers[i] != static_cast<int64_t>(i)) return "\"layers\": " + nlohmann::json(a.layers).dump() + ", ";
  return "";
}

std::string to_json(const AttentionStatistics& a) {
  return "{" + layers_of(a) + "\"entropy\": " + to_json(a.entropy) + ", \"normalized\": " + to_json(a.normalized) +
         ", \"max_logit\": " + to_json(a.max_logit) +
         (a.bound.empty() ? "" : ", \"bound\": " + to_json(a.bound) + ", \"certified\": " + to_json(a.certified)) +
         ", \"collapsed\": " + number(a.collapsed) + ", \"overloaded\": " + number(a.overloaded) +
         ", \"alarms\": " + nlohmann::json(a.alarms).dump() + "}";
}

std::string to_json(const StateStatistics& s) {
  return "{\"layers\": " + nlohmann::json(s.layers).dump() + ", \"entropy\": " + to_json(s.entropy) +
         ", \"normalized\": " + to_json(s.normalized) + ", \"rank\": " + to_json(s.rank) + "}";
}

std::string to_json(const std::vector<SigmaFigures>& layers) {
  std::string text;
  for (const SigmaFigures& f : layers)
    text += (text.empty() ? "" : ", ") + quoted(f.layer) + ": [" + number(f.sigma) + ", " + number(f.gamma) +
            (f.svd ? ", " + number(*f.svd) : "") + "]";
  return "{" + text + "}";
}

}  // namespace

std::vector<std::pair<std::string, double>> in_order(const std::map<std::string, double>& values) {
  std::vector<std::pair<std::string, double>> ordered;
  const auto place = [](const auto& value) { return std::find(kOrder.begin(), kOrder.end(), family(value.first)); };
  for (const auto& value : values) ordered.push_back(value);
  std::stable_sort(ordered.begin(), ordered.end(), [&](const auto& a, const auto& b) {
    if (place(a) != place(b)) return place(a) < place(b);
    return family(a.first) != a.first && a.first.size() < b.first.size();  // pass@9, then pass@10
  });
  return ordered;
}

std::string to_json(const Record& record) {
  std::string line = "{\"phase\": " + quoted(record.phase) + ", \"step\": " + std::to_string(record.step);
  if (record.global_step > 0) line += ", \"global_step\": " + std::to_string(record.global_step);
  if (!record.split.empty()) line += ", \"eval/split\": " + quoted(record.split);
  for (const auto& [key, value] : in_order(record.values)) line += ", " + quoted(key) + ": " + number(value);
  if (record.attention) line += ", \"attention_entropy\": " + to_json(*record.attention);
  if (record.states) line += ", \"mixer_state\": " + to_json(*record.states);
  if (!record.sigma.empty()) line += ", \"sigma\": " + to_json(record.sigma);
  if (!record.warnings.empty()) line += ", \"warnings\": " + nlohmann::json(record.warnings).dump();
  return line + "}";
}

std::vector<std::pair<std::string, std::string>> evaluation_figures(const std::map<std::string, double>& values) {
  std::vector<std::pair<std::string, std::string>> figures;
  const auto is_pass = [](const std::string& name) { return name.starts_with("eval/pass@"); };
  const auto ordered = in_order(values);
  for (size_t i = 0; i < ordered.size(); ++i) {
    const auto& [name, value] = ordered[i];
    if (!name.starts_with("eval/") || (is_pass(name) && i + 1 < ordered.size() && is_pass(ordered[i + 1].first)))
      continue;
    char text[32];
    std::snprintf(text, sizeof(text), "%.4g", value);
    figures.emplace_back(name.substr(5), text);
  }
  return figures;
}

bool is_header(std::string_view line) { return line.starts_with("{\"run\": "); }

void LineDigest::add(std::string_view line) {
  if (is_header(line)) return;
  std::string told(line);
  for (const std::string time : {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu", "sigma/time_share",
                                 "representation/time_share", "ranks/bytes"}) {
    const size_t begin = told.find("\"" + time + "\": ");
    if (begin != std::string::npos) told.erase(begin, told.find_first_of(",}", begin) - begin);
  }
  hash_.add(told);
}

LineDigest keep_metrics_until(const std::string& file, const std::vector<std::string>& ended, const std::string& phase,
                              int64_t step, bool evaluated, std::optional<int64_t> wanted) {
  LineDigest digest;
  if (!std::filesystem::exists(file)) return digest;
  const std::string text = read_whole(file);
  std::string kept, headers;  // headers: since the last line that was kept
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    ++number;
    if (end == std::string::npos) break;  // torn: the process was killed while it wrote
    const auto line = nlohmann::json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                            text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (const std::string_view whole = std::string_view(text).substr(begin, end - begin);
        is_header(whole) && line.is_object()) {
      headers.append(whole).append("\n");
      begin = end + 1;
      continue;
    }
    if (!line.is_object() || !line.contains("phase") || !line["phase"].is_string() || !line.contains("step") ||
        !line["step"].is_number_integer())
      throw std::runtime_error(file + ":" + std::to_string(number) +
                               ": not a line of metrics; mend the line or move the file away");
    const auto name = line["phase"].get<std::string>();
    const int64_t at = line["step"].get<int64_t>();
    const bool to_come = at > step || (at == step && !evaluated && line.contains("eval/split"));
    if (std::find(ended.begin(), ended.end(), name) != ended.end() || (name == phase && !to_come)) {
      kept.append(std::exchange(headers, "")).append(text, begin, end - begin + 1);
      digest.add(std::string_view(text).substr(begin, end - begin));
    }
    begin = end + 1;
  }
  if (wanted && *wanted != digest.value())
    throw std::runtime_error(
        file +
        ": its lines are not those that the run had written before its checkpoint: some were changed or "
        "are missing. Put the file back, or move it away to go on without what it holds");
  if (kept.size() != text.size()) write_durably(file, kept);
  return digest;
}

// ---- Metrics ------------------------------------------------------------------------------------------------------

Metrics::Metrics(const std::string& file, LineDigest digest) : file_(file), digest_(digest) {
  fd_ = open_file(file, O_WRONLY | O_CREAT | O_APPEND);
  if (fd_ < 0) throw std::runtime_error(file + ": cannot be opened: " + std::strerror(errno));
}

Metrics::~Metrics() { ::close(fd_); }

void Metrics::require_name() const {
  struct stat open {
  }, named{};
  if (::fstat(fd_, &open) != 0 || ::stat(file_.c_str(), &named) != 0 || open.st_ino != named.st_ino ||
      open.st_dev != named.st_dev)
    throw std::runtime_error(file_ +
                             ": was removed or renamed while the run goes on, and what is written now would be lost; "
                             "put it back and add --resume, or begin a new run");
}

void Metrics::make_room(int64_t bytes) {
  require_name();
  const int64_t wanted = bytes + 1 + (headed_ ? 0 : static_cast<int64_t>(header_.size()) + 1);
  const off_t end = ::lseek(fd_, 0, SEEK_END);
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      static_cast<rlim_t>(end + wanted) > limit.rlim_cur) {
    errno = EFBIG;
    throw std::runtime_error(write_problem(file_, "cannot be written", wanted));
  }
  while (::fallocate(fd_, FALLOC_FL_KEEP_SIZE, end, wanted) != 0)
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)
      throw std::runtime_error(write_problem(file_, "cannot be written", wanted));
    else if (errno != EINTR)
      return;  // a file system that keeps no room
}

void Metrics::write(const std::string& line) {
  require_name();
  if (!headed_) append(header_);
  headed_ = true;
  append(line);
}

void Metrics::append(const std::string& line) {
  const std::string whole = line + "\n";
  const off_t end = ::lseek(fd_, 0, SEEK_END);
  if (write_whole(fd_, whole.data(), static_cast<int64_t>(whole.size()))) {
    digest_.add(line);
    return;
  }
  const std::string problem = write_problem(file_, "cannot be written", static_cast<int64_t>(whole.size()));
  if (end >= 0) (void)!::ftruncate(fd_, end);  // who goes on after making room must find no half line
  throw std::runtime_error(problem);
}

Metrics::Place Metrics::place() const { return {::lseek(fd_, 0, SEEK_END), digest_, headed_}; }

void Metrics::back_to(const Place& place) noexcept {
  if (place.bytes >= 0) (void)!::ftruncate(fd_, place.bytes);
  digest_ = place.digest;
  headed_ = place.headed;
}

}  // namespace isentrope::train
