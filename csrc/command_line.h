// What the words of the command line mean, and what is wrong with them.
#pragma once
#include <CLI/CLI.hpp>
#include <optional>

namespace isentrope {

// Parses the words. Returns the exit code where that is all there is to do: 0 after --help, 2 after words that are wrong, which are
// named on standard error with the nearest that there is.
std::optional<int> parse(CLI::App& app, int argc, char** argv);

}  // namespace isentrope
