// pairs/<phase>.jsonl: the pairs that a dpo phase drew as it began (csrc/rl/mined_pairs.h), one a line, and pairs/<phase>.json, what
// they were made of. The second is written last: where it stands and fits, a run that begins the phase again reads the pairs in the
// place of drawing them.
//
//   {"prompt": "3*4=", "chosen": "[3*4]12;A12", "rejected": "A11", "hard": false, "prompt_ids": […],
//    "chosen_ids": […], "chosen_given": [[5, 8]], "rejected_ids": […], "rejected_given": []}
//
// …_ids are the tokens that were said, of which those in the ranges of …_given (first, and one behind the last) are the environment's:
// read, and not learnt.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"
#include "csrc/rl/mined_pairs.h"

namespace isentrope::train {

// The lines of the file.
std::string pairs_text(const rl::MinedPairs& mined, const std::vector<data::Example>& examples,
                       const data::Tokenizer& tokenizer);

// The pairs of such lines, each the better example with the worse in `rejected`. Throws std::runtime_error with file and line where one is none, or has
// a token outside the vocabulary.
std::vector<data::Example> pairs_of_text(const std::string& text, const std::string& file, int64_t vocabulary);

struct PairsFile {
  std::string text;                     // of pairs/<phase>.jsonl
  std::map<std::string, double> stats;  // of rl::MinedPairs
};

// file: pairs/<phase>.jsonl; its folder is made. made_of: a digest of what the pairs are a function of.
void write_pairs(const std::string& file, const PairsFile& pairs, int64_t made_of);
// Nothing where there are none, or where they are not those that were written, of that.
std::optional<PairsFile> read_pairs(const std::string& file, int64_t made_of);
// As read_pairs, whatever they were made of: of a phase that goes on. Throws std::runtime_error where it returns nothing.
PairsFile pairs_of_phase(const std::string& file);

}  // namespace isentrope::train
