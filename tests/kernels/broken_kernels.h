// Kernels broken on purpose, one a class of defect, each with its repair: what the SIMT machine must catch, and what it
// must leave alone.
#pragma once
#include <ostream>
#include <vector>

namespace isentrope::testing {

struct Defect {
  const char* name;    // also marks the line in broken_kernels.cu that the report must name: "// defect: <name>"
  const char* report;  // how one of its reports must begin
  bool always;         // caught without the checker too
  void (*run)(bool repaired);
};

inline void PrintTo(const Defect& defect, std::ostream* out) { *out << defect.name; }

const std::vector<Defect>& defects();

}  // namespace isentrope::testing
