#include "csrc/data/bpe_words.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::json;

constexpr uint32_t kNone = ~uint32_t{0};
constexpr size_t kShortWord = 32;       // symbols: up to here looking through all pairs is faster than a heap
constexpr size_t kLongestKept = 512;    // bytes of a word that is remembered
constexpr size_t kMostKept = 1u << 17;  // words that are remembered; beyond, all are forgotten
constexpr uint64_t kOutside = 0xFFull << 56;

uint64_t mixed(uint64_t x) {
  x *= 0x9E3779B97F4A7C15ull;
  return x ^ (x >> 32);
}

uint64_t load(const char* p, size_t bytes) {
  uint64_t x = 0;
  std::memcpy(&x, p, bytes);
  return x;
}

uint64_t load8(const char* p) { return load(p, 8); }

// The bytes and their number: of up to 15 bytes.
void short_key(std::string_view word, uint64_t& low, uint64_t& high) {
  const size_t n = word.size();
  const char* p = word.data();
  high = 0;
  if (n >= 8) {
    low = load8(p);
    if (n > 8) high = load8(p + n - 8) >> (8 * (16 - n));
  } else if (n >= 4) {
    low = load(p, 4) | load(p + n - 4, 4) << (8 * (n - 4));
  } else {
    low = static_cast<unsigned char>(p[0]) |
          static_cast<uint64_t>(static_cast<unsigned char>(p[n / 2])) << (8 * (n / 2)) |
          static_cast<uint64_t>(static_cast<unsigned char>(p[n - 1])) << (8 * (n - 1));
  }
  high |= static_cast<uint64_t>(n) << 56;
}

uint64_t hash_of(std::string_view word) {
  uint64_t hash = word.size();
  size_t i = 0;
  for (; i + 8 <= word.size(); i += 8) hash = mixed(hash ^ load8(word.data() + i));
  return mixed(hash ^ load8(word.data() + word.size() - 8) ^ i);
}

// The bytes that GPT-2's alphabet does not name by themselves have the characters from U+0100 on, in order.
bool named_by_itself(uint32_t b) { return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE; }

std::array<int, 0x144> bytes_of_characters() {
  std::array<int, 0x144> byte;
  byte.fill(-1);
  uint32_t next = 0x100;
  for (uint32_t b = 0; b < 256; ++b) byte[named_by_itself(b) ? b : next++] = static_cast<int>(b);
  return byte;
}

bool flag(const Json& model, const char* name) {
  const auto found = model.find(name);
  if (found == model.end() || found->is_null()) return false;
  if (!found->is_boolean())
    throw std::runtime_error(std::string("model.") + name + " is " + excerpt(found->dump()) + "; wanted true or false");
  return found->get<bool>();
}

void refuse_affixes(const Json& model) {
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const auto found = model.find(name); found != model.end() && !found->is_null() && *found != "")
      throw std::runtime_error(std::string("model.") + name + " is " + excerpt(found->dump()) +
                               ", and tokens with such parts are not read here; wanted null");
  if (const auto found = model.find("dropout"); found != model.end() && !found->is_null() && *found != 0)
    throw std::runtime_error("model.dropout is " + excerpt(found->dump()) +
                             ": the tokens of a text would be drawn; wanted null");
}

}  // namespace

std::string bytes_of_name(std::string_view name, bool* is_bytes) {
  static const std::array<int, 0x144> bytes = bytes_of_characters();
  std::string text;
  if (is_bytes) *is_bytes = true;
  for (size_t i = 0, size = 0; i < name.size(); i += size) {
    size = utf8_size(name, i);
    uint32_t code = static_cast<unsigned char>(name[i]);
    if (size == 2) code = (code & 0x1F) << 6 | (static_cast<unsigned char>(name[i + 1]) & 0x3F);
    if (size == 0 || size > 2 || code >= bytes.size() || bytes[code] < 0) {
      if (is_bytes) *is_bytes = false;
      return std::string(name);
    }
    text += static_cast<char>(bytes[code]);
  }
  return text;
}

