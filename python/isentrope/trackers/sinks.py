"""The trackers that a user's own packages provide. Tags are those of TensorBoard (isentrope.tensorboard.scalars), by the steps of the
run over all its phases. Where data go (offline, a server, a folder, an account) is for the environment variables of each package to say.

After the APIs of wandb 0.31, mlflow 3.17 and trackio 0.43.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from isentrope.tensorboard import scalars

if TYPE_CHECKING:
    from isentrope.trackers import Run

PROJECT = "isentrope"  # where neither metrics.project nor the environment names one


def step_of(line: dict[str, Any]) -> int:
    return int(line.get("global_step", line["step"]))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """{"run.seed": 1, "phases.sft.steps": …}: a phase goes by its name."""
    if isinstance(value, dict) and (value or not path):
        parts = value.items()
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        parts = {str(one.get("name", i)): one for i, one in enumerate(value)}.items()
    else:
        return {path: value}
    return {name: leaf for key, part in parts for name, leaf in flat(part, f"{path}.{key}" if path else str(key)).items()}


class Wandb:
    """WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR and the like are read by the package."""

    module = "wandb"

    def __init__(self, run: Run) -> None:
        self.of = run
        self.id = run.id_of("wandb")
        self.run: Any = None

    def start(self) -> None:
        import wandb

        self.run = wandb.init(
            project=self.of.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or self.of.name,
            id=self.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(self.of.folder),
            config=self.of.config(),
        )
        # Steps of its own would refuse lines that a resumed run sends again; by this axis they stand where they belong.
        self.run.define_metric("global_step")
        self.run.define_metric("*", step_metric="global_step")

    def write(self, line: dict[str, Any]) -> None:
        self.run.log({**scalars(line), "global_step": step_of(line)})

    def finish(self) -> None:
        self.run.finish()


class Mlflow:
    """MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like are read by the package."""

    module = "mlflow"
    TOGETHER = 1000  # metrics of a call, and
    PARAMS = 100  # parameters: limits of mlflow's servers
    LONGEST = 500  # letters of a parameter

    def __init__(self, run: Run) -> None:
        self.of = run
        self.known = run.kept.get("mlflow", {}).get("id", "")

    def start(self) -> None:
        import mlflow

        self.mlflow: Any = mlflow
        if self.of.project or not (os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")):
            mlflow.set_experiment(self.of.project or PROJECT)
        if self.known:
            mlflow.start_run(run_id=self.known)
            return  # parameters cannot be changed
        run = mlflow.start_run(run_name=self.of.name)
        self.of.kept["mlflow"] = {"id": run.info.run_id}
        self.of.note()
        params = [(self.named(key), str(value)[: self.LONGEST]) for key, value in flat(self.of.config()).items()]
        for i in range(0, len(params), self.PARAMS):
            mlflow.log_params(dict(params[i : i + self.PARAMS]))

    @staticmethod
    def named(tag: str) -> str:
        """As mlflow allows: letters, digits, _-./ and spaces. pass@8 is pass_at_8."""
        return re.sub(r"[^\w\-./ ]", "_", tag.replace("@", "_at_"))

    def write(self, line: dict[str, Any]) -> None:
        values = [(self.named(tag), value) for tag, value in scalars(line).items()]
        for i in range(0, len(values), self.TOGETHER):
            self.mlflow.log_metrics(dict(values[i : i + self.TOGETHER]), step=step_of(line))

    def finish(self) -> None:
        self.mlflow.end_run()


class Trackio:
    """TRACKIO_DIR, TRACKIO_SPACE_ID and the like are read by the package, TRACKIO_PROJECT here. A run goes by its name, which has the id
    behind it, since a project may hold others of the same folder name."""

    module = "trackio"

    def __init__(self, run: Run) -> None:
        self.of = run
        self.name = f"{run.name}-{run.id_of('trackio')}"
        self.run: Any = None

    def start(self) -> None:
        import trackio

        self.run = trackio.init(
            project=self.of.project or os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=self.name,
            resume="allow",
            config=flat(self.of.config()),
        )

    def write(self, line: dict[str, Any]) -> None:
        self.run.log(scalars(line), step=step_of(line))

    def finish(self) -> None:
        self.run.finish()
