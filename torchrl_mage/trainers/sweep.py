"""What a sweep says of the runs that fail (needs Hydra, which the scripts bring)."""

from __future__ import annotations

import logging
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
