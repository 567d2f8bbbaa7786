// Byte-pair tokenizers of tokenizer.json: text to tokens as the package tokenizers does it. Pure C++.
//
// Added tokens are found first, then what lies between them is normalised, split into words, and each word is merged
// (csrc/data/bpe_words.h). What a file asks for that is not done here is refused by name when it is read.
//
// Text that is not UTF-8, which the package tokenizers cannot be given: each run of bytes that are none of a character is a word
// of its own, of the tokens of its bytes, and what stands on either side of it is encoded as a text by itself. A model
// that has no tokens of bytes refuses it.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/data/bpe_added.h"
#include "csrc/data/bpe_split.h"
#include "csrc/data/bpe_words.h"

namespace isentrope::data {

class Bpe {
 public:
  // content: of tokenizer.json. Throws std::runtime_error that says what is damaged or not supported.
  explicit Bpe(std::string_view content);
  ~Bpe();

  // The tokens of the text alone, without those of the post-processor. May be called from several threads. Throws
  // std::invalid_argument for text that the model does not take.
  std::vector<int64_t> encode(std::string_view text, PreTokenizer::Place place = PreTokenizer::Place::start) const;
  // What the post-processor puts before and behind a text (add_special_tokens of transformers).
  const std::vector<int64_t>& before() const { return before_; }
  const std::vector<int64_t>& behind() const { return behind_; }

  int64_t size() const { return std::ssize(pieces_); }  // the greatest id + 1
  // What a token stands for in a text, and at its beginning; "" for an id that no token has.
  const std::string& piece(int64_t id) const { return pieces_[static_cast<size_t>(id)]; }
  const std::string& first_piece(int64_t id) const { return first_pieces_[static_cast<size_t>(id)]; }
  // The token as tokenizer.json writes it.
  const std::string& name(int64_t id) const { return names_[static_cast<size_t>(id)]; }
  int64_t id_of(const std::string& name) const;  // −1: no token
  // Whether the token is one of added_tokens, which are found in a text before it is cut into words.
  bool added(int64_t id) const { return added_.contains(name(id)); }
  bool special(int64_t id) const { return special_[static_cast<size_t>(id)]; }

 private:
  struct Work;
  void read_names(const nlohmann::json& json);
  std::unordered_map<int64_t, std::string> read_added(const nlohmann::json& json);
  void read_post_processor(const nlohmann::json& json);
  void read_template(const nlohmann::json& json);
  void encode_valid(std::string_view text, PreTokenizer::Place place, Work& work, std::vector<int64_t>& ids) const;
  void encode_broken(std::string_view bytes, Work& work, std::vector<int64_t>& ids) const;
  std::unique_ptr<Work> take() const;

  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> split_;
  std::unique_ptr<BpeWords> words_;
  AddedTokens raw_, normalized_;
  std::unordered_map<std::string, int64_t> added_;
  std::vector<int64_t> before_, behind_;
  std::vector<std::string> names_, pieces_, first_pieces_;
  std::vector<bool> special_;

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Work>> idle_;  // what threads worked with and others can go on with
};

}  // namespace isentrope::data
