// The data of a phase: one of the kinds of source, chosen by which key is written.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "csrc/data/example.h"
#include "csrc/data/jsonl.h"
#include "csrc/data/tint.h"
#include "csrc/field.h"

namespace isentrope::data {

struct DataConfig {
  std::optional<TintConfig> tint;
  std::optional<JsonlConfig> jsonl;
  std::string overlong = "error";

  template <class Visitor>
  void visit(Visitor& v) {
    v("tint", tint, "Generated integer problems with traces.");
    v("jsonl", jsonl, "A file of prompts and completions.");
    v("overlong", overlong,
      "An example longer than the context: stop the run, leave it out, or cut its completion.",
      one_of({"error", "drop", "truncate"}));
  }
  std::string problem() const;
};

// Throws as the constructors of the sources do.
std::unique_ptr<ExampleSource> make_source(const DataConfig& config, uint64_t seed, Split split);

}  // namespace isentrope::data
