// The metrics of a run for other programs: python/isentrope/trackers, one process for all of them, gets the lines of metrics.jsonl and
// gives them to TensorBoard (<run>/tensorboard), wandb, mlflow and trackio.
#pragma once
#include <sys/types.h>

#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/train/representation_config.h"

namespace isentrope::train {

struct MetricsConfig {
  bool tensorboard = false;
  std::vector<std::string> trackers = {};
  std::string project = "";
  double timeout_s = 60;
  int64_t gradient_noise_scale = 0;
  RepresentationConfig representation = {};

  std::string problem() const;
  // tensorboard and the trackers, by the names that the writer knows.
  std::vector<std::string> sinks() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("tensorboard", tensorboard,
      "Write the metrics to <run.dir>/tensorboard too, for TensorBoard; takes the Python package tensorboard.");
    v("trackers", trackers, "Give the metrics to these as well; each takes the Python package of its name.",
      one_of({"wandb", "mlflow", "trackio"}));
    v("project", project,
      "Project of wandb and trackio, experiment of mlflow; empty for WANDB_PROJECT, TRACKIO_PROJECT or "
      "MLFLOW_EXPERIMENT_NAME, "
      "or where they say nothing isentrope.");
    v("timeout_s", timeout_s, "Seconds that trackers may take at the end to send what they have.", above_to(0, 1e6));
    v("gradient_noise_scale", gradient_noise_scale,
      "Steps between those that measure the gradient noise scale (docs/metrics.md), in updates that batch.micro_tokens "
      "or several ranks cut; it reads the gradients once more. 0: none does.",
      at_least(0));
    v("representation", representation,
      "What is measured now and then of the last layer's states and of a few weights, by the formulas of isentrope "
      "diagnose.");
  }
};

// The interpreter that the package is installed in: what ISENTROPE_PYTHON names, or python3.
std::string python_program();

class Trackers {
 public:
  // Starts the writer for the folder of a run; it begins with what config.yaml and metrics.jsonl hold already: of TensorBoard all, in
  // place of older event files, of the others what they do not have yet. fresh: the run begins, and what the folder knows of trackers
  // is another's. Returns when packages and files are there; throws std::runtime_error with what is not.
  Trackers(const MetricsConfig& config, const std::string& run, bool fresh);
  ~Trackers();  // waits until all is written, and for trackers timeout_s
  Trackers(const Trackers&) = delete;
  Trackers& operator=(const Trackers&) = delete;

  // A line of metrics.jsonl. Where the writer has died, one warning is printed and training goes on without it; what fails of a
  // tracker, the writer itself warns of.
  void write(const std::string& line);

 private:
  int end();  // closes the connection and waits; returns the status of the process

  std::string targets_;  // for messages
  pid_t process_ = -1;
  int socket_ = -1;  // −1 once the writer has ended
};

}  // namespace isentrope::train
