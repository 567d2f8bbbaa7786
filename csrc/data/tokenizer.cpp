#include "csrc/data/tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/data/json_object.h"
#include "csrc/data/pretrained.h"
#include "csrc/durable_file.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kPad = "<pad>";
constexpr const char* kEndOfText = "<|endoftext|>";  // of kind bytes
constexpr const char* kNoToken = "<unk>";            // no vocabulary has it

// "'x' (U+0078)"
std::string named(const std::string& character) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(character[i])); };
  uint32_t code = byte(0);
  if (character.size() > 1) code &= 0xFFu >> (character.size() + 1);
  for (size_t i = 1; i < character.size(); ++i) code = (code << 6) | (byte(i) & 0x3F);
  char number[16];
  std::snprintf(number, sizeof number, "U+%04X", code);
  return code < 0x20 || code == 0x7F ? std::string(number) : "'" + character + "' (" + number + ")";
}

// The code point as UTF-8; below U+0800, which is all that the names of bytes need.
std::string utf8(uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// The names that byte-level tokenizers give to the 256 bytes (GPT-2's bytes_to_unicode): the character itself
// where Latin-1 prints it, else the next code point from U+0100 on.
std::vector<std::string> byte_names() {
  std::vector<std::string> names;
  uint32_t next = 0x100;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printed = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    names.push_back(utf8(printed ? b : next++));
  }
  return names;
}

void write(const std::string& path, const Json& json) { write_durably(path, json.dump(2, ' ', false) + "\n"); }

using ReadJson = nlohmann::json;  // finds a key of many in less than all of them

ReadJson read(const std::string& path) {
  const std::string content = read_whole(path);
  try {
    return parse_json_object(content);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("tokenizer: " + path + ": " + error.what());
  }
}

// The type of its model; "" where it names none.
std::string type_of(const ReadJson& json) {
  const auto model = json.find("model");
  if (model == json.end() || !model->is_object()) return "";
  const auto type = model->find("type");
  return type == model->end() || !type->is_string() ? "" : type->get<std::string>();
}

// A byte-pair model that merges, which no tokenizer of kind characters or bytes does.
bool of_pairs(const ReadJson& json) {
  const auto model = json.find("model");
  if (model == json.end() || !model->is_object()) return false;
  const auto merges = model->find("merges");
  return merges != model->end() && merges->is_array() && !merges->empty();
}

}  // namespace

std::vector<std::string> code_points(std::string_view text) {
  std::vector<std::string> points;
  for (size_t i = 0; i < text.size(); i += points.back().size()) {
    const size_t size = utf8_size(text, i);
    if (size == 0) throw std::invalid_argument("text is not UTF-8 at byte " + std::to_string(i));
    points.emplace_back(text.substr(i, size));
  }
  return points;
}

std::string TokenizerConfig::problem() const {
  const std::string kind = kind_of();
  if (kind != "characters" && kind != "bytes" && kind != "pretrained")
    return "kind is \"" + excerpt(kind) + "\"; it can be characters, bytes or pretrained";
  if (kind == "pretrained") {
    if (pretrained.empty()) return "kind is pretrained, and no folder is named; write pretrained: FOLDER";
    if (!eos.empty() || characters != TokenizerConfig{}.characters)
      return "characters and eos belong to kind characters, and pretrained names a folder that says both; leave them "
             "out";
    return "";
  }
  if (!pretrained.empty())
    return "kind is " + kind + ", and pretrained names a folder (" + excerpt(pretrained) + "); leave one of them out";
  if (kind == "bytes")
    return eos.empty()
               ? ""
               : "eos is \"" + excerpt(eos) + "\"; it belongs to kind characters, kind bytes ends with " + kEndOfText;
  std::vector<std::string> points;
  std::unordered_map<std::string, size_t> seen;
  try {
    points = code_points(characters);
    if (!eos.empty() && code_points(eos).size() != 1)
      return "eos is \"" + excerpt(eos) + "\"; it is one character, or empty";
  } catch (const std::invalid_argument& error) {
    return std::string("characters or eos: ") + error.what();
  }
  if (points.empty()) return "characters is empty; list every character of the data, the end of sequence last";
  for (size_t i = 0; i < points.size(); ++i) {
    const auto [place, fresh] = seen.emplace(points[i], i + 1);
    if (!fresh)
      return "characters holds " + named(points[i]) + " at places " + std::to_string(place->second) + " and " +
             std::to_string(i + 1) + "; each stands once";
  }
  if (!eos.empty() && !seen.count(eos))
    return "eos " + named(eos) + " is not among characters \"" + excerpt(characters, 200) + "\"";
  return "";
}

