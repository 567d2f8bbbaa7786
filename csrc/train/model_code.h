// python/isentrope/modeling_isentrope.py, which transformers runs to open a checkpoint that no model of its own computes.
#pragma once

namespace isentrope::train {

inline constexpr const char* kModelCodeFile = "modeling_isentrope.py";
extern const char* const kModelCode;

}  // namespace isentrope::train
