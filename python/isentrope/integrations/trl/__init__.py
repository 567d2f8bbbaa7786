"""TRL's GRPOTrainer (tested with trl 1.16.0) with Isentrope's head, selection and loss.

    from isentrope.integrations.trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig("run", loss="clip_cov", cov_ratio=2e-4, loss_type="dapo")
    GRPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=reward, args=args, train_dataset=dataset).train()

Everything else is TRL's. Without `loss`, and with a plain trl.GRPOConfig, the loss is the one of TRL's loss_type.
"""

try:
    import trl as _trl
except ImportError as error:
    raise ImportError(
        f"isentrope.integrations.trl: trl cannot be imported ({error}); wanted trl 1.16.0: pip install trl==1.16.0"
    ) from error
try:
    from isentrope.integrations.trl.config import LOSSES, GRPOConfig
    from isentrope.integrations.trl.trainer import TESTED, GRPOTrainer
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"isentrope.integrations.trl: trl is {_trl.__version__} and has not what is built upon ({error}); wanted trl 1.16.0"
    ) from error

__all__ = ["LOSSES", "TESTED", "GRPOConfig", "GRPOTrainer"]
