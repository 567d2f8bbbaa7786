// The program as a process: its descriptors, its signals, and what it writes to standard output.
#pragma once
#include <string>
#include <string_view>

namespace isentrope::train {

// The first thing in main. Opens /dev/null on those of the descriptors 0, 1, 2 that are closed: the next file to be opened would
// get their number, and the text that is meant for them. Makes errors of the signals SIGPIPE and SIGXFSZ, which end a process
// at a write to a pipe without a reader and at a limit on the size of files. Keeps memory that is freed.
void begin_process();

// The exit code of a program that failed for now, and is to be tried again (sysexits.h).
constexpr int kTryAgain = 75;

// While there is one, SIGINT, SIGTERM and SIGHUP ask for a stop, and are told by received(). SIGHUP stays ignored where it was
// (nohup). A second SIGINT or SIGTERM ends the process at once. It counts as a second one from a tenth of a second on, for
// `timeout` and others send theirs to the process and once more to its group; a second SIGHUP, of which a closed terminal sends
// several, ends nothing. Nor does a SIGTERM behind a SIGTERM under torchrun or Slurm: both send it to a process that the other, or
// the cluster's pre-emption, has told already, and end with SIGKILL what takes too long.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  static int received();                                     // the signal that asked to stop; 0: none has
  static int exit_code(int signal) { return 128 + signal; }  // as shells tell of a process that a signal ended
};

// Seconds since the system started this process.
double seconds_of_process();

// Writes all of the text to standard output, or throws std::runtime_error with the reason. A reader that has gone wants no more:
// that is no error.
void print(std::string_view text);

// From here on standard output and standard error go to the end of the file, which is made with its folder.
void write_output_to(const std::string& file);

// Closes standard output; some file systems tell only then that what was written is lost. Throws as print() does.
void end_output();

}  // namespace isentrope::train
