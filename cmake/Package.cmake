# What the Python package holds beside its .py files, and where in it: `cmake --install BUILD --component python`.
# The folder of a run is not known when it is built, so libraries find one another by their place in the package.
# Included before the targets are made (for the run path); package_targets() is called after.
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN;$ORIGIN/lib;$ORIGIN/../lib;${TORCH_LIB_DIR}")

function(package_targets)
  add_custom_target(python_package)
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
