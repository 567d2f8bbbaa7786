#!/bin/sh
# Runs an nvcc compilation; what ptxas says of each kernel (-Xptxas -v) goes to <object>.ptxas, the rest to stderr.
object=
previous=
for argument in "$@"; do
  [ "$previous" != -o ] || object=$argument
  previous=$argument
done
"$@" 2>"$object.stderr"
code=$?
ptxas_lines='^ptxas info|^    [0-9]+ bytes stack frame|^\$'
grep -E "$ptxas_lines" "$object.stderr" >"$object.ptxas"
grep -Ev "$ptxas_lines" "$object.stderr" >&2
rm -f "$object.stderr"
exit $code
