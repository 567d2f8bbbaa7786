// The metrics of a run as TensorBoard event files: python/isentrope/tensorboard.py, in a process of its own, writes
// <run>/tensorboard from the lines of metrics.jsonl.
#pragma once
#include <sys/types.h>

#include <string>

namespace isentrope::train {

// The interpreter that the package is installed in: what ISENTROPE_PYTHON names, or python3.
std::string python_program();

class TensorBoard {
 public:
  // Starts the writer for the folder of a run; it begins with what config.yaml and metrics.jsonl hold already, in place
  // of older event files. Returns when it can write; throws std::runtime_error with what it lacks.
  explicit TensorBoard(const std::string& run);
  ~TensorBoard();  // waits until all is written
  TensorBoard(const TensorBoard&) = delete;
  TensorBoard& operator=(const TensorBoard&) = delete;

  // A line of metrics.jsonl. Where the writer has died, one warning is printed and training goes on without it.
  void write(const std::string& line);

 private:
  int end();  // closes the connection and waits; returns the status of the process

  std::string run_;
  pid_t process_ = -1;
  int socket_ = -1;  // −1 once the writer has ended
};

}  // namespace isentrope::train
