"""What a sweep says of failed runs and draws at its end."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

LOG = logging.getLogger(__name__)


class FailureCallback(Callback):
    """Names each failed run of a sweep, when it fails; Hydra itself names one, at the end.

    A single run's error is Hydra's to print.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Hydra's hook, in the process of the run."""
        if config.hydra.mode == RunMode.MULTIRUN and job_return.status == JobStatus.FAILED:
            error = job_return._return_value  # the property would raise it
            name = config.hydra.job.override_dirname
            LOG.error("failed: %s: %s: %s", name, type(error).__name__, error, exc_info=error)


class PlotCallback(Callback):
    """Draws the curves of a sweep that has ended, by the ``plot.py`` beside its script.

    Args:
        options: of ``plot.py``.
    """

    def __init__(self, options: Sequence[str] = ()) -> None:
        self.options = [str(option) for option in options]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra's hook; the figure and its table are ``learning_curves`` in the sweep's folder."""
        folder = Path(config.hydra.sweep.dir)
        command = [sys.executable, Path(__file__).with_name("plot.py"), folder]
        command += ["--out", folder / "learning_curves", *self.options]
        if subprocess.run([str(part) for part in command]).returncode:
            LOG.error("the runs have ended, their curves could not be drawn: see above")
