#include "csrc/data/corpus.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <set>
#include <stdexcept>

#include "csrc/data/split.h"
#include "csrc/data/token_cache.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

namespace fs = std::filesystem;

// What a shard is made of, in two hashes: the configuration gives it its name, the files' state its fingerprint.
Hash shard_name(const CorpusConfig& config, const Tokenizer& tokenizer) {
  Hash hash;
  const std::vector<std::string> held_out{config.validation_path, config.test_path};
  for (const auto* list : {&config.paths, &held_out, &config.suffixes, &config.exclude, &config.python_sources}) {
    for (const std::string& text : *list) hash.add(text);
    hash.add(list->size());
  }
  hash.add(std::bit_cast<uint64_t>(config.validation().share()));
  hash.add(std::bit_cast<uint64_t>(config.test().share()));
  hash.add(fs::current_path().string());
  const TokenizerConfig& tokens = tokenizer.config();
  for (const std::string& text : {tokenizer.kind(), tokens.characters, tokens.eos}) hash.add(text);
  if (tokenizer.kind() == "pretrained") hash.add(tokenizer.digest());
  return hash;
}

uint64_t fingerprint_of(const std::vector<CorpusFile>& files) {
  Hash hash;
  hash.add("no part is empty by chance");  // how files are split: shards that were split otherwise are made anew
  for (const CorpusFile& file : files) {
    hash.add(file.path);
    hash.add(file.name);
    hash.add(static_cast<uint64_t>(file.own));
    hash.add(static_cast<uint64_t>(file.bytes));
    hash.add(static_cast<uint64_t>(file.modified));
  }
  return hash.value;
}

// A piece of a file: bytes from … to − 1 as shares of its length.
struct Piece {
  const CorpusFile* file;
  double from, to;
};

// What of the files belongs to the split. Whole files do, where there are enough for every part; of fewer each is cut.
std::vector<Piece> pieces_of(const std::vector<CorpusFile>& files, const CorpusConfig& config, Split split) {
  const double validation = config.validation().share(), test = config.test().share(), train = 1 - validation - test;
  const bool own_path =
      split != Split::train && !(split == Split::validation ? config.validation() : config.test()).path.empty();
  std::vector<std::string_view> names;
  std::vector<Piece> pieces;
  for (const CorpusFile& file : files)
    if (file.bytes > 0 && file.own == (own_path ? split : Split::train))
      names.emplace_back(file.name), pieces.push_back({&file, 0, 1});
  if (own_path) return pieces;
  const std::set<std::string_view> different(names.begin(), names.end());
  if (different.size() < size_t{1} + (validation > 0) + (test > 0)) {
    for (Piece& piece : pieces) {
      piece.from = split == Split::train ? 0 : split == Split::validation ? train : train + validation;
      piece.to = split == Split::train ? train : split == Split::validation ? train + validation : 1;
    }
    return pieces;
  }
  const std::vector<Split> splits = splits_of(names, validation, test);
  std::vector<Piece> own;
  for (size_t i = 0; i < pieces.size(); ++i)
    if (splits[i] == split) own.push_back(pieces[i]);
  return own;
}

// The place in text nearest below a share of its length where a line begins, or where none does, a character.
size_t cut_at(const std::string& text, double share) {
  const auto at = static_cast<size_t>(share * static_cast<double>(text.size()));
  if (share >= 1 || at == 0) return share >= 1 ? text.size() : 0;
  if (const size_t line = text.rfind('\n', at - 1); line != std::string::npos) return line + 1;
  size_t begin = at;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

void write_shard(const std::string& shard, uint64_t fingerprint, const std::vector<Piece>& pieces,
                 const Tokenizer& tokenizer) {
  int64_t bytes = 0;
  for (const Piece& piece : pieces)
    bytes += token_bytes(tokenizer.size()) *
             (static_cast<int64_t>((piece.to - piece.from) * static_cast<double>(piece.file->bytes)) + 1);
  TokenShardWriter writer(shard, fingerprint, bytes, tokenizer.size());
  for (const Piece& piece : pieces) {
    const std::string text = read_whole(piece.file->path);
    const size_t from = cut_at(text, piece.from), to = cut_at(text, piece.to);
    std::vector<int64_t> tokens;
    try {
      tokens = tokenizer.encode(std::string_view(text).substr(from, to - from));
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error("corpus: " + piece.file->path + ": " + error.what());
    }
    if (tokens.empty()) continue;
    tokens.push_back(tokenizer.eos_id());
    writer.write(tokens);
  }
  writer.commit();
}

}  // namespace

int64_t count_files(const std::vector<CorpusFile>& files, const CorpusConfig& config, Split split) {
  return static_cast<int64_t>(pieces_of(files, config, split).size());
}

std::shared_ptr<const TokenShard> open_corpus(const CorpusConfig& config, const Tokenizer& tokenizer, Split split) {
  const std::vector<CorpusFile> files = find_files(config);
  const uint64_t fingerprint = fingerprint_of(files);
  return cached_tokens(
      {"corpus", config.cache}, shard_name(config, tokenizer), split, fingerprint, tokenizer,
      [&](const std::string& shard) { write_shard(shard, fingerprint, pieces_of(files, config, split), tokenizer); });
}

}  // namespace isentrope::data
