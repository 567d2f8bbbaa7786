# What the Python package holds beside its .py files, and where in it: `cmake --install BUILD --component python`.
# Where a package will lie is not known when it is built, and the torch that it was built against may be gone by then (pip
# deletes an isolated build's): libraries find one another, and torch, by their place beside the package.
# Included before the targets are made (for the run path); package_targets() is called after.
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
set(CMAKE_BUILD_RPATH ${TORCH_LIB_DIR})
set(CMAKE_INSTALL_RPATH "$ORIGIN;$ORIGIN/lib;$ORIGIN/../lib;$ORIGIN/../torch/lib;$ORIGIN/../../torch/lib")

function(package_targets)
  add_custom_target(python_package)
  # What a package says of its build, read without loading it (python/isentrope/_library.py, python/bin/isentrope).
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/_build.py @ONLY
       CONTENT "# What this package was built against.\nTORCH_VERSION = \"@TORCH_VERSION@\"\nTORCH_CUDA = \"@TORCH_CUDA@\"\n")
  install(FILES ${CMAKE_BINARY_DIR}/_build.py DESTINATION . COMPONENT python)
  # For C++ projects: find_package(Isentrope), #include <isentrope/ops.h>.
  install(FILES csrc/ops/ops.h DESTINATION include/isentrope COMPONENT python)
  install(FILES cmake/IsentropeConfig.cmake cmake/LibTorch.cmake DESTINATION lib/cmake/Isentrope COMPONENT python)
  foreach(target_place "isentrope_ops:lib" "isentrope_python:." "isentrope:bin")
    string(REPLACE ":" ";" target_place ${target_place})
    list(GET target_place 0 target)
    list(GET target_place 1 place)
    if(TARGET ${target})
      add_dependencies(python_package ${target})
      install(TARGETS ${target} COMPONENT python RUNTIME DESTINATION ${place} LIBRARY DESTINATION ${place})
    endif()
  endforeach()
endfunction()
