// Of some documents that which shares most with a query, each word it shares counted by how few documents have it. Deterministic. Standard
// library only.
//
// This is BM25 for documents of equal length that have no word twice, as the facts of the environment search: what BM25 makes of length and
// repetition is then one factor for all. A word weighs ln(N / n_w); SQLite's FTS5 has ln((N − n_w + ½) / (n_w + ½)), negative for a word that
// more than half of them have, and there cut to 10⁻⁶.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace isentrope::data {

// The words of a text, told apart by blanks.
std::vector<std::string> terms_of(std::string_view text);

// Holds of each word the documents that have it, so that a query looks at those alone that share a word with it.
class Retriever {
 public:
  explicit Retriever(const std::vector<std::string>& documents);

  // The document with the largest sum of ln(N / n_w) over the words w that the query and the document share, each counted once, where n_w
  // of N documents have w; of equals the first. Without a document, or without one that shares a word: the number of documents.
  size_t best(std::string_view query) const;
  size_t size() const { return size_; }

 private:
  size_t size_;
  std::unordered_map<std::string, std::vector<uint32_t>> having_;  // word → its documents, ascending
};

}  // namespace isentrope::data
