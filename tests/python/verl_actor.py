"""Updates of verl's own actor (TrainingWorker, FSDP2) on the CPU: a program for test_integrations_verl.py, in a process of its own.

    python verl_actor.py FOLDER CASES.json        under torchrun for several ranks

FOLDER holds a model. Each case {"loss": …, "policy_loss": {…}, "entropy_coeff": …, "fused": …, "external_lib": …, "advantage_factor": [[…]],
"clip_ratio_c": …, "batch": file of tensors, "temperature": …, "optimizer": {…}} is a new
worker that makes two updates of the same batch; its metrics, gradients and weights are written to FOLDER/CASE.pt by rank 0.

verl knows no CPU as a platform and starts its FSDP engine on "cuda" and "npu" alone. Its registry of platforms takes another one, and
VERL_ENGINE_DEVICE is its switch for the engine: nothing of verl is replaced.
"""

import functools
import json
import os
import sys
from pathlib import Path

import torch
from verl_batch import tensors

for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
    os.environ.setdefault(name, value)
os.environ.update(VERL_PLATFORM="cpu", VERL_ENGINE_DEVICE="cuda", HF_HUB_OFFLINE="1")

from verl.plugin.platform.platform_manager import PlatformCUDA, PlatformRegistry, set_platform  # noqa: E402


@PlatformRegistry.register("cpu")
class Cpu(PlatformCUDA):
    device_name, vendor_name, device_module = "cpu", "none", torch.cpu

    def is_available(self):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    synchronize = set_device

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def empty_cache(self):
        pass

    def communication_backend_name(self):
        return "gloo"


set_platform(Cpu())
for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):  # verl logs them
    if not hasattr(torch.cpu, name):
        setattr(torch.cpu, name, lambda *_: 0)

from verl.trainer.config import CheckpointConfig  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.workers.config import FSDPActorConfig, HFModelConfig, PolicyLossConfig, TrainingWorkerConfig  # noqa: E402
from verl.workers.config.engine import FSDPEngineConfig  # noqa: E402
from verl.workers.config.optimizer import FSDPOptimizerConfig  # noqa: E402
from verl.workers import engine_workers  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding  # noqa: E402


def actor(folder, case):
    precision = {"param_dtype": "fp32", "reduce_dtype": "fp32"}
    engine = FSDPEngineConfig(strategy="fsdp2", use_torch_compile=False, model_dtype="fp32", mixed_precision=precision, use_dynamic_bsz=False,
                              micro_batch_size_per_gpu=2, infer_micro_batch_size_per_gpu=2)  # fmt: skip
    fused = case.get("fused", False)
    model = HFModelConfig(path=str(folder), load_tokenizer=False, use_remove_padding=False, enable_gradient_checkpointing=False,
                          override_config={"attn_implementation": "sdpa"}, external_lib=case.get("external_lib"),
                          use_fused_kernels=fused, fused_kernel_options={"impl_backend": "torch"} if fused else {})  # fmt: skip
    policy_loss = PolicyLossConfig
    if "isentrope_weight" in case.get("policy_loss", {}):
        from isentrope.integrations.verl import PolicyLossConfig as policy_loss
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=2, fsdp_config=engine,
                             policy_loss=policy_loss(loss_mode=case["loss"], **case.get("policy_loss", {})),
                             clip_ratio_c=case.get("clip_ratio_c", 3.0), entropy_coeff=case.get("entropy_coeff", 0.0), loss_agg_mode=case.get("aggregate", "token-mean"))  # fmt: skip
    worker = engine_workers.TrainingWorker(TrainingWorkerConfig(
        model_type="language_model", model_config=model, engine_config=engine, checkpoint_config=CheckpointConfig(),
        optimizer_config=FSDPOptimizerConfig(total_training_steps=10, **{"lr": 1e-2, **case.get("optimizer", {})})))  # fmt: skip
    worker.reset()
    worker.set_loss_fn(functools.partial(engine_workers.ppo_loss, config=config))
    return worker


def batch(vocabulary, rank, ranks, case):
    """This rank's part of them."""
    made = torch.load(case["batch"]) if "batch" in case else tensors(vocabulary)
    if "advantage_factor" in case:  # [4, T]
        made["advantages"] = made["advantages"] * torch.tensor(case["advantage_factor"])
    sequences = len(made["prompts"])
    data = left_right_2_no_padding(tu.get_tensordict({name: x[rank::ranks] for name, x in made.items()}, {}))
    tu.assign_non_tensor(data, global_batch_size=sequences, temperature=case.get("temperature", 0.9), calculate_entropy=True, mini_batch_size=sequences, epochs=1,
                         seed=0, dataloader_kwargs={"shuffle": False})  # fmt: skip
    return data


def whole(tensor):
    return tensor.detach().full_tensor().clone()


def main():
    folder, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks == 1:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    else:
        torch.distributed.init_process_group("gloo")
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    for name, case in cases.items():
        torch.manual_seed(5)
        worker = actor(folder, case)
        gradients = []
        step = worker.engine.optimizer_step
        worker.engine.optimizer_step = lambda: (
            gradients.append({key: whole(p.grad) for key, p in worker.engine.module.named_parameters()}),
            step(),
        )[1]
        metrics = [tu.get(worker.train_mini_batch(batch(vocabulary, rank, ranks, case)), "metrics") for _ in range(2)]
        metrics = [{key: float(x.aggregate() if hasattr(x, "aggregate") else x[0]) for key, x in told.items()} for told in metrics]
        weights = {key: whole(p) for key, p in worker.engine.module.named_parameters()}
        if rank == 0:
            torch.save({"metrics": metrics, "gradients": gradients, "weights": weights}, folder / f"{name}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
