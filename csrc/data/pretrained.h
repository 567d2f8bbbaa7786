// A tokenizer as a folder of Hugging Face holds it: tokenizer.json with the files that say which of its tokens end and pad.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/bpe.h"

namespace isentrope::data {

class Pretrained {
 public:
  // Throws std::runtime_error with the file and what is wrong with it. A folder that has not changed since it was last opened is
  // not read again.
  static std::shared_ptr<const Pretrained> open(const std::string& folder);
  explicit Pretrained(const std::string& folder);

  const Bpe& bpe() const { return *bpe_; }
  // The end of sequence is eos_token of tokenizer_config.json, else of special_tokens_map.json, else eos_token_id of
  // generation_config.json, else of config.json; of a list the first. Padding likewise, by pad_token; where nothing names it, it is
  // the end of sequence.
  int64_t eos_id() const { return eos_; }
  // The end of sequence, then each eos_token_id of generation_config.json, at which transformers stops too.
  const std::vector<int64_t>& end_ids() const { return ends_; }
  int64_t pad_id() const { return pad_; }
  bool has_chat_template() const;              // python/isentrope/chat_template.py says where one may stand
  uint64_t digest() const { return digest_; }  // of tokenizer.json and the ids

  // Writes the files as they were read, byte by byte; where there was no tokenizer_config.json, one that names eos and pad.
  void save(const std::string& folder) const;

 private:
  void read_chat_templates(const std::string& folder);
  std::vector<int64_t> ids_of(const std::string& file, const std::string& key) const;
  int64_t named(const std::string& folder, const char* name, int64_t otherwise) const;
  void check_added(const std::string& folder) const;

  std::map<std::string, std::string> files_;  // name → content
  std::unique_ptr<Bpe> bpe_;
  int64_t eos_ = 0, pad_ = 0;
  std::vector<int64_t> ends_;
  uint64_t digest_ = 0;
};

}  // namespace isentrope::data
