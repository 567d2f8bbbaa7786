#include "csrc/data/bpe.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/data/bpe_decode.h"
#include "csrc/data/json_object.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::json;

const Json& part(const Json& json, const char* name) {
  static const Json nothing;
  const auto found = json.find(name);
  return found == json.end() ? nothing : *found;
}

Json parsed(std::string_view content) {
  Json json = parse_json_object(content);
  const Json& model = part(json, "model");
  if (!model.is_object()) throw std::runtime_error("has no model; it is no tokenizer.json");
  // Old files do not name the type.
  const Json& type = part(model, "type");
  if (!type.is_null() && type != "BPE")
    throw std::runtime_error("model.type " + excerpt(type.dump()) + " is not supported; it can be BPE");
  return json;
}

// Where the first byte stands, from `at` on, that belongs to no character.
size_t broken_at(std::string_view text, size_t at) { return at + utf8_end(text.substr(at)); }

}  // namespace

struct Bpe::Work {
  PreTokenizer::Room split;
  BpeWords::Work words;
  std::vector<AddedTokens::Piece> raw, normalized;
  std::string text, spare;
};

Bpe::~Bpe() = default;

Bpe::Bpe(std::string_view content) try {
  const Json json = parsed(content);
  normalizer_ = std::make_unique<Normalizer>(part(json, "normalizer"));
  split_ = std::make_unique<PreTokenizer>(part(json, "pre_tokenizer"));
  words_ = std::make_unique<BpeWords>(json["model"], split_->byte_level());
  read_names(json);
  const std::unordered_map<int64_t, std::string> normal = read_added(json);
  read_post_processor(part(json, "post_processor"));
  const TokenText text(part(json, "decoder"));
  for (size_t id = 0; id < names_.size(); ++id) {
    const auto found = normal.find(static_cast<int64_t>(id));
    const std::string& name = found == normal.end() ? names_[id] : found->second;
    pieces_.push_back(text.of(name, false));
    first_pieces_.push_back(text.of(name, true));
  }
} catch (const std::invalid_argument& error) {  // the name of an added token is a text that is encoded
  throw std::runtime_error(error.what());
} catch (const Json::exception&) {
  throw std::runtime_error("a part is missing or of another type");
}

void Bpe::read_names(const Json& json) {
  size_t size = 0;
  for (const auto& [token, id] : words_->vocabulary()) size = std::max<size_t>(size, id + 1);
  const std::vector<AddedToken> added =
      part(json, "added_tokens").is_null() ? std::vector<AddedToken>{} : read_added_tokens(json["added_tokens"]);
  for (const AddedToken& token : added) size = std::max(size, static_cast<size_t>(token.id) + 1);
  // A file of few tokens with one of an enormous number would take memory for all below it.
  if (size > 2 * (words_->vocabulary().size() + added.size()) + 65536)
    throw std::runtime_error("the greatest id is " + std::to_string(size - 1) + ", and there are " +
                             std::to_string(words_->vocabulary().size() + added.size()) + " tokens");
  names_.resize(size);
  special_.resize(size);
  std::vector<bool> taken(size);
  for (const auto& [token, id] : words_->vocabulary()) {
    if (taken[id])
      throw std::runtime_error("the id " + std::to_string(id) + " is that of \"" + excerpt(names_[id]) +
                               "\" and of \"" + excerpt(token) + "\"");
    taken[id] = true;
    names_[id] = token;
  }
}

// Returns for each token with `normalized` what its name becomes, by which it is decoded too.
std::unordered_map<int64_t, std::string> Bpe::read_added(const Json& json) {
  std::unordered_map<int64_t, std::string> normal;
  if (part(json, "added_tokens").is_null()) return normal;
  SplitPattern::Room room;
  std::string out, spare;
  for (const AddedToken& token : read_added_tokens(json["added_tokens"])) {
    const auto id = static_cast<size_t>(token.id);
    const auto found = words_->vocabulary().find(token.content);
    if (found != words_->vocabulary().end() ? found->second != id : !names_[id].empty())
      throw std::runtime_error(
          "added token \"" + excerpt(token.content) + "\" has the id " + std::to_string(id) +
          (names_[id].empty() ? ", and another in model.vocab" : ", which is that of \"" + excerpt(names_[id]) + "\""));
    names_[id] = token.content;
    special_[id] = token.special;
    added_[token.content] = token.id;
    if (!token.normalized) {
      raw_.add(token, token.content);
      continue;
    }
    normal[token.id] = normalizer_->run(token.content, out, spare, room);
    normalized_.add(token, normal[token.id]);
  }
  return normal;
}