Tokenizer::Tokenizer(const TokenizerConfig& config) : config_(config) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("tokenizer: " + wrong);
  if (kind() == "pretrained") {
    pretrained_ = Pretrained::open(config.pretrained);
    eos_id_ = pretrained_->eos_id();
    pad_id_ = pretrained_->pad_id();
    end_ids_ = pretrained_->end_ids();
    return;
  }
  tokens_.push_back(kPad);
  if (bytes()) {
    for (int b = 0; b < 256; ++b) tokens_.emplace_back(1, static_cast<char>(b));
    tokens_.push_back(kEndOfText);
  } else {
    for (std::string& point : code_points(config.characters)) tokens_.push_back(std::move(point));
    for (size_t id = 1; id < tokens_.size(); ++id) {
      ids_[tokens_[id]] = static_cast<int64_t>(id);
      if (tokens_[id].size() == 1) ascii_[static_cast<size_t>(tokens_[id][0])] = static_cast<int64_t>(id);
    }
  }
  eos_id_ = config.eos.empty() ? size() - 1 : ids_.at(config.eos);
  end_ids_ = {eos_id_};
}

int64_t Tokenizer::size() const { return pretrained_ ? pretrained_->bpe().size() : std::ssize(tokens_); }

const std::string& Tokenizer::eos() const {
  return pretrained_ ? pretrained_->bpe().name(eos_id_) : tokens_[static_cast<size_t>(eos_id_)];
}

bool Tokenizer::ends(int64_t id) const { return std::find(end_ids_.begin(), end_ids_.end(), id) != end_ids_.end(); }

bool Tokenizer::has_chat_template() const { return pretrained_ && pretrained_->has_chat_template(); }

uint64_t Tokenizer::digest() const { return pretrained_ ? pretrained_->digest() : 0; }

std::vector<int64_t> Tokenizer::encode_prompt(std::string_view text) const {
  std::vector<int64_t> ids = encode(text);
  if (!pretrained_) return ids;
  const std::vector<int64_t>& before = pretrained_->bpe().before();
  const bool there = ids.size() >= before.size() && std::equal(before.begin(), before.end(), ids.begin());
  if (!there) ids.insert(ids.begin(), before.begin(), before.end());
  return ids;
}

std::vector<int64_t> Tokenizer::encode_behind(int64_t last, std::string_view text) const {
  using Place = PreTokenizer::Place;
  if (!pretrained_) return encode(text);
  return pretrained_->bpe().encode(text, pretrained_->bpe().added(last) ? Place::within : Place::behind);
}

std::vector<int64_t> Tokenizer::encode(std::string_view text) const {
  if (pretrained_) return pretrained_->bpe().encode(text);
  std::vector<int64_t> ids;
  if (bytes()) {
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(1 + static_cast<unsigned char>(c));
    return ids;
  }
  ids.reserve(text.size());
  for (size_t at = 0, size = 0; at < text.size(); at += size) {
    size = utf8_size(text, at);
    if (size == 0) throw std::invalid_argument("tokenizer: text is not UTF-8 at byte " + std::to_string(at));
    int64_t id = 0;
    if (size == 1) {
      id = ascii_[static_cast<size_t>(text[at])];
    } else if (const auto place = ids_.find(std::string(text.substr(at, size))); place != ids_.end()) {
      id = place->second;
    }
    if (id == 0) throw std::invalid_argument(foreign(text, at, size, static_cast<int64_t>(ids.size())));
    ids.push_back(id);
  }
  return ids;
}

// A character that is not in the alphabet: which one, and where, with what stands around it.
std::string Tokenizer::foreign(std::string_view text, size_t at, size_t size, int64_t place) const {
  constexpr size_t kShown = 40;  // bytes on either side: enough to find the place
  size_t from = at - std::min(at, kShown);
  while (from > 0 && utf8_size(text, from) == 0) --from;
  return "tokenizer: character " + named(std::string(text.substr(at, size))) + " at place " +
         std::to_string(place + 1) + " (\"" + excerpt(text.substr(from, 2 * kShown)) + "\") is not in the alphabet \"" +
         excerpt(config_.characters, 200) + "\"; add it to tokenizer.characters, or take tokenizer.kind bytes";
}

int64_t Tokenizer::bytes_of(int64_t id) const {
  if (pretrained_) return pretrained_->bpe().special(id) ? 0 : std::ssize(pretrained_->bpe().piece(id));
  const bool special = id == pad_id() || (bytes() && id == eos_id_);
  return special ? 0 : static_cast<int64_t>(tokens_.at(static_cast<size_t>(id)).size());
}

const std::string& Tokenizer::text_of(int64_t id, bool first) const {
  static const std::string none;
  if (id < 0 || id >= size())
    throw std::invalid_argument("tokenizer: id " + std::to_string(id) + " is outside 0 … " +
                                std::to_string(size() - 1));
  if (pretrained_) return first ? pretrained_->bpe().first_piece(id) : pretrained_->bpe().piece(id);
  return id == pad_id() ? none : tokens_[static_cast<size_t>(id)];
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids) const {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) text += text_of(ids[i], i == 0);
  return text;
}

