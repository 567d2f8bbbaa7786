// The command line tool: begin, run, close.
#include <cstdio>

#include "csrc/command_line.h"
#include "csrc/message.h"
#include "csrc/train/block_cache.h"
#include "csrc/train/process.h"

int main(int argc, char** argv) {
  isentrope::train::begin_process();
  isentrope::train::keep_tensor_memory();
  try {
    const int code = isentrope::run(argc, argv, {.program = argc > 0 ? argv[0] : "isentrope"});
    isentrope::train::end_output();
    return code;
  } catch (...) {
    std::fprintf(stderr, "isentrope: %s\n", isentrope::message_of().c_str());
    return 1;
  }
}
