// The model of a byte-pair tokenizer: from a word to its tokens. Pure C++.
//
// A word begins as one symbol for each byte (of byte-level models) or each character. As long as two neighbours are a pair of
// the list of merges, the pair that stands first in the list is merged, the leftmost of several.
#pragma once
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace isentrope::data {

class BpeWords {
 public:
  // Room for the work on words, and what is remembered of words that came before; one for each thread.
  class Work;

  // model: of tokenizer.json. byte_level: words are bytes, whose names the vocabulary has in GPT-2's alphabet. Throws
  // std::runtime_error that names what is missing, contradicts itself or is not supported.
  BpeWords(const nlohmann::json& model, bool byte_level);

  // Appends the tokens of a word that is not empty. A word of characters is UTF-8.
  void encode(std::string_view word, Work& work, std::vector<int64_t>& ids) const;

  const std::unordered_map<std::string, uint32_t>& vocabulary() const { return vocabulary_; }
  int64_t merges() const { return static_cast<int64_t>(merges_); }

 private:
  struct Merged {
    uint32_t rank, id;
  };
  struct Slot {
    uint64_t pair = kNoPair;
    Merged merged{};
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void read_vocabulary(const nlohmann::json& model);
  void read_merges(const nlohmann::json& list);
  void insert(uint32_t left, uint32_t right, Merged merged);
  const Merged* merged(uint32_t left, uint32_t right) const;
  void symbols(std::string_view word, std::vector<uint32_t>& out) const;
  void merge_short(std::vector<uint32_t>& symbols, Work& work) const;
  void merge_long(std::vector<uint32_t>& symbols, Work& work) const;

  bool byte_level_, ignore_merges_ = false, byte_fallback_ = false, fuse_unk_ = false;
  int64_t unk_ = -1;
  std::unordered_map<std::string, uint32_t> vocabulary_;  // as tokenizer.json writes it
  std::unordered_map<std::string, uint32_t> whole_;       // text → token, where ignore_merges asks for it
  std::array<int64_t, 256> byte_{};                       // token of a byte; −1: none
  std::vector<Slot> table_;                               // of pairs; a power of two
  size_t merges_ = 0;
};

class BpeWords::Work {
 public:
  Work();

 private:
  friend class BpeWords;
  // A word of at most 15 bytes is its own key, a longer one has a hash and its text in text_. Up to three tokens stand in
  // the entry, more in tokens_.
  struct Entry {
    uint64_t low = 0, high = 0;
    uint32_t count = 0, token[3] = {};
  };
  Entry& find(std::string_view word, uint64_t low, uint64_t high);
  void grow();

  std::vector<Entry> entries_;
  size_t used_ = 0;
  std::string text_;
  std::vector<uint32_t> tokens_;

  struct Symbol {
    uint32_t id;            // kNone: merged into the one before it
    int64_t before, after;  // −1: none
  };
  struct Candidate {
    uint32_t rank, id;
    int64_t place;
    bool operator<(const Candidate& other) const {  // of a heap whose greatest comes first
      return rank != other.rank ? rank > other.rank : place > other.place;
    }
  };
  std::vector<uint32_t> symbols_, ranks_, merged_;
  std::vector<Symbol> chain_;
  std::vector<Candidate> heap_;
};

// The text that a token's name in GPT-2's alphabet of bytes stands for; the name itself where it has a character that is none of
// the alphabet, and then *is_bytes is false.
std::string bytes_of_name(std::string_view name, bool* is_bytes = nullptr);

}  // namespace isentrope::data
