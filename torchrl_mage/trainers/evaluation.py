"""Deterministic evaluation of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type


@dataclass(frozen=True)
class Evaluation:
    """Evaluation episodes, each of shape ``[T]``, their undiscounted returns and lengths."""

    returns: torch.Tensor
    lengths: torch.Tensor
    episodes: Sequence[TensorDictBase] = ()

    @property
    def mean(self) -> float:
        """Mean return."""
        return self.returns.mean().item()

    @property
    def std(self) -> float:
        """Population standard deviation of the returns."""
        return self.returns.std(correction=0).item()

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.std:.2f} over {len(self.returns)} episodes"


@torch.no_grad()
def evaluate(
    env: EnvBase,
    policy: TensorDictModuleBase,
    *,
    episodes: int,
    seed: int,
    max_steps: int = 10_000,
) -> Evaluation:
    """Runs whole episodes with the deterministic policy.

    Stateless: the episodes depend on the policy and ``seed`` alone, so that an interrupted and
    resumed run evaluates what an uninterrupted one would.

    Args:
        env: an environment of its own, not the one that training steps.
        policy: writes ``action``.
        episodes: number of episodes.
        seed: seeds the environment.
        max_steps: where an episode without an end is cut.

    Raises:
        ValueError: ``episodes`` is below 1.
        FloatingPointError: a return is not finite.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> env = GymEnv("Pendulum-v1")
        >>> evaluate(env, env.rand_action, episodes=2, seed=0).lengths
        tensor([200., 200.])
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}.")
    env.set_seed(seed)
    returns, lengths, kept = [], [], []
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        for _ in range(episodes):
            episode = env.rollout(max_steps, policy)
            kept.append(episode)
            rewards = episode["next", "reward"]
            returns.append(rewards.sum())
            lengths.append(len(rewards))
            if not returns[-1].isfinite():
                raise FloatingPointError(
                    f"an evaluation episode returned {returns[-1].item()}: the environment paid a "
                    "reward that is not finite, or the policy's action was not."
                )
    return Evaluation(torch.stack(returns).cpu(), torch.tensor(lengths, dtype=torch.float), kept)
