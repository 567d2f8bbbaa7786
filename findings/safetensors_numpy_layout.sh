#!/usr/bin/env bash
# One would expect that an array that is saved comes back as it was, or that saving refuses a layout it does not write.
# safetensors 0.8.0 writes the bytes of an array that is not C-contiguous in the order in which they lie in memory, under the shape that
# the array has: a transposed weight comes back with its values in other places, without a word. 0.7.0 wrote it right.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages safetensors==0.8.0 numpy==2.4.6
expect <<'END'
safetensors 0.8.0
transposed  [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
comes back  [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
made contiguous first, it comes back right: True
END
run <<'PY'
import numpy
import safetensors
from safetensors.numpy import load, save

array = numpy.arange(6, dtype=numpy.float32).reshape(2, 3).T
print("safetensors", safetensors.__version__)
print("transposed ", array.tolist())
print("comes back ", load(save({"w": array}))["w"].tolist())
print("made contiguous first, it comes back right:", bool((load(save({"w": numpy.ascontiguousarray(array)}))["w"] == array).all()))
PY