// ---- the model --------------------------------------------------------------------------------------------------------

BpeWords::BpeWords(const Json& model, bool byte_level) : byte_level_(byte_level) {
  refuse_affixes(model);
  ignore_merges_ = flag(model, "ignore_merges");
  byte_fallback_ = flag(model, "byte_fallback");
  fuse_unk_ = flag(model, "fuse_unk");
  read_vocabulary(model);
  const auto merges = model.find("merges");
  if (merges == model.end() || !merges->is_array()) throw std::runtime_error("model.merges is not a list");
  read_merges(*merges);
}

void BpeWords::read_vocabulary(const Json& model) {
  const auto vocabulary = model.find("vocab");
  if (vocabulary == model.end() || !vocabulary->is_object() || vocabulary->empty())
    throw std::runtime_error("model.vocab is not an object with tokens");
  vocabulary_.reserve(vocabulary->size());
  for (const auto& [token, id] : vocabulary->items()) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX)
      throw std::runtime_error("the id of \"" + excerpt(token) + "\" is " + excerpt(id.dump()) +
                               "; wanted an integer from 0 on");
    vocabulary_.emplace(token, id.get<uint32_t>());
  }
  byte_.fill(-1);
  for (const auto& [token, id] : vocabulary_) {
    bool bytes = true;
    const std::string text = byte_level_ ? bytes_of_name(token, &bytes) : token;
    if (!bytes) continue;
    if (byte_level_ && text.size() == 1) byte_[static_cast<unsigned char>(text[0])] = id;
    if (ignore_merges_ && !text.empty()) whole_.emplace(text, id);
  }
  if (const auto unk = model.find("unk_token"); unk != model.end() && !unk->is_null()) {
    const auto found = unk->is_string() ? vocabulary_.find(unk->get<std::string>()) : vocabulary_.end();
    if (found == vocabulary_.end())
      throw std::runtime_error("model.unk_token is " + excerpt(unk->dump()) + ", which model.vocab does not have");
    unk_ = found->second;
  }
  if (!byte_fallback_ || byte_level_) return;
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    if (const auto found = vocabulary_.find(name); found != vocabulary_.end())
      byte_[static_cast<size_t>(b)] = found->second;
  }
}

void BpeWords::read_merges(const Json& list) {
  table_.assign(std::bit_ceil(2 * list.size() + 2), {});
  uint32_t rank = 0;
  for (const Json& entry : list) {
    std::string left, right;
    if (entry.is_string()) {
      const auto& text = entry.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
        throw std::runtime_error("merge " + std::to_string(rank) + " is \"" + excerpt(text) +
                                 "\"; wanted two tokens with a space between them");
      left = text.substr(0, space), right = text.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      left = entry[0].get<std::string>(), right = entry[1].get<std::string>();
    } else {
      throw std::runtime_error("merge " + std::to_string(rank) + " is " + excerpt(entry.dump()) +
                               "; wanted a pair of tokens");
    }
    const auto id = [&](const std::string& token) {
      const auto found = vocabulary_.find(token);
      if (found == vocabulary_.end())
        throw std::runtime_error("merge " + std::to_string(rank) + " (\"" + excerpt(left) + "\", \"" + excerpt(right) +
                                 "\") needs the token \"" + excerpt(token) + "\", which model.vocab does not have");
      return found->second;
    };
    insert(id(left), id(right), {rank, id(left + right)});
    ++rank;
  }
}

void BpeWords::insert(uint32_t left, uint32_t right, Merged merged) {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | right;
  size_t at = mixed(pair) & (table_.size() - 1);
  while (table_[at].pair != kNoPair && table_[at].pair != pair) at = (at + 1) & (table_.size() - 1);
  merges_ += table_[at].pair == kNoPair;
  table_[at] = {pair, merged};  // of a pair that is listed twice, the later place counts
}

