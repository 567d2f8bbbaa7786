#include "csrc/data/episodes.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "csrc/data/expression.h"
#include "csrc/data/facts.h"
#include "csrc/data/split.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kShareHeldOut = 1.0 / 16;
constexpr int64_t kLookedAt = 64;
constexpr int64_t kMostFailures =
    2;  // queries for a fact that lack a word: no conversation is longer than all others by chance
constexpr int kMostDraws = 2000;

uint32_t below(Stream& stream, int64_t n) { return stream.below(static_cast<uint32_t>(n)); }
bool happens(Stream& stream, double probability) { return probability > 0 && stream.uniform() < probability; }

// Rows of a table, no two alike.
std::vector<std::string> draw_table(int64_t objects, int64_t attributes, Stream& stream) {
  std::vector<std::string> rows;
  while (std::ssize(rows) < objects) {
    std::string row;
    for (int64_t a = 0; a < attributes; ++a) row += stream.bits() & 1 ? '1' : '0';
    if (std::find(rows.begin(), rows.end(), row) == rows.end()) rows.push_back(row);
  }
  return rows;
}

// The conversation so far, and what goes on.
struct Told {
  std::vector<Turn> turns;
  void say(const std::string& text) { turns.push_back({text, true}); }
  void hear(const std::string& text) { turns.push_back({text, false}); }
};

// Words of a consonant and a vowel, each drawn once.
class Words {
 public:
  explicit Words(Stream& stream) : stream_(stream) {
    for (const char a : std::string("bdfghjklmnprstvwz"))
      for (const char b : std::string("aeiou")) left_.push_back({a, b});
  }
  std::string draw() {
    const auto at = left_.begin() + below(stream_, std::ssize(left_));
    const std::string word = *at;
    left_.erase(at);
    return word;
  }

 private:
  Stream& stream_;
  std::vector<std::string> left_;
};

}  // namespace

std::vector<std::string> fixed_table(const TwentyQuestionsTask& task) {
  Stream stream(/*seed=*/0, Purpose::example, /*a=*/20);
  return draw_table(task.objects, task.attributes, stream);
}

std::string TwentyQuestionsTask::problem() const {
  if ((int64_t{1} << attributes) < objects)
    return "attributes: " + std::to_string(attributes) + " tell at most " + std::to_string(int64_t{1} << attributes) +
           " objects apart, and objects is " + std::to_string(objects);
  return "";
}

Example TwentyQuestionsTask::draw(Stream& stream, Stream* teacher) const {
  const std::vector<std::string> rows = few() ? fixed_table(*this) : draw_table(objects, attributes, stream);
  const int64_t hidden = below(stream, objects);
  Example example{.prompt = "", .completion = "", .answer = {static_cast<char>('a' + hidden)}};
  Json table;
  for (int64_t i = 0; i < objects; ++i) {
    const std::string name(1, static_cast<char>('a' + i));
    table[name] = rows[i];
    if (!few()) example.prompt += (i > 0 ? ";" : "") + name + rows[i];
  }
  example.prompt += ":";
  example.columns = Json{{"table", table}}.dump();
  if (teacher == nullptr) return example;
  Told told;
  std::vector<int64_t> open(attributes), left(objects);
  for (int64_t a = 0; a < attributes; ++a) open[a] = a;
  for (int64_t i = 0; i < objects; ++i) left[i] = i;
  while (left.size() > 1) {
    const auto at = open.begin() + below(*teacher, std::ssize(open));
    const int64_t asked = *at;
    open.erase(at);
    told.say(std::string("?") + static_cast<char>('0' + asked) + "\n");
    told.hear(rows[hidden][asked] == '1' ? "y\n" : "n\n");
    std::erase_if(left, [&](int64_t i) { return rows[i][asked] != rows[hidden][asked]; });
  }
  example.completion = "!" + example.answer;
  example.turns = std::move(told.turns);
  return example;
}

std::string CalculatorTask::problem() const {
  if (operations.empty() || operations.find_first_not_of("+-*") != std::string::npos)
    return "operations is " + isentrope::quoted(operations) + "; it has some of + - *";
  return "";
}

