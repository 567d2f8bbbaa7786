#include "csrc/train/pairs_file.h"

#include <filesystem>
#include <sstream>
#include <stdexcept>

#include "csrc/data/token_shard.h"
#include "csrc/durable_file.h"
#include "csrc/message.h"
#include "csrc/train/json_file.h"

namespace isentrope::train {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::string note_beside(const std::string& file) { return file.substr(0, file.rfind(".jsonl")) + ".json"; }

int64_t digest_of_text(const std::string& text) {
  data::Hash hash;
  hash.add(text);
  return static_cast<int64_t>(hash.value);
}

void put_side(OrderedJson& line, const std::string& side, const data::Example& example) {
  const data::Sequence& drawn = *example.drawn;
  const auto begin = static_cast<size_t>(drawn.prompt);
  OrderedJson ids = OrderedJson::array(), given = OrderedJson::array();
  for (size_t i = begin; i < drawn.ids.size(); ++i) {
    ids.push_back(drawn.ids[i]);
    if (drawn.learnt[i]) continue;
    const size_t first = i - begin;
    if (given.empty() || given.back()[1] != first)
      given.push_back({first, first + 1});
    else
      given.back()[1] = first + 1;
  }
  line[side + "_ids"] = ids;
  line[side + "_given"] = given;
}

data::Example side_of(const nlohmann::json& line, const std::string& side, int64_t vocabulary) {
  data::Sequence drawn{.ids = line.at("prompt_ids").get<std::vector<int64_t>>(), .learnt = {}};
  drawn.prompt = std::ssize(drawn.ids);
  const auto said = line.at(side + "_ids").get<std::vector<int64_t>>();
  drawn.learnt.resize(drawn.ids.size(), false);
  drawn.ids.insert(drawn.ids.end(), said.begin(), said.end());
  drawn.learnt.resize(drawn.ids.size(), true);
  for (const auto& range : line.at(side + "_given"))
    for (size_t i = range.at(0).get<size_t>(); i < range.at(1).get<size_t>(); ++i)
      drawn.learnt.at(drawn.prompt + i) = false;
  for (const int64_t id : drawn.ids)
    if (id < 0 || id >= vocabulary)
      throw std::runtime_error("token " + std::to_string(id) + ", outside the vocabulary 0 … " +
                               std::to_string(vocabulary - 1));
  if (drawn.prompt == 0 || said.empty()) throw std::runtime_error("a prompt or a completion has no tokens");
  data::Example example{
      .prompt = line.at("prompt").get<std::string>(), .completion = line.at(side).get<std::string>(), .answer = ""};
  example.drawn = std::make_shared<const data::Sequence>(std::move(drawn));
  return example;
}

}  // namespace

std::string pairs_text(const rl::MinedPairs& mined, const std::vector<data::Example>& examples,
                       const data::Tokenizer& tokenizer) {
  std::string text;
  for (const rl::MinedPair& pair : mined.pairs) {
    const std::vector<int64_t>& prompt = mined.prompts[pair.prompt];
    const std::string& said = examples[pair.prompt].prompt;
    const data::Example better = rl::drawn_example(said, prompt, pair.better, tokenizer),
                        worse = rl::drawn_example(said, prompt, pair.worse, tokenizer);
    OrderedJson line{{"prompt", valid_utf8(said)},
                     {"chosen", valid_utf8(better.completion)},
                     {"rejected", valid_utf8(worse.completion)},
                     {"hard", pair.hard},
                     {"prompt_ids", prompt}};
    put_side(line, "chosen", better);
    put_side(line, "rejected", worse);
    text += line.dump() + "\n";
  }
  return text;
}

std::vector<data::Example> pairs_of_text(const std::string& text, const std::string& file, int64_t vocabulary) {
  std::vector<data::Example> pairs;
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) try {
      ++number;
      const nlohmann::json object = data::parse_json_object(line);
      data::Example pair = side_of(object, "chosen", vocabulary);
      pair.rejected = std::make_shared<data::Example>(side_of(object, "rejected", vocabulary));
      pairs.push_back(std::move(pair));
    } catch (const std::exception& error) {
      throw std::runtime_error(file + ":" + std::to_string(number) +
                               ": this is no pair that a phase drew: " + error.what());
    }
  return pairs;
}

void write_pairs(const std::string& file, const PairsFile& pairs, int64_t made_of) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(file).parent_path();
  std::filesystem::create_directories(folder, error);
  if (error) throw std::runtime_error(folder.string() + ": the folder cannot be made: " + error.message());
  std::filesystem::remove(note_beside(file), error);  // no longer that of what stands there
  write_durably(file, pairs.text);
  const OrderedJson note{{"made_of", std::to_string(made_of)},
                         {"digest", std::to_string(digest_of_text(pairs.text))},
                         {"stats", pairs.stats}};
  write_durably(note_beside(file), note.dump(1) + "\n");
}

std::optional<PairsFile> read_pairs(const std::string& file, int64_t made_of) {
  if (!exists(file) || !exists(note_beside(file))) return std::nullopt;
  PairsFile found{.text = read_whole(file), .stats = {}};
  try {
    const nlohmann::json note = read_json(note_beside(file));
    if (note.at("made_of") != std::to_string(made_of) ||
        note.at("digest") != std::to_string(digest_of_text(found.text)))
      return std::nullopt;
    found.stats = note.at("stats").get<std::map<std::string, double>>();
  } catch (const std::exception&) {  // a file that was torn or changed: they are drawn anew
    return std::nullopt;
  }
  return found;
}

PairsFile pairs_of_phase(const std::string& file) {
  if (!exists(file))
    throw std::runtime_error(file +
                             ": is not there, and the phase goes on with the pairs that it held; put the file back, or "
                             "begin a new run from the checkpoint: run.start");
  return {.text = read_whole(file), .stats = {}};
}

}  // namespace isentrope::train
