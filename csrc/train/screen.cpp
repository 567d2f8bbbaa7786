#include "csrc/train/screen.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>

namespace isentrope::train {

bool FileScreen::terminal() const {
  const char* term = std::getenv("TERM");
  return ::isatty(::fileno(out_)) && term && std::string_view(term) != "dumb";
}

int64_t FileScreen::columns() const {
  struct winsize window {};
  return ::ioctl(::fileno(out_), TIOCGWINSZ, &window) == 0 ? window.ws_col : 0;
}

int FileScreen::write(const std::string& text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), out_) == text.size() && std::fflush(out_) == 0) return 0;
  return errno ? errno : EIO;
}

void FileScreen::warn(const std::string& text) { std::fprintf(stderr, "warning: %s\n", text.c_str()); }

}  // namespace isentrope::train
