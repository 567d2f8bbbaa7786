#!/usr/bin/env bash
# One would expect a grader of mathematics to want the result. math-verify 0.9.0 compares values, and a sum has the value of its result: the
# problem copied out is graded right where its text ends in the sum, most of the time even as the whole question. A policy
# that is rewarded by it can learn to repeat the question.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 sympy==1.14.0
expect <<'END'
math-verify 0.9.0
gold 7, answer "7": True
gold 7, answer "3 + 4": True
gold 7, answer "3 + 4 =": True
gold 7, answer "8": False
gold -4, answer "4 - 1 - 7": True
END
run <<'PY'
import importlib.metadata

from math_verify import parse, verify

print("math-verify", importlib.metadata.version("math-verify"))
for gold, answer in (("7", "7"), ("7", "3 + 4"), ("7", "3 + 4 ="), ("7", "8"), ("-4", "4 - 1 - 7")):
    print(f'gold {gold}, answer "{answer}":', verify(parse(gold), parse(answer)))
PY
