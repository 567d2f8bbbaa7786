// English words whose forms are one word's: "was" and "be", "stopping" and "stops". By rule and a table of irregular forms; no dictionary.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace isentrope::data {

// The word itself, and what it may be an inflection of: of nouns -s and 's, of verbs -s, -ed and -ing, and irregular forms. Of a word that
// the table does not hold a rule may give several (hoped: hope; visited: visit, visite), of which what is no word does no harm: two
// words are taken for one where they have one of these in common. Words are of small letters; one with others than a … z is its only
// form. Degrees (-er, -est) are left alone, since -er is more often a noun's, and what a word means is not asked: a building and to build are one here.
std::vector<std::string> lemmas(std::string_view word);

// Whether two such lists share a word.
bool share_lemma(const std::vector<std::string>& a, const std::vector<std::string>& b);

}  // namespace isentrope::data
