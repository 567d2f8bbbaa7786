// Tokens on disk: written once, then mapped into memory, so that a corpus may be larger than the memory is.
//
// A file, all little endian:
//   char[8]  magic "ISENTOK\n"     uint32 version 1     uint32 bytes a token, 2 or 4
//   uint64   count                 uint64 fingerprint   uint64 digest
//   uint16   tokens [count], of a vocabulary of more than 65,536 uint32
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "csrc/durable_file.h"

namespace isentrope::data {

// FNV-1a of 64 bits (Fowler, Noll, Vo), over bytes or, a token at a time, over tokens.
struct Hash {
  uint64_t value = 0xCBF29CE484222325ull;
  void add(uint64_t unit) { value = (value ^ unit) * 0x100000001B3ull; }
  void add(std::string_view text) {
    for (const char c : text) add(static_cast<uint64_t>(static_cast<unsigned char>(c)));
    add(text.size());  // "ab", "c" differs from "a", "bc"
  }
};

struct TokenShardHeader {
  char magic[8];
  uint32_t version, token_bytes;
  uint64_t count;        // tokens
  uint64_t fingerprint;  // of what the tokens were made from: the writer's choice
  uint64_t digest;       // Hash of the tokens
};

// Writes a shard beside its place and renames it; errors as DurableFile. Without commit() nothing is left.
inline constexpr int64_t kNarrow = 65536;  // tokens that two bytes tell apart
inline int64_t token_bytes(int64_t vocabulary) { return vocabulary > kNarrow ? 4 : 2; }

// Tokens as they lie in a shard, of either width.
class Tokens {
 public:
  class Iterator {
   public:
    Iterator(const Tokens& tokens, size_t at) : tokens_(&tokens), at_(at) {}
    int64_t operator*() const { return (*tokens_)[at_]; }
    Iterator& operator++() { return ++at_, *this; }
    bool operator==(const Iterator& other) const { return at_ == other.at_; }

   private:
    const Tokens* tokens_;
    size_t at_;
  };
  Tokens() = default;
  Tokens(const void* first, size_t count, bool wide) : first_(first), count_(count), wide_(wide) {}
  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  int64_t operator[](size_t i) const {
    return wide_ ? static_cast<int64_t>(static_cast<const uint32_t*>(first_)[i])
                 : static_cast<int64_t>(static_cast<const uint16_t*>(first_)[i]);
  }
  Iterator begin() const { return {*this, 0}; }
  Iterator end() const { return {*this, count_}; }

 private:
  const void* first_ = nullptr;
  size_t count_ = 0;
  bool wide_ = false;
};

class TokenShardWriter {
 public:
  // bytes: about how large the file will be, for errors. vocabulary: how many tokens there are.
  TokenShardWriter(const std::string& file, uint64_t fingerprint, int64_t bytes, int64_t vocabulary = kNarrow);
  // Throws std::invalid_argument for a token that the width does not hold.
  void write(std::span<const int64_t> tokens);
  void commit();

 private:
  DurableFile out_;
  TokenShardHeader header_;
  Hash digest_;
};

class TokenShard {
 public:
  // Reads the tokens once: each costs one multiplication, and a shard that is not what was written would train another model.
  // Throws std::runtime_error with the file and what is wrong with it: missing, truncated, another format, another digest.
  explicit TokenShard(const std::string& file);
  ~TokenShard();
  TokenShard(const TokenShard&) = delete;
  TokenShard& operator=(const TokenShard&) = delete;

  const Tokens& tokens() const { return tokens_; }  // [count]
  uint64_t digest() const { return header_.digest; }

  // The fingerprint in the file's header; nullopt where there is no whole shard under that name.
  static std::optional<uint64_t> fingerprint_of(const std::string& file);

 private:
  void unmap();

  TokenShardHeader header_;
  void* map_ = nullptr;
  Tokens tokens_;
};

}  // namespace isentrope::data