Example CalculatorTask::draw(Stream& stream, Stream* teacher) const {
  std::string text;
  for (int64_t i = 0; i < numbers; ++i) {
    if (i > 0) text += operations[below(stream, std::ssize(operations))];
    int64_t number = 1 + below(stream, 9);
    for (int64_t more = below(stream, digits); more > 0; --more) number = 10 * number + below(stream, 10);
    text += std::to_string(number);
  }
  const std::string value = std::to_string(Expression::read(text)->numerator);
  Example example{.prompt = text + "=", .completion = "A" + value, .answer = value, .columns = "{}"};
  if (teacher == nullptr) return example;
  Told told;
  if (happens(*teacher, direct)) {
    char& last = example.completion.back();
    if (teacher->bits() & 1) last = static_cast<char>('0' + (last - '0' + 1 + below(*teacher, 9)) % 10);
    return example;
  }
  if (happens(*teacher, malformed)) {
    told.say("[" + text + operations[below(*teacher, std::ssize(operations))] + "]");
    told.hear("?;");
  }
  told.say("[" + text + "]");
  told.hear(value + ";");
  example.turns = std::move(told.turns);
  return example;
}

std::string SearchTask::problem() const {
  return people + places + places > 80 ? "people and places need more names than there are; give it fewer" : "";
}

Example SearchTask::draw(Stream& stream, Stream* teacher) const {
  Words words(stream);
  std::vector<std::string> who, where, colour, facts;
  for (int64_t i = 0; i < people; ++i) who.push_back(words.draw());
  for (int64_t i = 0; i < places; ++i) where.push_back(words.draw()), colour.push_back(words.draw());
  std::vector<int64_t> home;
  for (const std::string& one : who) {
    home.push_back(below(stream, places));
    facts.push_back(one + " c " + where[home.back()]);
  }
  for (int64_t i = 0; i < places; ++i) facts.push_back(where[i] + " k " + colour[i]);
  for (int64_t i = 0; i < distractors; ++i) {
    const std::string& one = i % 2 == 0 ? who[below(stream, people)] : where[below(stream, places)];
    facts.push_back(one + " f " + who[below(stream, people)]);
  }
  for (int64_t i = std::ssize(facts) - 1; i > 0; --i) std::swap(facts[i], facts[below(stream, i + 1)]);
  const int64_t asked = below(stream, people), place = home[asked];
  Example example{.prompt = who[asked] + ".c.k?",
                  .completion = "",
                  .answer = colour[place],
                  .columns = Json{{"facts", facts}}.dump()};
  if (teacher == nullptr) return example;
  const Retriever library(facts);
  Told told;
  std::string judged;
  const auto look = [&](const std::string& entity, const std::string& relation) {
    int64_t failures = 0;
    for (bool met = false; !met;) {
      const bool fails = happens(*teacher, failed) && failures++ < kMostFailures;
      const std::string query = fails ? (teacher->bits() & 1 ? entity : relation) : entity + " " + relation;
      told.say(judged + "g" + entity + "." + relation + ";q" + query + "\n");
      const std::string& found = facts[library.best(query)];
      told.hear(found + "\n");
      met = found.starts_with(entity + " " + relation + " ");
      judged = met ? "r1" : "r0";
    }
  };
  look(who[asked], "c");
  look(where[place], "k");
  example.completion = judged + "A" + example.answer;
  example.turns = std::move(told.turns);
  return example;
}

