// The command line: what its words mean, and what is wrong with them.
#pragma once

namespace isentrope {

// Does what the words ask for. Returns the exit code of the process, 2 for words that are wrong: they are named on standard error
// with the nearest that there is. Throws what went wrong.
int run(int argc, char** argv);

}  // namespace isentrope
