#include "csrc/data/text_stream.h"

#include <algorithm>

#include "csrc/message.h"

namespace isentrope::data {
namespace {

// Bytes at the end of text that may yet become a character: its first byte and fewer behind it than it takes.
size_t begun(const std::string& text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t whole = byte >= 0xF0 && byte < 0xF5 ? 4 : byte >= 0xE0 && byte < 0xF0 ? 3 : byte >= 0xC2 ? 2 : 1;
    if (back >= whole || byte >= 0xF5) return 0;
    // The second byte decides whether more can follow: no longer form than needed, no half of a surrogate pair.
    std::string full = text.substr(text.size() - back);
    for (const char rest : {'\x80', '\xBF'}) {
      std::string one = full;
      one.resize(whole, rest);
      if (utf8_size(one, 0) == whole) return back;
    }
    return 0;
  }
  return 0;
}

}  // namespace

std::string TextStream::push(int64_t id) {
  held_ += tokenizer_.text_of(id, first_);
  first_ = false;
  const size_t kept = begun(held_);
  std::string text = held_.substr(0, held_.size() - kept);
  held_.erase(0, text.size());
  return text;
}

std::string TextStream::flush() {
  std::string text;
  text.swap(held_);
  return text;
}

std::vector<std::string> texts_of(const Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  TextStream stream(tokenizer);
  std::vector<std::string> texts;
  for (const int64_t id : ids) texts.push_back(stream.push(id));
  if (!texts.empty()) texts.back() += stream.flush();
  return texts;
}

}  // namespace isentrope::data
