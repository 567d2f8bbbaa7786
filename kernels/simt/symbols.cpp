// File and line of a code address: from libbacktrace in the process, else from the addr2line program, else the bare
// address within the executable.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "kernels/simt/machine.h"

#if defined(SIMT_LIBBACKTRACE)
#include <backtrace.h>
#endif

extern "C" const char __executable_start __attribute__((weak));

namespace isentrope::simt {
namespace {

using Frames = std::vector<std::string>;  // innermost first

#if defined(SIMT_LIBBACKTRACE)
Frames frames_of(const void* pc) {
  static backtrace_state* state = backtrace_create_state(nullptr, 1, nullptr, nullptr);
  Frames frames;
  const auto add = [](void* data, uintptr_t, const char* file, int line, const char*) {
    if (file) static_cast<Frames*>(data)->push_back(std::string(short_path(file)) + ":" + std::to_string(line));
    return 0;
  };
  backtrace_pcinfo(
      state, reinterpret_cast<uintptr_t>(pc) - 1, add, [](void*, const char*, int) {}, &frames);
  return frames;
}
#else
Frames frames_of(const void* pc) {
  Frames frames;
  char command[128];
  std::snprintf(command, sizeof command, "addr2line -i -e /proc/%d/exe %#tx 2>/dev/null", static_cast<int>(getpid()),
                static_cast<const char*>(pc) - &__executable_start - 1);
  if (FILE* pipe = popen(command, "r")) {
    char text[1024];
    while (std::fgets(text, sizeof text, pipe)) {
      std::string frame = text;
      frame.resize(std::min(frame.find_first_of(" \n"), frame.size()));  // drops " (discriminator n)"
      if (frame.find("?") == std::string::npos) frames.push_back(short_path(frame.c_str()));
    }
    pclose(pipe);
  }
  return frames;
}
#endif

// Frames of the layer say how, not where: they are left out as long as others remain.
bool of_the_layer(const std::string& frame) { return frame.rfind("gpu/", 0) == 0 || frame.rfind("simt/", 0) == 0; }

}  // namespace

std::string source_of(const void* pc) {
  static std::map<const void*, std::string> known;
  std::string& text = known[pc];
  if (!text.empty()) return text;
  for (const bool all : {false, true}) {
    for (const std::string& frame : frames_of(pc))
      if (all || !of_the_layer(frame)) text += (text.empty() ? "" : " < ") + frame;
    if (!text.empty()) return text;
  }
  char address[96];
  std::snprintf(address, sizeof address, "executable + %#tx (no line: build with -g, install binutils)",
                static_cast<const char*>(pc) - &__executable_start - 1);
  return text = address;
}

}  // namespace isentrope::simt
