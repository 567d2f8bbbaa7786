#!/usr/bin/env bash
# One would expect \p{N}{1,3}+ to be possessive, as in PCRE2, Java, Python's re and the package regex: at most three digits, and none
# given back. tokenizers 0.23.3 takes the + for one more repetition: runs of digits of any length stay whole. Patterns of published
# tokenizers have such ranges; who splits with another engine splits numbers otherwise.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages tokenizers==0.23.3 regex==2026.11.19
expect <<'END'
tokenizers 0.23.3
tokenizers  ['1234567']
regex       ['123', '456', '7']
without +   ['123', '456', '7']
END
run <<'PY'
import regex
import tokenizers
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split


def split(pattern):
    return [text for text, _ in Split(Regex(pattern), "isolated").pre_tokenize_str("1234567")]


print("tokenizers", tokenizers.__version__)
print("tokenizers ", split(r"\p{N}{1,3}+"))
print("regex      ", regex.findall(r"\p{N}{1,3}+", "1234567"))
print("without +  ", split(r"\p{N}{1,3}"))
PY
