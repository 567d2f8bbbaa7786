// What the updates of a step say of it together. Of training_loop.cpp alone.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace isentrope::train {

// The figures of a step out of those of its updates: the largest of a maximum, the mean over updates of what an update has one
// of (its loss, its norm), and of all else the mean over the tokens learnt.
class UpdateFigures {
 public:
  void add(std::map<std::string, double> stats, double tokens) {
    for (const auto& [name, value] : stats) {
      const bool of_update =
          name == "loss" || name == "grad_norm" || name == "qk_clip/heads" || name == "added_noise/ratio";
      const double w = of_update ? 1 : tokens;
      if (w == 0) continue;
      auto& [figure, weight] = figures_[name];
      weight += w;
      if (name.ends_with("/max"))
        figure = weight > w ? std::max(figure, value) : value;
      else
        figure += (value - figure) * (w / weight);  // a running mean: equal values stay what they are
    }
    learnt_ += tokens;
    ++updates_;
  }
  // Takes the place of what the source said of its rollouts; where no token was learnt there is no mean over them.
  void into(std::map<std::string, double>& values) const {
    if (updates_ > 0 && learnt_ == 0)
      for (const char* name : {"entropy/mean", "entropy/std"}) values.erase(name);
    for (const auto& [name, figure] : figures_) values[name] = figure.first;
  }

 private:
  std::map<std::string, std::pair<double, double>> figures_;  // name → mean or largest so far, its weight
  double learnt_ = 0;
  int64_t updates_ = 0;
};

}  // namespace isentrope::train
