"""TorchRL's loggers, opened so that a resumed run goes on in its own log."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torchrl.record.loggers import get_logger
from torchrl.record.loggers.common import Logger


def open_logger(kind: str, path: Path) -> Logger:
    """The logger of a run folder.

    A resumed run's CSV files are cut to its checkpoint by :class:`RunFolder`; W&B goes on in the
    same run; TensorBoard shows the points after the checkpoint twice, the same on a CPU.

    Args:
        kind: ``"csv"``, ``"tensorboard"`` or ``"wandb"``.
        path: the run folder.

    Raises:
        ImportError: the logger's package is not installed.
    """
    run_id = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    settings = {"id": run_id, "resume": "allow", "project": "torchrl_mage"}
    try:
        return get_logger(kind, str(path), "logs", wandb_kwargs=settings)
    except ImportError as error:
        raise ImportError(
            f'logger={kind} needs its package: pip install -e ".[loggers]" ({error})'
        ) from error
