// The command line tool: begin, run, close.
#include <malloc.h>

#include <cstdio>

#include "csrc/command_line.h"
#include "csrc/message.h"
#include "csrc/train/process.h"

int main(int argc, char** argv) {
  isentrope::train::begin_process();
  // A step frees and asks for the same blocks again: keep them, instead of giving them back to the system and paying
  // their page faults anew.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  try {
    const int code = isentrope::run(argc, argv);
    isentrope::train::end_output();
    return code;
  } catch (...) {
    std::fprintf(stderr, "isentrope: %s\n", isentrope::message_of().c_str());
    return 1;
  }
}
