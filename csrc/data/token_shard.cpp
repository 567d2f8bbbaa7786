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

constexpr TokenShardHeader kHeader{{'I', 'S', 'E', 'N', 'T', 'O', 'K', '\n'}, 1, 2, 0, 0, 0};

// Reads and checks the header of an open shard; "" or what is wrong with the file.
std::string read_header(int fd, TokenShardHeader& header) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return std::string("cannot be read: ") + std::strerror(errno);
  if (::pread(fd, &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header)) ||
      std::memcmp(header.magic, kHeader.magic, sizeof(header.magic)) != 0)
    return "not a token shard";
  if (header.version != kHeader.version || (header.token_bytes != 2 && header.token_bytes != 4))
    return "version " + std::to_string(header.version) + " with " + std::to_string(header.token_bytes) +
           " bytes a token, and this program reads version " + std::to_string(kHeader.version) + " with 2 or 4";
  const uint64_t room = (static_cast<uint64_t>(status.st_size) - sizeof(header)) / header.token_bytes;
  if (room != header.count)
    return "truncated: room for " + std::to_string(room) + " tokens, the header counts " + std::to_string(header.count);
  return "";
}

}  // namespace

TokenShardWriter::TokenShardWriter(const std::string& file, uint64_t fingerprint, int64_t bytes, int64_t vocabulary)
    : out_(file, bytes), header_(kHeader) {
  header_.token_bytes = static_cast<uint32_t>(token_bytes(vocabulary));
  header_.fingerprint = fingerprint;
  out_.write(&header_, sizeof(header_));
}

void TokenShardWriter::write(std::span<const int64_t> tokens) {
  const size_t width = header_.token_bytes;
  std::vector<char> packed(tokens.size() * width);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >> (8 * width) != 0)
      throw std::invalid_argument("token shard: token " + std::to_string(tokens[i]) + " does not fit into " +
                                  std::to_string(8 * width) + " bits");
    const auto token = static_cast<uint32_t>(tokens[i]);
    std::memcpy(packed.data() + i * width, &token, width);  // little endian: the low bytes come first
    digest_.add(token);
  }
  out_.write(packed.data(), static_cast<int64_t>(packed.size()));
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
  const size_t bytes = sizeof(header_) + header_.count * header_.token_bytes;
  if (wrong.empty()) {
    map_ = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map_ == MAP_FAILED) wrong = std::string("cannot be mapped: ") + std::strerror(errno);
  }
  ::close(fd);
  if (!wrong.empty()) throw std::runtime_error(file + ": " + wrong);
  tokens_ = {static_cast<const char*>(map_) + sizeof(header_), static_cast<size_t>(header_.count),
             header_.token_bytes == 4};
  Hash found;
  for (const int64_t token : tokens_) found.add(static_cast<uint64_t>(token));
  if (found.value == header_.digest) return;
  unmap();
  throw std::runtime_error(file + ": damaged: its tokens do not have the digest in its header");
}

void TokenShard::unmap() { ::munmap(map_, sizeof(header_) + header_.count * header_.token_bytes); }

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