std::string Tokenizer::written(size_t id) const {
  static const std::vector<std::string> names = byte_names();
  const bool byte = bytes() && tokens_[id].size() == 1;
  return byte ? names[static_cast<unsigned char>(tokens_[id][0])] : tokens_[id];
}

// Of kind characters, "Split" cuts before every character and the model is a list of words, each of one character, that has
// no word for what is not in it: tokenizers then refuses such text, as encode() does, where a byte-pair model drops it.
// Of kind bytes, "ByteLevel" first gives each byte its name, a character, and takes it back, and a byte-pair model with no
// pair to merge leaves every character alone. The decoder "Fuse" puts characters together without spaces.
// Padding and the end are added tokens, for the model would cut their names into characters.
void Tokenizer::save(const std::string& folder) const {
  if (pretrained_) return pretrained_->save(folder);
  Json vocabulary = Json::object(), added = Json::array();
  for (size_t id = 0; id < tokens_.size(); ++id) vocabulary[written(id)] = id;
  for (const int64_t id : {pad_id(), eos_id_})
    added.push_back({{"id", id},
                     {"content", tokens_[static_cast<size_t>(id)]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", "[\\s\\S]"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const Json words = {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", kNoToken}};
  const Json pairs = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"vocab", vocabulary},
                      {"merges", Json::array()}};
  write(folder + "/tokenizer.json", {{"version", "1.0"},
                                     {"truncation", nullptr},
                                     {"padding", nullptr},
                                     {"added_tokens", added},
                                     {"normalizer", nullptr},
                                     {"pre_tokenizer", bytes() ? byte_level : split},
                                     {"post_processor", nullptr},
                                     {"decoder", bytes() ? byte_level : Json{{"type", "Fuse"}}},
                                     {"model", bytes() ? pairs : words}});
  const std::string pad = kPad;
  write(folder + "/tokenizer_config.json", {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                            {"pad_token", pad},
                                            {"eos_token", eos()},
                                            {"clean_up_tokenization_spaces", false},
                                            {"model_input_names", {"input_ids", "attention_mask"}},
                                            {"padding_side", "left"}});
  write(folder + "/special_tokens_map.json", {{"pad_token", pad}, {"eos_token", eos()}});
}

Tokenizer Tokenizer::load(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json", config_path = folder + "/tokenizer_config.json";
  const ReadJson json = read(path);
  TokenizerConfig config;
  if (of_pairs(json)) {
    config.pretrained = folder;
    return Tokenizer(config);
  }
  if (const std::string type = type_of(json); !type.empty() && type != "BPE" && type != "WordLevel")
    throw std::runtime_error("tokenizer: " + path + ": model.type \"" + excerpt(type) +
                             "\" is not supported; it can be BPE (docs/tokenizers.md)");
  const ReadJson settings = read(config_path);
  try {
    const ReadJson& vocabulary = json.at("model").at("vocab");
    std::vector<std::string> tokens(vocabulary.size());
    for (const auto& [token, id] : vocabulary.items()) {
      if (!id.is_number_integer() || id < 0 || id >= tokens.size())
        throw std::runtime_error("the id of \"" + excerpt(token) + "\" is " + excerpt(id.dump()) + "; wanted 0 … " +
                                 std::to_string(tokens.size() - 1));
      tokens[id.get<size_t>()] = token;
    }
    if (tokens.empty() || tokens[0] != kPad) throw std::runtime_error("id 0 is not <pad>");
    const auto decoder = json.find("decoder");
    if (decoder != json.end() && decoder->is_object() && decoder->value("type", "") == "ByteLevel") {
      config.kind = "bytes";
    } else {
      config.characters = "";
      for (size_t id = 1; id < tokens.size(); ++id) {
        if (code_points(tokens[id]).size() != 1)
          throw std::runtime_error("id " + std::to_string(id) + " (\"" + excerpt(tokens[id]) +
                                   "\") is not one character");
        config.characters += tokens[id];
      }
      config.eos = settings.at("eos_token").get<std::string>();
    }
    Tokenizer tokenizer(config);
    if (tokens.size() != tokenizer.tokens_.size())
      throw std::runtime_error("a byte tokenizer has " + std::to_string(tokenizer.size()) + " tokens, this one has " +
                               std::to_string(tokens.size()));
    for (size_t id = 0; id < tokens.size(); ++id)
      if (tokens[id] != tokenizer.written(id))
        throw std::runtime_error("id " + std::to_string(id) + " is \"" + excerpt(tokens[id]) + "\", wanted \"" +
                                 tokenizer.written(id) + "\"");
    return tokenizer;
  } catch (const std::exception& error) {
    const bool form = dynamic_cast<const ReadJson::exception*>(&error) != nullptr;
    throw std::runtime_error("tokenizer: " + path + " and " + config_path +
                             " are not a tokenizer of kind characters or bytes: " +
                             (form ? "a part is missing or of another type" : error.what()));
  }
}

}  // namespace isentrope::data
