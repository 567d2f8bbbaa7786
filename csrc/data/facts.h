// A retriever without an index: of some documents that which shares most with a query, each word it shares counted by how few documents
// have it. Deterministic. Standard library only.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace isentrope::data {

// The words of a text, told apart by blanks.
std::vector<std::string> words_of(std::string_view text);

// The document with the largest sum of ln(N / n_w) over the words w that the query and the document share, each counted once, where n_w of
// N documents have w; of equals the first. Without a document, or without one that shares a word: documents.size().
size_t retrieve(const std::vector<std::string>& documents, std::string_view query);

}  // namespace isentrope::data
