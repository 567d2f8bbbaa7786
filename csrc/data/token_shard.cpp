#include "csrc/data/token_shard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace isentrope::data {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are mapped as they are on disk");
static_assert(sizeof(TokenShardHeader) == 40, "the header has no gaps");

constexpr TokenShardHeader kHeader{{'I', 'S', 'E', 'N', 'T', 'O', 'K', '\n'}, 1, sizeof(uint16_t), 0, 0, 0};

// Reads and checks the header of an open shard; "" or what is wrong with the file.
std::string read_header(int fd, TokenShardHeader& header) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return std::string("cannot be read: ") + std::strerror(errno);
  if (::pread(fd, &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header)) ||
      std::memcmp(header.magic, kHeader.magic, sizeof(header.magic)) != 0)
    return "not a token shard";
  if (header.version != kHeader.version || header.token_bytes != kHeader.token_bytes)
    return "version " + std::to_string(header.version) + " with " + std::to_string(header.token_bytes) +
           " bytes a token, and this program reads version " + std::to_string(kHeader.version) + " with " +
           std::to_string(kHeader.token_bytes);
  const uint64_t room = (static_cast<uint64_t>(status.st_size) - sizeof(header)) / sizeof(uint16_t);
  if (room != header.count)
    return "truncated: room for " + std::to_string(room) + " tokens, the header counts " + std::to_string(header.count);
  return "";
}

}  // namespace

TokenShardWriter::TokenShardWriter(const std::string& file, uint64_t fingerprint, int64_t bytes)
    : out_(file, bytes), header_(kHeader) {
  header_.fingerprint = fingerprint;
  out_.write(&header_, sizeof(header_));
}

void TokenShardWriter::write(std::span<const int64_t> tokens) {
  std::vector<uint16_t> narrow;
  narrow.reserve(tokens.size());
  for (const int64_t token : tokens) {
    if (token < 0 || token > UINT16_MAX)
      throw std::invalid_argument("token shard: token " + std::to_string(token) +
                                  " does not fit into 16 bits; a tokenizer may have 65536 tokens at most");
    narrow.push_back(static_cast<uint16_t>(token));
    digest_.add(static_cast<uint64_t>(token));
  }
  out_.write(narrow.data(), static_cast<int64_t>(narrow.size() * sizeof(uint16_t)));
  header_.count += tokens.size();
}

void TokenShardWriter::commit() {
  header_.digest = digest_.value;
  out_.overwrite(0, &header_, sizeof(header_));
  out_.commit();
}

TokenShard::TokenShard(const std::string& file) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::runtime_error(file + ": cannot be opened: " + std::strerror(errno));
  std::string wrong = read_header(fd, header_);
  const size_t bytes = sizeof(header_) + header_.count * sizeof(uint16_t);
  if (wrong.empty()) {
    map_ = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map_ == MAP_FAILED) wrong = std::string("cannot be mapped: ") + std::strerror(errno);
  }
  ::close(fd);
  if (!wrong.empty()) throw std::runtime_error(file + ": " + wrong);
  const auto* first = reinterpret_cast<const uint16_t*>(static_cast<const char*>(map_) + sizeof(header_));
  tokens_ = {first, static_cast<size_t>(header_.count)};
  Hash found;
  for (const uint16_t token : tokens_) found.add(token);
  if (found.value == header_.digest) return;
  unmap();
  throw std::runtime_error(file + ": damaged: its tokens do not have the digest in its header");
}

void TokenShard::unmap() { ::munmap(map_, sizeof(header_) + tokens_.size_bytes()); }

TokenShard::~TokenShard() { unmap(); }

std::optional<uint64_t> TokenShard::fingerprint_of(const std::string& file) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  TokenShardHeader header;
  const bool whole = read_header(fd, header).empty();
  ::close(fd);
  return whole ? std::optional(header.fingerprint) : std::nullopt;
}

}  // namespace isentrope::data
