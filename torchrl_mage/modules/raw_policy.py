"""A policy as a deployed controller calls it: tensor in, tensor out, raw units both ways."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type


class RawPolicy(nn.Module):
    """The deterministic action of a policy, scaled from [-1, 1] to the environment's own box.

    It holds nothing but tensors and traces as one program: ``torch.export.export`` takes it.

    Args:
        policy: reads ``observation`` alone, raw, and writes ``action`` in [-1, 1].
        low: lowest action ``[A]``, raw units.
        high: highest action ``[A]``.

    Raises:
        ValueError: the policy reads something else.

    Example:
        >>> from torchrl.modules import Actor
        >>> policy = Actor(lambda x: x[..., :1].tanh(), in_keys=["observation"])
        >>> RawPolicy(policy, low=np.array([0.0]), high=np.array([8.0]))(torch.zeros(2, 3))
        tensor([[4.],
                [4.]])
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: TensorDictModuleBase, low: np.ndarray, high: np.ndarray) -> None:
        super().__init__()
        if list(policy.in_keys) != ["observation"]:
            raise ValueError(
                f"the policy reads {list(policy.in_keys)}; a controller has the environment's "
                "observation alone. Put what makes the other entries in front of the policy."
            )
        self.policy = policy
        parameter = next(policy.parameters(), None)
        device = None if parameter is None else parameter.device
        for name, bound in (("low", low), ("high", high)):
            self.register_buffer(name, torch.as_tensor(bound, dtype=torch.float32, device=device))

    def forward(self, observation: Tensor) -> Tensor:
        """The action ``[*B, A]`` at observations ``[*B, D]``."""
        td = TensorDict({"observation": observation}, batch_size=observation.shape[:-1])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = self.policy(td)["action"]
        return self.low + (action + 1) / 2 * (self.high - self.low)