const BpeWords::Merged* BpeWords::merged(uint32_t left, uint32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | right;
  for (size_t at = mixed(pair) & (table_.size() - 1);; at = (at + 1) & (table_.size() - 1)) {
    if (table_[at].pair == pair) return &table_[at].merged;
    if (table_[at].pair == kNoPair) return nullptr;
  }
}

// ---- a word -----------------------------------------------------------------------------------------------------------

void BpeWords::symbols(std::string_view word, std::vector<uint32_t>& out) const {
  out.clear();
  bool unknown = false;  // an unknown token is due
  for (size_t i = 0, size = 1; i < word.size(); i += size) {
    int64_t id = -1;
    if (byte_level_) {
      id = byte_[static_cast<unsigned char>(word[i])];
    } else {
      size = std::max<size_t>(utf8_size(word, i), 1);
      if (const auto found = vocabulary_.find(std::string(word.substr(i, size))); found != vocabulary_.end())
        id = found->second;
    }
    if (id >= 0) {
      if (unknown) out.push_back(static_cast<uint32_t>(unk_));
      unknown = false;
      out.push_back(static_cast<uint32_t>(id));
      continue;
    }
    const std::string_view character = word.substr(i, size);
    if (byte_fallback_ && !byte_level_ &&
        std::all_of(character.begin(), character.end(), [&](unsigned char b) { return byte_[b] >= 0; })) {
      for (const unsigned char b : character) out.push_back(static_cast<uint32_t>(byte_[b]));
    } else if (unk_ >= 0) {
      if (unknown && !fuse_unk_) out.push_back(static_cast<uint32_t>(unk_));
      unknown = true;
    }
  }
  if (unknown) out.push_back(static_cast<uint32_t>(unk_));
}

void BpeWords::merge_short(std::vector<uint32_t>& symbols, Work& work) const {
  std::vector<uint32_t>&ranks = work.ranks_, &ids = work.merged_;
  size_t n = symbols.size();
  ranks.resize(n), ids.resize(n);
  const auto look = [&](size_t i) {
    const Merged* found = i + 1 < n ? merged(symbols[i], symbols[i + 1]) : nullptr;
    ranks[i] = found ? found->rank : kNone;
    if (found) ids[i] = found->id;
  };
  for (size_t i = 0; i < n; ++i) look(i);
  while (n > 1) {
    const size_t best = static_cast<size_t>(std::min_element(ranks.begin(), ranks.begin() + n) - ranks.begin());
    if (ranks[best] == kNone) break;
    symbols[best] = ids[best];
    std::copy(symbols.begin() + best + 2, symbols.begin() + n, symbols.begin() + best + 1);
    std::copy(ranks.begin() + best + 2, ranks.begin() + n, ranks.begin() + best + 1);
    std::copy(ids.begin() + best + 2, ids.begin() + n, ids.begin() + best + 1);
    --n;
    look(best);
    if (best > 0) look(best - 1);
  }
  symbols.resize(n);
}

void BpeWords::merge_long(std::vector<uint32_t>& symbols, Work& work) const {
  auto& chain = work.chain_;
  auto& heap = work.heap_;
  const auto n = static_cast<int64_t>(symbols.size());
  chain.clear(), heap.clear();
  for (int64_t i = 0; i < n; ++i) chain.push_back({symbols[i], i - 1, i + 1 < n ? i + 1 : -1});
  const auto candidate = [&](int64_t i) {
    if (i < 0 || chain[i].after < 0) return;
    if (const Merged* found = merged(chain[i].id, chain[chain[i].after].id)) {
      heap.push_back({found->rank, found->id, i});
      std::push_heap(heap.begin(), heap.end());
    }
  };
  for (int64_t i = 0; i < n; ++i) candidate(i);
  while (!heap.empty()) {
    const Work::Candidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    Work::Symbol& left = chain[best.place];
    if (left.id == kNone || left.after < 0) continue;
    Work::Symbol& right = chain[left.after];
    const Merged* now = merged(left.id, right.id);  // one of them may have been merged since
    if (!now || now->id != best.id) continue;
    left.id = best.id;
    right.id = kNone;
    left.after = right.after;
    if (right.after >= 0) chain[right.after].before = best.place;
    candidate(left.before);
    candidate(best.place);
  }
  symbols.clear();
  for (int64_t i = 0; i >= 0 && n > 0; i = chain[i].after) symbols.push_back(chain[i].id);
}

