# Whether a run can have several ranks: torch's header of Gloo includes Gloo's own, which torch does not ship (Debian: libgloo-dev, of
# which nothing is linked). Sets ISENTROPE_RANKS, the definitions of csrc/train/distributed.cpp; Cuda.cmake says it of the build.
find_path(GLOO_INCLUDE_DIR gloo/algorithm.h)
find_file(TORCH_GLOO_HEADER torch/csrc/distributed/c10d/ProcessGroupGloo.hpp PATHS ${torch_includes} NO_DEFAULT_PATH)
mark_as_advanced(GLOO_INCLUDE_DIR TORCH_GLOO_HEADER)
set(ISENTROPE_RANKS "")
if(GLOO_INCLUDE_DIR AND TORCH_GLOO_HEADER)
  set(ISENTROPE_RANKS ISENTROPE_GLOO)
endif()
