// Added tokens: names that a text is searched for before it is cut into words. Pure C++.
//
// As in the package tokenizers: of several names the one that begins first counts, of those the longest. single_word: not
// beside a letter, digit or _; lstrip, rstrip: with the white space on that side. Those with `normalized` are searched for in
// normalised text, the others before.
#pragma once
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/data/split_pattern.h"

namespace isentrope::data {

struct AddedToken {
  int64_t id = 0;
  std::string content;
  bool special = false, single_word = false, lstrip = false, rstrip = false, normalized = false;
};

// Of tokenizer.json's added_tokens; throws std::runtime_error that names what is wrong with an entry.
std::vector<AddedToken> read_added_tokens(const nlohmann::json& list);

class AddedTokens {
 public:
  AddedTokens();
  void add(const AddedToken& token, const std::string& content);
  bool empty() const { return tokens_.empty(); }

  // A piece of text: without a token where id is −1.
  struct Piece {
    int64_t id;
    std::string_view text;
  };
  void split(std::string_view text, SplitPattern::Room& room, std::vector<Piece>& pieces) const;

 private:
  // A node of the tree of names: the next bytes with their nodes.
  struct Node {
    int64_t token = -1;  // that ends here, by its place in tokens_
    std::vector<std::pair<unsigned char, int32_t>> next;
  };
  int64_t longest(std::string_view text, size_t at, size_t& size) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{1};
  std::array<bool, 256> first_{};  // bytes that a name begins with
  SplitPattern word_;
};

}  // namespace isentrope::data
