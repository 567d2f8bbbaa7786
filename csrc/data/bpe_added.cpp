#include "csrc/data/bpe_added.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "csrc/data/unicode_space.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

// What single_word takes for a part of a word: alphabetic characters, marks, decimal digits, connectors, joiners.
constexpr const char* kWordCharacter =
    "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{"
    "1F189}"
    "\\x{200C}\\x{200D}]";

bool flag(const nlohmann::json& entry, const char* name) {
  const auto found = entry.find(name);
  if (found == entry.end()) return false;
  if (!found->is_boolean())
    throw std::runtime_error("added token " + excerpt(entry.dump()) + ": " + name + " is neither true nor false");
  return found->get<bool>();
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const nlohmann::json& list) {
  if (!list.is_array()) throw std::runtime_error("added_tokens is not a list");
  std::vector<AddedToken> tokens;
  std::set<std::string> contents;
  for (const auto& entry : list) {
    if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_number_integer() || entry["id"] < 0 ||
        entry["id"] > INT32_MAX || !entry.contains("content") || !entry["content"].is_string() ||
        entry["content"].get_ref<const std::string&>().empty())
      throw std::runtime_error("added token " + excerpt(entry.dump()) +
                               " is not an object with an id from 0 on and a content");
    AddedToken token{entry["id"].get<int64_t>(), entry["content"].get<std::string>(),
                     flag(entry, "special"),     flag(entry, "single_word"),
                     flag(entry, "lstrip"),      flag(entry, "rstrip"),
                     flag(entry, "normalized")};
    if (!contents.insert(token.content).second)
      throw std::runtime_error("added token \"" + excerpt(token.content) + "\" stands twice");
    tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokens::AddedTokens() : word_(kWordCharacter) {}

void AddedTokens::add(const AddedToken& token, const std::string& content) {
  if (content.empty()) return;
  int32_t node = 0;
  for (const char c : content) {
    const auto byte = static_cast<unsigned char>(c);
    auto& next = nodes_[static_cast<size_t>(node)].next;
    const auto found = std::find_if(next.begin(), next.end(), [&](const auto& edge) { return edge.first == byte; });
    if (found != next.end()) {
      node = found->second;
      continue;
    }
    next.emplace_back(byte, static_cast<int32_t>(nodes_.size()));
    node = static_cast<int32_t>(nodes_.size());
    nodes_.emplace_back();
  }
  first_[static_cast<unsigned char>(content[0])] = true;
  if (nodes_[static_cast<size_t>(node)].token >= 0) return;  // of two with one normal form, the first
  nodes_[static_cast<size_t>(node)].token = std::ssize(tokens_);
  tokens_.push_back(token);
}

// The place in tokens_ of the longest name at text[at], with its size in bytes; −1 where there is none.
int64_t AddedTokens::longest(std::string_view text, size_t at, size_t& size) const {
  int64_t best = -1;
  int32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto& next = nodes_[static_cast<size_t>(node)].next;
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto found = std::find_if(next.begin(), next.end(), [&](const auto& edge) { return edge.first == byte; });
    if (found == next.end()) break;
    node = found->second;
    if (const int64_t token = nodes_[static_cast<size_t>(node)].token; token >= 0) best = token, size = i + 1 - at;
  }
  return best;
}

void AddedTokens::split(std::string_view text, SplitPattern::Room& room, std::vector<Piece>& pieces) const {
  size_t done = 0;  // what stands before it is in pieces
  for (size_t at = 0, size = 0; at < text.size(); at += size) {
    size = 1;
    if (!first_[static_cast<unsigned char>(text[at])]) continue;
    const int64_t place = longest(text, at, size);
    if (place < 0) {
      size = 1;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(place)];
    size_t from = at, to = at + size, begin, end;
    if (token.single_word) {
      size_t last = from;  // the character before the name
      while (last > 0 && (static_cast<unsigned char>(text[--last]) & 0xC0) == 0x80) {
      }
      const bool after_word = from > 0 && word_.find(text.substr(0, from), last, room, begin, end);
      const bool before_word =
          to < text.size() && word_.find(text.substr(to, utf8_size(text, to)), 0, room, begin, end);
      if (after_word || before_word) continue;
    }
    if (token.lstrip) from = std::max(from - space_at_end(text.substr(0, from)), std::min(from, done));
    if (token.rstrip) to += space_at_start(text.substr(to));
    if (done < from) pieces.push_back({-1, text.substr(done, from - done)});
    pieces.push_back({token.id, text.substr(from, to - from)});
    done = to;
  }
  if (done < text.size()) pieces.push_back({-1, text.substr(done)});
}

}  // namespace isentrope::data
