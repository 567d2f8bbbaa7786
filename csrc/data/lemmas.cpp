#include "csrc/data/lemmas.h"

#include <algorithm>
#include <sstream>
#include <unordered_map>

namespace isentrope::data {
namespace {

// Of each word those forms that no rule tells, behind it.
constexpr const char* kIrregular = R"(
be am is are was were been being, have has had having, do does did done, go goes went gone, say said, make made,
get got gotten, see saw seen, know knew known, take took taken, come came, think thought, give gave given, find found,
tell told, become became, leave left, feel felt, bring brought, begin began begun, keep kept, hold held,
write wrote written, stand stood, hear heard, mean meant, meet met, run ran, pay paid, sit sat, speak spoke spoken,
lie lay lain lying, lead led, grow grew grown, lose lost, fall fell fallen, send sent, build built,
understand understood, draw drew drawn, break broke broken, spend spent, rise rose risen, drive drove driven,
buy bought, wear wore worn, choose chose chosen, seek sought, throw threw thrown, catch caught, deal dealt, win won,
forget forgot forgotten, fight fought, teach taught, eat ate eaten, sing sang sung, strike struck stricken, hang hung,
shake shook shaken, ride rode ridden, feed fed, shoot shot, drink drank drunk, arise arose arisen, fly flew flown,
sleep slept, beat beaten, light lit, bind bound, bear bore borne born, wake woke woken, hide hid hidden,
steal stole stolen, sell sold, swim swam swum, sweep swept, ring rang rung, bend bent, bite bit bitten,
blow blew blown, breed bred, burn burnt, cling clung, creep crept, dig dug, dream dreamt, dwell dwelt, flee fled,
fling flung, forbid forbade forbidden, forgive forgave forgiven, freeze froze frozen, grind ground, kneel knelt,
lay laid, leap leapt, learn learnt, lend lent, withdraw withdrew withdrawn, withhold withheld, overcome overcame,
undergo undergoes underwent undergone, undertake undertook undertaken, prove proven, sew sewn, show shown,
shrink shrank shrunk, sink sank sunk, slide slid, spin spun, spring sprang sprung, stick stuck, sting stung,
swear swore sworn, swell swollen, swing swung, tear tore torn, weave wove woven, weep wept, wind wound, die dying,
tie tying, man men, woman women, child children, person people, mouse mice, goose geese, foot feet, tooth teeth,
ox oxen, datum data, medium media, criterion criteria, phenomenon phenomena, analysis analyses, basis bases,
crisis crises, thesis theses, hypothesis hypotheses, axis axes, index indices, matrix matrices, vertex vertices,
appendix appendices
)";

// What looks like a form of another word and is none.
constexpr const char* kSame =
    "news series species this its his yes ours yours hers theirs always perhaps morning evening during "
    "nothing something anything everything";

using Forms = std::unordered_map<std::string, std::vector<std::string>>;

const Forms& irregular() {
  static const Forms forms = [] {
    Forms found;
    std::string lemma, form;
    std::istringstream lines(kIrregular);
    for (std::string one; std::getline(lines, one, ',');) {
      std::istringstream words(one);
      words >> lemma;
      while (words >> form) found[form].push_back(lemma);
    }
    for (std::istringstream words(kSame); words >> form;) found[form];
    return found;
  }();
  return forms;
}

bool is_vowel(char c) { return std::string_view("aeiou").find(c) != std::string_view::npos; }
bool has_vowel(std::string_view word) { return word.find_first_of("aeiouy") != std::string_view::npos; }

// A consonant behind one vowel and no other: a verb that ends so doubles its last letter before -ed and -ing, so that
// "us" and "hop" of "used" and "hoping" had an e.
bool doubles(std::string_view stem) {
  const size_t n = stem.size();
  return n >= 2 && !is_vowel(stem[n - 1]) && std::string_view("wxy").find(stem[n - 1]) == std::string_view::npos &&
         is_vowel(stem[n - 2]) && !has_vowel(stem.substr(0, n - 2));
}

// Of what stands before -ed or -ing.
void verbs(std::string_view stem, std::vector<std::string>& found) {
  const size_t n = stem.size();
  if (n < 2 || !has_vowel(stem) || (n == 2 && stem[1] == 'e')) return;  // king, bed, need
  const bool twice = stem[n - 1] == stem[n - 2] && !is_vowel(stem[n - 1]);
  if (twice) found.emplace_back(stem.substr(0, n - 1));
  if (!doubles(stem)) found.emplace_back(stem);
  if (!twice) found.push_back(std::string(stem) + "e");
}

void plurals(std::string_view word, std::vector<std::string>& found) {
  const std::string_view stem = word.substr(0, word.size() - 1);
  if (stem.size() < 2 || !has_vowel(stem) || stem.ends_with('s') || stem.ends_with('u') || stem.ends_with('i'))
    return;  // pass, bus, basis
  found.emplace_back(stem);
  if (stem.ends_with("ie") && stem.size() > 3) found.push_back(std::string(stem.substr(0, stem.size() - 2)) + "y");
  for (const std::string_view end : {"se", "xe", "ze", "che", "she", "oe"})
    if (stem.ends_with(end)) found.emplace_back(stem.substr(0, stem.size() - 1));
  if (stem.ends_with("ve")) {
    const std::string before(stem.substr(0, stem.size() - 2));
    found.insert(found.end(), {before + "f", before + "fe"});
  }
}

}  // namespace

std::vector<std::string> lemmas(std::string_view word) {
  std::vector<std::string> found{std::string(word)};
  for (const std::string_view end : {"'s", "’s"})
    if (word.ends_with(end)) word.remove_suffix(end.size()), found.emplace_back(word);
  if (word.empty() || word.find_first_not_of("abcdefghijklmnopqrstuvwxyz") != std::string_view::npos) return found;
  if (const auto known = irregular().find(std::string(word)); known != irregular().end()) {
    found.insert(found.end(), known->second.begin(), known->second.end());
    return found;
  }
  if (word.ends_with('s'))
    plurals(word, found);
  else if (word.ends_with("ied") && word.size() > 4)
    found.push_back(std::string(word.substr(0, word.size() - 3)) + "y");
  else if (word.ends_with("ed"))
    verbs(word.substr(0, word.size() - 2), found);
  else if (word.ends_with("ing"))
    verbs(word.substr(0, word.size() - 3), found);
  return found;
}

bool share_lemma(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  return std::ranges::find_first_of(a, b) != a.end();
}

}  // namespace isentrope::data