void Bpe::read_post_processor(const Json& json) {
  if (json.is_null()) return;
  const std::string type = json.is_object() ? json.value("type", "") : "";
  if (type == "ByteLevel") return;  // it moves offsets alone
  if (type == "Sequence" && part(json, "processors").is_array()) {
    for (const Json& one : json["processors"]) read_post_processor(one);
  } else if (type == "TemplateProcessing") {
    read_template(json);
  } else {
    throw std::runtime_error("post_processor " + excerpt(type.empty() ? json.dump() : type) +
                             " is not supported; there are TemplateProcessing, ByteLevel and Sequence");
  }
}

void Bpe::read_template(const Json& json) {
  const auto damaged = [&] {
    return std::runtime_error("post_processor.single " + excerpt(part(json, "single").dump()) +
                              " is not a list of special tokens with one text among them");
  };
  if (!part(json, "single").is_array()) throw damaged();
  bool seen = false;
  std::vector<int64_t> before, behind;
  for (const Json& one : json["single"]) {
    if (one.is_object() && one.contains("Sequence") && !seen) {
      seen = true;
      continue;
    }
    const Json& token = part(one, "SpecialToken");
    if (!token.is_object() || !part(token, "id").is_string()) throw damaged();
    const Json& ids = part(part(part(json, "special_tokens"), token["id"].get<std::string>().c_str()), "ids");
    if (!ids.is_array()) throw damaged();
    for (const Json& id : ids) {
      if (!id.is_number_integer() || id < 0 || id >= names_.size()) throw damaged();
      (seen ? behind : before).push_back(id.get<int64_t>());
    }
    constexpr size_t kMost =
        1000;  // models have one or two; the list may name a token with a long list of ids many times
    if (before.size() + behind.size() > kMost)
      throw std::runtime_error("post_processor.single puts more than " + std::to_string(kMost) +
                               " tokens around a text");
  }
  if (!seen) throw damaged();
  before_.insert(before_.begin(), before.begin(), before.end());
  behind_.insert(behind_.end(), behind.begin(), behind.end());
}

int64_t Bpe::id_of(const std::string& name) const {
  if (const auto found = added_.find(name); found != added_.end()) return found->second;
  const auto found = words_->vocabulary().find(name);
  return found == words_->vocabulary().end() ? -1 : static_cast<int64_t>(found->second);
}

// ---- encoding ---------------------------------------------------------------------------------------------------------

std::unique_ptr<Bpe::Work> Bpe::take() const {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) return std::make_unique<Work>();
  std::unique_ptr<Work> work = std::move(idle_.back());
  idle_.pop_back();
  return work;
}

std::vector<int64_t> Bpe::encode(std::string_view text, PreTokenizer::Place place) const {
  std::unique_ptr<Work> work = take();
  std::vector<int64_t> ids;
  ids.reserve(text.size() / 3 + 1);
  for (size_t at = 0; at < text.size();) {
    const size_t end = broken_at(text, at);
    encode_valid(text.substr(at, end - at), at == 0 ? place : PreTokenizer::Place::within, *work, ids);
    at = end;
    while (at < text.size() && utf8_size(text, at) == 0) ++at;
    if (at > end) encode_broken(text.substr(end, at - end), *work, ids);
  }
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(work));
  return ids;
}

void Bpe::encode_broken(std::string_view bytes, Work& work, std::vector<int64_t>& ids) const {
  const size_t before = ids.size();
  words_->encode(bytes, work.words, ids);
  if (ids.size() == before)
    throw std::invalid_argument("tokenizer: the text is not UTF-8, and the model has no token for the byte " +
                                std::to_string(static_cast<unsigned char>(bytes[0])));
}

void Bpe::encode_valid(std::string_view text, PreTokenizer::Place place, Work& work, std::vector<int64_t>& ids) const {
  using Place = PreTokenizer::Place;
  const auto word = [&](std::string_view one) { words_->encode(one, work.words, ids); };
  const auto pieces = [&](const AddedTokens& tokens, std::string_view part,
                          std::vector<AddedTokens::Piece>& out) -> const std::vector<AddedTokens::Piece>& {
    out.clear();
    if (tokens.empty())
      out.push_back({-1, part});
    else
      tokens.split(part, work.split.match, out);
    return out;
  };
  for (const AddedTokens::Piece& raw : pieces(raw_, text, work.raw)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    const Place here = raw.text.data() == text.data() ? place : Place::within;
    const std::string_view normal =
        normalizer_->run(raw.text, work.text, work.spare, work.split.match, /*prepend=*/here != Place::behind);
    for (const AddedTokens::Piece& piece : pieces(normalized_, normal, work.normalized)) {
      if (piece.id >= 0)
        ids.push_back(piece.id);
      else
        split_->split(piece.text, piece.text.data() == normal.data() ? here : Place::within, work.split, word);
    }
  }
}

}  // namespace isentrope::data
