// Where a person reads: standard output in the program, sys.stdout in Python.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>

namespace isentrope::train {

class Screen {
 public:
  virtual ~Screen() = default;
  virtual bool terminal() const = 0;               // it has a cursor that goes back to the beginning of a line
  virtual int64_t columns() const = 0;             // of a terminal; 0: not known
  virtual int write(const std::string& text) = 0;  // returns 0, or the errno of what failed
  virtual void warn(const std::string& text) = 0;  // beside it
};

// Warnings go to standard error.
class FileScreen : public Screen {
 public:
  explicit FileScreen(std::FILE* out = stdout) : out_(out) {}
  bool terminal() const override;
  int64_t columns() const override;
  int write(const std::string& text) override;
  void warn(const std::string& text) override;

 private:
  std::FILE* out_;
};

}  // namespace isentrope::train
