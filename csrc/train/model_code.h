// The code of a checkpoint that no model of transformers computes, which transformers runs to open it: python/isentrope/modeling_isentrope.py
// and what that imports.
#pragma once

namespace isentrope::train {

struct ModelCode {
  const char *file, *text;
};
extern const ModelCode kModelCode[2];

}  // namespace isentrope::train
