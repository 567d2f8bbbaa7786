// The pre-tokenizer and the normaliser of tokenizer.json: from a piece of text to words. Pure C++.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/data/split_pattern.h"

namespace isentrope::data {

// Normalisers: Prepend, Replace, Strip, the normal forms, Lowercase and StripAccents (csrc/data/unicode_normal.h) and a Sequence of
// them; null.
class Normalizer {
 public:
  // Throws std::runtime_error that names what is not supported.
  explicit Normalizer(const nlohmann::json& json);
  bool empty() const { return steps_.empty(); }
  // The text, or out with what it becomes. Both are UTF-8. Throws std::invalid_argument for text that a step does not take.
  // prepend: false for text that goes on behind other text, which Prepend leaves alone.
  std::string_view run(std::string_view text, std::string& out, std::string& spare, SplitPattern::Room& room,
                       bool prepend = true) const;

 private:
  struct Step {
    std::string kind, pattern, content;
    std::vector<SplitPattern> regex;   // of Replace, one or none
    bool left = false, right = false;  // of Strip
  };
  void read(const nlohmann::json& json);
  std::vector<Step> steps_;
};

// Pre-tokenizers: Split, Digits, Metaspace, ByteLevel (last, if at all) and a Sequence of them; null.
class PreTokenizer {
 public:
  // One for each thread.
  struct Room {
    SplitPattern::Room match;
    std::vector<std::string> texts;  // of steps that change the text
  };
  // Throws std::runtime_error that names what is not supported.
  explicit PreTokenizer(const nlohmann::json& json);
  // Words are bytes in GPT-2's alphabet, not characters.
  bool byte_level() const { return byte_level_; }

  // Where a piece begins: where the whole text does, elsewhere, or behind text that it goes on from, and then nothing is put before it.
  enum class Place { start, within, behind };

  // Calls word(text) for each word of a piece, in order.
  template <class Word>
  void split(std::string_view text, Place place, Room& room, Word&& word) const {
    room.texts.resize(steps_.size());
    step(0, text, place, room, word);
  }

 private:
  enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
  struct Step {
    enum Kind { split, metaspace, byte_level } kind = split;
    std::vector<SplitPattern> pattern;  // one; none where nothing is split
    Behavior behavior = Behavior::isolated;
    bool invert = false;
    bool prefix = false;       // a space, or the replacement, goes before text that does not begin with it
    bool first_alone = false;  // … where the whole text begins alone
    std::string replacement;   // of Metaspace
  };
  void read(const nlohmann::json& json);
  void read_split(const nlohmann::json& json);
  void read_metaspace(const nlohmann::json& json);
  static std::string_view prepared(const Step& step, std::string_view text, Place place, std::string& room);

  template <class Word>
  void step(size_t number, std::string_view text, Place place, Room& room, Word& word) const {
    if (text.empty()) return;
    if (number == steps_.size()) return word(text);
    const Step& now = steps_[number];
    text = prepared(now, text, place, room.texts[number]);
    const auto emit = [&](size_t begin, size_t end) {
      step(number + 1, text.substr(begin, end - begin), begin == 0 ? place : Place::within, room, word);
    };
    if (now.pattern.empty()) return emit(0, text.size());
    Pieces pieces(now.behavior);
    size_t done = 0, from = 0, begin = 0, end = 0;
    bool found = false;
    while (from <= text.size() && now.pattern[0].find(text, from, room.match, begin, end)) {
      if (begin == end && end == done && found) {  // no empty match where the last one ended
        from = end + 1;
        while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) ++from;
        continue;
      }
      if (done < begin) pieces.add(done, begin, now.invert, emit);
      pieces.add(begin, end, !now.invert, emit);
      done = from = end;
      found = true;
    }
    if (done < text.size()) pieces.add(done, text.size(), now.invert, emit);
    pieces.finish(emit);
  }

  // Puts matches and what lies between them together as the behaviour says.
  class Pieces {
   public:
    explicit Pieces(Behavior behavior) : behavior_(behavior) {}
    template <class Emit>
    void add(size_t begin, size_t end, bool match, Emit& emit) {
      if (behavior_ == Behavior::isolated) return emit(begin, end);
      if (behavior_ == Behavior::removed) return match ? void() : emit(begin, end);
      const bool joins = behavior_ == Behavior::contiguous         ? match == was_match_
                         : behavior_ == Behavior::merged_with_next ? was_match_ && !match
                                                                   : match && !was_match_;
      if (held_ && joins) {
        end_ = end;
      } else {
        finish(emit);
        begin_ = begin, end_ = end, held_ = true;
      }
      was_match_ = match;
    }
    template <class Emit>
    void finish(Emit& emit) {
      if (held_) emit(begin_, end_);
      held_ = false;
    }

   private:
    Behavior behavior_;
    bool held_ = false, was_match_ = false;
    size_t begin_ = 0, end_ = 0;
  };

  bool byte_level_ = false;
  std::vector<Step> steps_;
};

}  // namespace isentrope::data
