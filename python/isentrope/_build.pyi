"""Written by CMake: what the package was built for."""

TORCH_VERSION: str
TORCH_CUDA: str
