#include "csrc/train/metrics.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "csrc/durable_file.h"

namespace isentrope::train {
namespace {

constexpr std::array<std::string_view, 33> kOrder{"loss",
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
                                                  "eval/loss",
                                                  "eval/bits_per_byte",
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

double value_of(const Record& record, const char* key) {
  const auto found = record.values.find(key);
  return found == record.values.end() ? std::nan("") : found->second;
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  char text[48];
  if (s >= 3600)
    std::snprintf(text, sizeof(text), "%ldh %02ldm", static_cast<long>(s / 3600), static_cast<long>(s / 60 % 60));
  else if (s >= 60)
    std::snprintf(text, sizeof(text), "%ldm %02lds", static_cast<long>(s / 60), static_cast<long>(s % 60));
  else
    std::snprintf(text, sizeof(text), "%lds", static_cast<long>(s));
  return text;
}

std::string to_json(const HeadTable& table) {
  std::string text;
  for (const auto& layer : table) {
    std::string heads;
    for (const double value : layer) heads += (heads.empty() ? "" : ", ") + number(value);
    text += (text.empty() ? "[" : ", [") + heads + "]";
  }
  return "[" + text + "]";
}

std::string to_json(const AttentionStatistics& a) {
  return "{\"entropy\": " + to_json(a.entropy) + ", \"normalized\": " + to_json(a.normalized) +
         ", \"max_logit\": " + to_json(a.max_logit) +
         (a.bound.empty() ? "" : ", \"bound\": " + to_json(a.bound) + ", \"certified\": " + to_json(a.certified)) +
         ", \"collapsed\": " + number(a.collapsed) + ", \"overloaded\": " + number(a.overloaded) +
         ", \"alarms\": " + nlohmann::json(a.alarms).dump() + "}";
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
  if (!record.split.empty()) line += ", \"eval/split\": " + quoted(record.split);
  for (const auto& [key, value] : in_order(record.values)) line += ", " + quoted(key) + ": " + number(value);
  if (record.attention) line += ", \"attention_entropy\": " + to_json(*record.attention);
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
  for (const std::string time : {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu", "sigma/time_share"}) {
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

void Metrics::write(const std::string& line) {
  struct stat open {
  }, named{};
  if (::fstat(fd_, &open) != 0 || ::stat(file_.c_str(), &named) != 0 || open.st_ino != named.st_ino ||
      open.st_dev != named.st_dev)
    throw std::runtime_error(file_ +
                             ": was removed or renamed while the run goes on, and what is written now would be lost; "
                             "put it back and add --resume, or begin a new run");
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

// ---- Console ------------------------------------------------------------------------------------------------------

Console::Console(bool quiet, std::FILE* out, double interval)
    : quiet_(quiet), terminal_(::isatty(::fileno(out))), out_(out), interval_(interval) {
  // A terminal that cannot move its cursor gets lines.
  const char* term = std::getenv("TERM");
  if (!term || std::string_view(term) == "dumb") terminal_ = false;
}

Console::~Console() { clear(); }

void Console::begin_phase(const std::string& name, int64_t steps, int64_t done) {
  name_ = name;
  steps_ = steps;
  first_ = done;
  last_ = {name, done, {}, ""};
  begun_ = shown_ = Clock::now();
  in_phase_ = true;
  if (terminal_) draw();
}

void Console::step(const Record& record) {
  if (record.attention) {
    for (const std::string& alarm : record.attention->alarms)
      if (std::find(alarms_.begin(), alarms_.end(), alarm) == alarms_.end())
        warn(record.phase + ", step " + std::to_string(record.step) + ": attention: " + alarm);
    alarms_ = record.attention->alarms;
  }
  for (const std::string& warning : record.warnings)
    warn(record.phase + ", step " + std::to_string(record.step) + ": " + warning);
  if (!record.split.empty()) {
    print(evaluation_line(record));
    return;
  }
  last_ = record;
  const double wait = terminal_ ? 0.1 : interval_;
  if (std::chrono::duration<double>(Clock::now() - shown_).count() < wait) return;
  shown_ = Clock::now();
  if (terminal_)
    draw();
  else if (!quiet_)
    put(line(false) + "\n");
}

void Console::put(const std::string& text) {
  if (lost_) return;
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), out_) != text.size() || std::fflush(out_) != 0)
    lost_ = errno ? errno : EIO;
}

void Console::end_phase() {
  if (!in_phase_) return;
  clear();
  in_phase_ = false;
  if (!quiet_) put(line(false) + "\n");
}

void Console::print(const std::string& text) {
  if (quiet_) return;
  clear();
  put(text + "\n");
  if (terminal_ && in_phase_) draw();
}

void Console::warn(const std::string& text) {
  clear();
  std::fprintf(stderr, "warning: %s\n", text.c_str());
  if (terminal_ && in_phase_) draw();
}

// "grpo   12/100  reward 0.412  entropy 0.731  21.4k tokens/s  1m 20s left", with a bar before the figures on
// a terminal.
std::string Console::line(bool bar) const {
  char text[96];
  const int digits = static_cast<int>(std::to_string(steps_).size());
  std::snprintf(text, sizeof(text), " %*lld/%lld", digits, static_cast<long long>(last_.step),
                static_cast<long long>(steps_));
  std::string line = name_ + text;
  if (bar) {
    constexpr int kCells = 24;
    const int full = steps_ > 0 ? static_cast<int>(kCells * std::min(last_.step, steps_) / steps_) : 0;
    line += " ";
    for (int i = 0; i < kCells; ++i) line += i < full ? "━" : "─";
  }
  auto add = [&](const char* format, double value) {
    if (std::isnan(value)) return;
    std::snprintf(text, sizeof(text), format, value);
    line += text;
  };
  const double reward = value_of(last_, "reward/mean"), speed = value_of(last_, "tokens_per_s");
  add("  reward %.3f", reward);
  if (std::isnan(reward)) add("  loss %.4f", value_of(last_, "loss"));
  add("  entropy %.3f", value_of(last_, "entropy/mean"));
  if (speed >= 1e6)
    add("  %.1fM tokens/s", speed / 1e6);
  else if (speed >= 1e3)
    add("  %.1fk tokens/s", speed / 1e3);
  else
    add("  %.0f tokens/s", speed);

  const int64_t done = last_.step - first_;
  const double elapsed = std::chrono::duration<double>(Clock::now() - begun_).count();
  if (!in_phase_)
    line += "  in " + duration(elapsed);
  else if (done > 0)
    line +=
        "  " +
        duration(elapsed / static_cast<double>(done) * static_cast<double>(std::max<int64_t>(steps_ - last_.step, 0))) +
        " left";
  return line;
}

// "grpo   20/120  validation  greedy 0.86  sampled 0.31  pass@8 0.81  entropy 0.44  length 21.3"
std::string Console::evaluation_line(const Record& record) const {
  char place[64];
  const int digits = static_cast<int>(std::to_string(steps_).size());
  std::snprintf(place, sizeof(place), " %*lld/%lld  ", digits, static_cast<long long>(record.step),
                static_cast<long long>(steps_));
  std::string line = record.phase + place + record.split;
  for (const auto& [name, value] : evaluation_figures(record.values))
    line.append("  ").append(name).append(" ").append(value);
  return line;
}

void Console::clear() {
  if (!drawn_) return;
  put("\r\033[2K");
  drawn_ = false;
}

void Console::draw() {
  if (quiet_) return;
  struct winsize window {};
  const bool known = ::ioctl(::fileno(out_), TIOCGWINSZ, &window) == 0 && window.ws_col > 0;
  constexpr size_t kBarCells = 25;  // the bar's cells are one column and three bytes each
  // A line wider than the window would wrap and could not be cleared: leave the bar out, then cut.
  std::string text = line(true);
  if (known && text.size() - 2 * (kBarCells - 1) >= window.ws_col) {
    text = line(false);
    if (text.size() >= window.ws_col) text.resize(window.ws_col - 1);
  }
  put("\r\033[2K" + text);
  drawn_ = true;
}

}  // namespace isentrope::train