Example InterpreterTask::draw(Stream& stream, Stream* teacher) const {
  const auto number = [&] {
    int64_t n = 1 + below(stream, 9);
    for (int64_t more = below(stream, digits); more > 0; --more) n = 10 * n + below(stream, 10);
    return n;
  };
  std::string text;
  int64_t sum = 0, product = 1, sign = 1;  // what stands before the last + or -, and what is multiplied behind it
  for (int64_t i = 0; i < terms; ++i) {
    if (i > 0) {
      const char operation = "+-*"[below(stream, 3)];
      text += operation;
      if (operation != '*') {
        sum += sign * product;
        product = 1;
        sign = operation == '+' ? 1 : -1;
      }
    }
    const int64_t a = number(), b = number(), c = number();
    const std::string x = std::to_string(a), y = std::to_string(b), z = std::to_string(c);
    switch (below(stream, 5)) {
      case 0:
        text += x, product *= a;
        break;
      case 1:
        text += "max(" + x + "," + y + ")", product *= std::max(a, b);
        break;
      case 2:
        text += "min(" + x + "," + y + ")", product *= std::min(a, b);
        break;
      case 3:
        text += "sum((" + x + "," + y + "," + z + "))", product *= a + b + c;
        break;
      default: {
        int64_t power = 1 % c;
        for (int64_t k = 0; k < b; ++k) power = power * a % c;
        text += "pow(" + x + "," + y + "," + z + ")", product *= power;
      }
    }
  }
  const std::string value = std::to_string(sum + sign * product);
  Example example{.prompt = text + "=", .completion = "A" + value, .answer = value, .columns = "{}"};
  if (teacher == nullptr) return example;
  if (happens(*teacher, direct)) {
    char& last = example.completion.back();
    if (teacher->bits() & 1) last = static_cast<char>('0' + (last - '0' + 1 + below(*teacher, 9)) % 10);
    return example;
  }
  Told told;
  if (happens(*teacher, malformed)) {
    told.say(">" + text + "+-*"[below(*teacher, 3)] + "\n");
    told.hear("?\n");
  }
  told.say(">" + text + "\n");
  told.hear(value + "\n");
  example.turns = std::move(told.turns);
  return example;
}

Episodes::Episodes(const EpisodesConfig& config, uint64_t seed, Split split, const Use* use)
    : config_(config), seed_(seed), taught_(use && use->learnt) {
  const std::string kind = "episodes: " + config_.kind() + ": ";
  if (const std::string wrong = config_.problem(); !wrong.empty()) throw std::invalid_argument(kind + wrong);
  if (split != Split::train) {
    const int64_t count = std::visit([](const auto& task) { return task.held_out; }, config_.value);
    for (int64_t i = 0; i < count; ++i) held_out_.push_back(draw(i, split, /*seed=*/0));
  }
  if (!use) return;
  for (const Example& example : split == Split::train ? take(0, kLookedAt) : held_out_) try {
      if (!fits(example, *use)) throw std::invalid_argument("it is too long for the context");
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(kind + "the example " + excerpt(example.prompt) + ": " + error.what());
    }
}

Example Episodes::draw(int64_t index, Split split, uint64_t seed) const {
  Stream stream(seed, split == Split::train ? Purpose::example : Purpose::evaluation, static_cast<uint64_t>(split),
                static_cast<uint64_t>(index), /*c=*/21);
  Stream teacher(seed, Purpose::noise, static_cast<uint64_t>(split), static_cast<uint64_t>(index), /*c=*/21);
  return std::visit(
      [&](const auto& task) {
        for (int i = 0; i < kMostDraws; ++i) {
          Example example = task.draw(stream, taught_ ? &teacher : nullptr);
          example.split = split;
          if (!task.few() && split_of(example.prompt + example.columns, kShareHeldOut, kShareHeldOut) != split)
            continue;
          if (!taught_) {
            example.completion.clear();
            return example;
          }
          example.turns.insert(example.turns.begin(), {example.prompt, false});
          example.templated = true;  // a turn ends with what stands in it
          return example;
        }
        throw std::invalid_argument("episodes: " + config_.kind() +
                                    " has so few different tasks that none is left for " + name_of(split) +
                                    "; make them larger");
      },
      config_.value);
}

std::vector<Example> Episodes::take(int64_t first, int64_t count) const {
  std::vector<Example> examples;
  for (int64_t i = first; i < first + count; ++i)
    examples.push_back(held_out_.empty() ? draw(i, Split::train, seed_)
                                         : held_out_[static_cast<size_t>(i) % held_out_.size()]);
  return examples;
}

}  // namespace isentrope::data
