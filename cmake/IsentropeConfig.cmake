# find_package(Isentrope) of a C++ project: the target isentrope::ops, with torch behind it.
#
#   cmake -DCMAKE_PREFIX_PATH=$(python -c 'import isentrope; print(isentrope.cmake_prefix_path)') -DPython_EXECUTABLE=$(which python) …
#   target_link_libraries(mine PRIVATE isentrope::ops)     #include <isentrope/ops.h>
#
# torch is that of Python_EXECUTABLE, found without a CUDA toolkit (LibTorch.cmake, beside this file).
get_filename_component(isentrope_package ${CMAKE_CURRENT_LIST_DIR}/../../.. ABSOLUTE)
include(${CMAKE_CURRENT_LIST_DIR}/LibTorch.cmake)
file(STRINGS ${isentrope_package}/_build.py isentrope_torch REGEX "^TORCH_VERSION")
string(REGEX MATCH "[0-9]+\\.[0-9]+" isentrope_torch "${isentrope_torch}")
if(NOT TORCH_VERSION MATCHES "^${isentrope_torch}\\.")
  message(FATAL_ERROR "Isentrope was built for torch ${isentrope_torch}, and ${Python_EXECUTABLE} has ${TORCH_VERSION}. Build "
                      "it again for this one: pip install --no-build-isolation --no-deps --force-reinstall <its source tree>")
endif()
if(NOT TARGET isentrope::ops)
  add_library(isentrope::ops SHARED IMPORTED GLOBAL)
  set_target_properties(isentrope::ops PROPERTIES
    IMPORTED_LOCATION ${isentrope_package}/lib/libisentrope_ops.so
    INTERFACE_COMPILE_FEATURES cxx_std_20
    INTERFACE_INCLUDE_DIRECTORIES ${isentrope_package}/include)
  target_link_libraries(isentrope::ops INTERFACE torch::torch)
  target_link_options(isentrope::ops INTERFACE -Wl,-rpath,${TORCH_LIB_DIR})
endif()
