// Every method of policy learning, by place. A new one is one line here.
#pragma once
#include "csrc/methods/top_entropy.h"
#include "csrc/one_of.h"

namespace isentrope::methods {

using Weight = OneOf<  //
    TopEntropy         // arXiv 2506.01939
    >;

}  // namespace isentrope::methods
