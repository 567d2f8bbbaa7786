# PCRE2 as pcre2::pcre2, where its header and its library are found; sets PCRE2_FOUND. Its own CMake package is left aside: Debian
# and conda do not ship it.
find_path(PCRE2_INCLUDE_DIR pcre2.h)
find_library(PCRE2_LIBRARY NAMES pcre2-8)
mark_as_advanced(PCRE2_INCLUDE_DIR PCRE2_LIBRARY)
if(PCRE2_INCLUDE_DIR AND PCRE2_LIBRARY)
  set(PCRE2_FOUND TRUE)
  if(NOT TARGET pcre2::pcre2)
    add_library(pcre2::pcre2 UNKNOWN IMPORTED GLOBAL)
    set_target_properties(pcre2::pcre2 PROPERTIES IMPORTED_LOCATION ${PCRE2_LIBRARY}
                                                  INTERFACE_INCLUDE_DIRECTORIES ${PCRE2_INCLUDE_DIR})
  endif()
else()
  set(PCRE2_FOUND FALSE)
endif()
