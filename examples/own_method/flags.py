"""Prints what a compiler needs for a library of torch operators."""

import torch
from torch.utils.cpp_extension import include_paths, library_paths

print(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", *(f"-isystem {path}" for path in include_paths()),
      *(f"-L{path} -Wl,-rpath,{path}" for path in library_paths()), "-lc10 -ltorch_cpu")  # fmt: skip
