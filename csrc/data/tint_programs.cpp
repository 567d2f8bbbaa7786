// TInt's programs and the machine that runs them. Digits count from the low end: a[0] is the last digit of a.
//
//   add        1 s=a[i]+b[i]+c      sub        1 s=10+a[i]-b[i]-c      mul   1 p=a*b[i]
//              2 d=s%10                        2 d=s%10                      2 r=r+p*10^i
//              3 c=s/10                        3 c=s<10
//
//   selection  1 m=i                insertion  1 t=x[j]<x[j-1]         median  5 r=x[k], or r=(x[k]+x[k+1])/2
//              2 t=x[j]<x[m]                   2 x[j],x[j-1]=x[j-1],x[j]
//              3 m=j
//              4 x[i],x[m]=x[m],x[i]
//
// add, sub:  i over the digits of the longer number; the answer is the digits d, before them add's last c.
// selection: i over all places but the last, j over those after i; line 3 if t is 1, line 4 if m is not i.
// insertion: i from 1, j from i down to 1 while t is 1, line 2 if t is 1.
#include <algorithm>
#include <limits>

#include "csrc/data/tint_trace.h"

namespace isentrope::data {
namespace {

// Errors stay small enough that no later result leaves 64 bits: mul has numbers below 10^8, so that p · 10^i
// stays below 10^17 and a sum of eight of them below 10^18, of which an error makes less than 10^18 again.
constexpr int64_t kLimit = 999'999'999'999'999'999;

std::vector<const char*> source(const TintConfig& config) {
  if (config.task == "add") return {"s=a[i]+b[i]+c", "d=s%10", "c=s/10"};
  if (config.task == "sub") return {"s=10+a[i]-b[i]-c", "d=s%10", "c=s<10"};
  if (config.task == "mul") return {"p=a*b[i]", "r=r+p*10^i"};
  std::vector<const char*> lines = {"t=x[j]<x[j-1]", "x[j],x[j-1]=x[j-1],x[j]", "", ""};
  if (config.algorithm == "selection") lines = {"m=i", "t=x[j]<x[m]", "m=j", "x[i],x[m]=x[m],x[i]"};
  if (config.task == "median") lines.insert(lines.end(), {"r=x[k]", "r=(x[k]+x[k+1])/2"});
  return lines;
}

int64_t digit_count(int64_t value) { return static_cast<int64_t>(std::to_string(value).size()); }

// A number from its digits, the low one first; an element may be a wrong digit of more than one place.
int64_t number(const std::vector<int64_t>& digits) {
  int64_t value = 0;
  for (auto digit = digits.rbegin(); digit != digits.rend(); ++digit) value = 10 * value + *digit;
  return value;
}

int64_t run_add(Machine& machine, int64_t a, int64_t b) {
  std::vector<int64_t> digits;
  int64_t c = 0;
  const int64_t places = digit_count(std::max(a, b));
  for (int64_t i = 0; i < places; ++i, a /= 10, b /= 10) {
    machine.let('i', std::to_string(i));
    const int64_t s = machine.compute(1, 's', a % 10 + b % 10 + c);
    digits.push_back(machine.compute(2, 'd', s % 10));
    c = machine.compute(3, 'c', s / 10);
  }
  digits.push_back(c);
  return number(digits);
}

int64_t run_sub(Machine& machine, int64_t a, int64_t b) {
  std::vector<int64_t> digits;
  int64_t c = 0;
  const int64_t places = digit_count(std::max(a, b));
  for (int64_t i = 0; i < places; ++i, a /= 10, b /= 10) {
    machine.let('i', std::to_string(i));
    const int64_t s = machine.compute(1, 's', 10 + a % 10 - b % 10 - c);
    digits.push_back(machine.compute(2, 'd', s % 10));
    c = machine.compare(3, 'c', s < 10);
  }
  return number(digits);
}

int64_t run_mul(Machine& machine, int64_t a, int64_t b) {
  int64_t r = 0, place = 1;
  const int64_t places = digit_count(b);
  for (int64_t i = 0; i < places; ++i, b /= 10, place *= 10) {
    machine.let('i', std::to_string(i));
    const int64_t p = machine.compute(1, 'p', a * (b % 10));
    r = machine.compute(2, 'r', r + p * place);
  }
  return r;
}

void selection_sort(Machine& machine, std::vector<int64_t>& x) {
  for (size_t i = 0; i + 1 < x.size() && !machine.full(); ++i) {
    machine.let('i', std::to_string(i));
    size_t m = i;
    machine.assign(1, 'm', std::to_string(m));
    for (size_t j = i + 1; j < x.size() && !machine.full(); ++j) {
      machine.let('j', std::to_string(j));
      if (!machine.compare(2, 't', x[j] < x[m])) continue;
      m = j;
      machine.assign(3, 'm', std::to_string(m));
    }
    if (m == i) continue;
    std::swap(x[i], x[m]);
    machine.assign(4, 'x', join(x));
  }
}

void insertion_sort(Machine& machine, std::vector<int64_t>& x) {
  for (size_t i = 1; i < x.size(); ++i) {
    for (size_t j = i; j > 0 && !machine.full(); --j) {
      machine.let('j', std::to_string(j));
      if (!machine.compare(1, 't', x[j] < x[j - 1])) break;
      std::swap(x[j], x[j - 1]);
      machine.assign(2, 'x', join(x));
    }
  }
}

int64_t run_median(const TintConfig& config, Machine& machine, const std::vector<int64_t>& x) {
  const size_t k = (x.size() - 1) / 2;
  machine.let('k', std::to_string(k));
  if (config.even == "mean" && x.size() % 2 == 0 && (x[k] + x[k + 1]) % 2 == 0)
    return machine.compute(6, 'r', (x[k] + x[k + 1]) / 2);
  machine.assign(5, 'r', std::to_string(x[k]));
  return x[k];
}

Trace run_within(const TintConfig& config, std::vector<int64_t> values, Faults& faults, size_t max_lines) {
  Machine machine(config.show, source(config), &faults, max_lines);
  if (config.task == "sort" || config.task == "median") {
    machine.let('x', join(values));
    config.algorithm == "selection" ? selection_sort(machine, values) : insertion_sort(machine, values);
    return machine.finish(config.task == "sort" ? join(values) : std::to_string(run_median(config, machine, values)));
  }
  const int64_t a = values[0], b = values[1];
  machine.let('a', std::to_string(a));
  machine.let('b', std::to_string(b));
  machine.let(config.task == "mul" ? 'r' : 'c', "0");
  return machine.finish(std::to_string(config.task == "add"   ? run_add(machine, a, b)
                                       : config.task == "sub" ? run_sub(machine, a, b)
                                                              : run_mul(machine, a, b)));
}

}  // namespace

std::string join(const std::vector<int64_t>& values) {
  std::string text;
  for (const int64_t value : values) {
    if (!text.empty()) text += ',';
    text += std::to_string(value);
  }
  return text;
}

std::string program_text(const TintConfig& config) {
  std::string text;
  for (const char* line : source(config)) text += line;
  return text;
}

std::string Trace::text() const {
  std::string text;
  for (const auto& line : lines) text += line.form + line.content + line_end;
  return text;
}

int64_t Machine::compute(int line, char variable, int64_t right) {
  const int64_t value = faults_->result(right, kLimit);
  record(line, variable, std::to_string(value), faults_->happened_last());
  return value;
}

bool Machine::compare(int line, char variable, bool right) {
  const bool value = faults_->comparison(right);
  record(line, variable, value ? "1" : "0", faults_->happened_last());
  return value;
}

void Machine::assign(int line, char variable, const std::string& value) { record(line, variable, value, false); }

void Machine::let(char variable, const std::string& value) {
  const auto place =
      std::find_if(variables_.begin(), variables_.end(), [&](const auto& v) { return v.first == variable; });
  if (place == variables_.end()) {
    variables_.emplace_back(variable, value);
  } else {
    place->second = value;
  }
}

void Machine::record(int line, char variable, const std::string& value, bool wrong) {
  let(variable, value);
  TraceLine entry;
  const auto field = [](std::string& text, char separator) -> std::string& {
    if (!text.empty()) text += separator;
    return text;
  };
  if (show_.line_no) entry.form.append("L").append(std::to_string(line));
  if (show_.code) field(entry.form, ' ') += source_[static_cast<size_t>(line) - 1];
  if (show_.vars) {
    for (const auto& [name, content] : variables_) (field(entry.content, ';') += name).append("=").append(content);
  }
  if (show_.delta) (field(entry.content, ' ') += variable).append("=").append(value);
  if (!entry.content.empty()) field(entry.form, ' ');
  trace_.lines.push_back(std::move(entry));
  if (wrong) trace_.count_error(static_cast<int64_t>(trace_.lines.size()));
}

Trace Machine::finish(const std::string& answer) {
  trace_.answer = answer;
  return std::move(trace_);
}

Trace run_program(const TintConfig& config, const std::vector<int64_t>& values, Faults& faults) {
  Faults none(nullptr, 0);
  const size_t clean = run_within(config, values, none, std::numeric_limits<size_t>::max()).lines.size();
  return run_within(config, values, faults, 10 * std::max<size_t>(clean, 1));
}

}  // namespace isentrope::data
