#include "csrc/train/console.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace isentrope::train {
namespace {

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

}  // namespace

Console::Console(Screen& screen, bool quiet, double interval)
    : screen_(screen), quiet_(quiet), terminal_(screen.terminal()), interval_(interval) {}

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
        warn(record.phase + ", step " + std::to_string(record.step) + ": attention: " + alarm +
             (alarms_.empty() ? "; a lower lr, model.sigma_reparam.layers or objective.attention_entropy helps "
                                "(docs/stability.md)"
                              : ""));
    alarms_ = record.attention->alarms;
  }
  for (const auto* list : {&record.warnings, &record.of_times})
    for (const std::string& warning : *list)
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
  if (!lost_) lost_ = screen_.write(text);
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
  screen_.warn(text);
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
  const auto columns = static_cast<size_t>(screen_.columns());
  constexpr size_t kBarCells = 25;  // the bar's cells are one column and three bytes each
  // A line wider than the window would wrap and could not be cleared: leave the bar out, then cut.
  std::string text = line(true);
  if (columns > 0 && text.size() - 2 * (kBarCells - 1) >= columns) {
    text = line(false);
    if (text.size() >= columns) text.resize(columns - 1);
  }
  put("\r\033[2K" + text);
  drawn_ = true;
}

}  // namespace isentrope::train