void BpeWords::encode(std::string_view word, Work& work, std::vector<int64_t>& ids) const {
  uint64_t low, high;
  if (word.size() <= 15) {
    short_key(word, low, high);
  } else {
    low = word.size() <= kLongestKept ? hash_of(word) : 0;
    high = kOutside;
  }
  const bool kept = word.size() <= kLongestKept;
  if (kept) {
    const Work::Entry& entry = work.find(word, low, high);
    if (entry.high != 0) {
      const uint32_t* token = entry.count <= 3 ? entry.token : work.tokens_.data() + entry.token[0];
      ids.insert(ids.end(), token, token + entry.count);
      return;
    }
  }
  std::vector<uint32_t>& symbols = work.symbols_;
  const auto whole = ignore_merges_ ? whole_.find(std::string(word)) : whole_.end();
  if (whole != whole_.end()) {
    symbols.assign(1, whole->second);
  } else {
    this->symbols(word, symbols);
    if (symbols.size() <= kShortWord)
      merge_short(symbols, work);
    else
      merge_long(symbols, work);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  if (!kept) return;
  work.grow();
  Work::Entry& entry = work.find(word, low, high);
  entry = {low, high, static_cast<uint32_t>(symbols.size()), {}};
  if (high == kOutside) {
    entry.high |= work.text_.size();
    work.text_.append(1, static_cast<char>(word.size() & 0xFF)).append(1, static_cast<char>(word.size() >> 8));
    work.text_.append(word);
  }
  if (symbols.size() <= 3) {
    std::copy(symbols.begin(), symbols.end(), entry.token);
  } else {
    entry.token[0] = static_cast<uint32_t>(work.tokens_.size());
    work.tokens_.insert(work.tokens_.end(), symbols.begin(), symbols.end());
  }
}

// ---- words that came before -------------------------------------------------------------------------------------------

BpeWords::Work::Work() : entries_(1u << 10) {}

// The word's entry, or the empty one where it belongs.
BpeWords::Work::Entry& BpeWords::Work::find(std::string_view word, uint64_t low, uint64_t high) {
  for (size_t at = mixed(low ^ mixed(high)) & (entries_.size() - 1);; at = (at + 1) & (entries_.size() - 1)) {
    Entry& entry = entries_[at];
    if (entry.high == 0) return entry;
    if (entry.low != low) continue;
    if (high != kOutside) {
      if (entry.high == high) return entry;
    } else if ((entry.high & kOutside) == kOutside) {
      const char* text = text_.data() + (entry.high & ~kOutside);
      const size_t size = static_cast<unsigned char>(text[0]) | static_cast<size_t>(static_cast<unsigned char>(text[1]))
                                                                    << 8;
      if (size == word.size() && std::memcmp(text + 2, word.data(), size) == 0) return entry;
    }
  }
}

// Makes room for one more.
void BpeWords::Work::grow() {
  ++used_;
  if (used_ >= kMostKept || text_.size() > (64u << 20) || tokens_.size() > (16u << 20)) {
    used_ = 1;
    std::fill(entries_.begin(), entries_.end(), Entry{});
    text_.clear(), tokens_.clear();
    return;
  }
  if (2 * used_ <= entries_.size()) return;
  std::vector<Entry> old(2 * entries_.size());
  old.swap(entries_);
  for (const Entry& entry : old) {
    if (entry.high == 0) continue;
    const uint64_t high = (entry.high & kOutside) == kOutside ? kOutside : entry.high;
    size_t at = mixed(entry.low ^ mixed(high)) & (entries_.size() - 1);
    while (entries_[at].high != 0) at = (at + 1) & (entries_.size() - 1);
    entries_[at] = entry;
  }
}

}  // namespace isentrope::data
