"""Collects transitions one by one, at random first, and goes on in the middle of an episode."""

from __future__ import annotations

import warnings
from typing import Any, Protocol, cast

import gymnasium
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import AdditiveGaussianModule

EPISODE = ("collector", "traj_ids")  # TorchRL's count of the episodes


def exploring(policy: TensorDictModuleBase, env: EnvBase, *, noise: float) -> TensorDictSequential:
    """The policy with Gaussian noise on its actions, which stay in their box.

    Without noise where TorchRL's exploration type is deterministic, as in an evaluation.

    Args:
        policy: writes ``action``; its parameters may be trained in place meanwhile.
        env: whose actions they are.
        noise: standard deviation.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.envs import GymEnv
        >>> from torchrl.modules import Actor
        >>> env = GymEnv("Pendulum-v1")
        >>> policy = Actor(lambda x: 0 * x[..., :1], spec=env.action_spec)
        >>> td = TensorDict(observation=torch.zeros(1000, 3), batch_size=[1000])
        >>> action = exploring(policy, env, noise=0.5)(td)["action"]
        >>> action.std().round(decimals=1), action.abs().max() <= 2
        (tensor(0.5000), tensor(True))
    """
    sigma = float(noise)
    spec = env.action_spec
    explorer = AdditiveGaussianModule(spec, sigma_init=sigma, sigma_end=sigma, device=env.device)
    return TensorDictSequential(policy, explorer)


class GreedyEpisodes(TensorDictModuleBase):
    """Runs every so many-th episode of a collector without exploration, as an evaluation does.

    A policy that explores never shows where it drifts when it does not.

    Args:
        policy: explores where TorchRL's exploration type says so.
        every: 2 for every other episode; the first explores.

    Example:
        >>> import torch
        >>> from torchrl.envs import GymEnv
        >>> from torchrl.modules import Actor
        >>> env = GymEnv("Pendulum-v1")
        >>> policy = exploring(Actor(lambda x: 0 * x[..., :1], spec=env.action_spec), env, noise=1)
        >>> policy = GreedyEpisodes(policy, every=2)
        >>> td = TensorDict(observation=torch.zeros(3), collector={"traj_ids": torch.tensor(1)})
        >>> policy(td)["action"], policy(td.set(EPISODE, torch.tensor(2)))["action"] != 0
        (tensor([0.]), tensor([True]))
    """

    def __init__(self, policy: TensorDictModuleBase, *, every: int) -> None:
        super().__init__()
        if every < 2:
            raise ValueError(f"every must be at least 2, as the others explore, got {every}.")
        self.policy, self.every = policy, every
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action."""
        greedy = int(tensordict.get(EPISODE)) % self.every == self.every - 1
        kind = ExplorationType.DETERMINISTIC if greedy else ExplorationType.RANDOM
        with set_exploration_type(kind):
            return self.policy(tensordict)


def exploring_collector(
    env: EnvBase,
    policy: TensorDictModuleBase,
    *,
    random_steps: int,
    total_steps: int,
    seed: int,
    greedy_every: int | None = None,
) -> Collector:
    """TorchRL's collector of one transition a batch.

    Args:
        env: a single environment; seeded here.
        policy: writes ``action`` and explores by itself or by :func:`exploring`; its parameters
            may be trained in place meanwhile.
        random_steps: steps with uniform random actions, at the start.
        total_steps: after which the collector ends.
        seed: of the environment.
        greedy_every: which episodes go without exploration, see :class:`GreedyEpisodes`; by default
            none.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> from torchrl.modules import Actor
        >>> env = GymEnv("Pendulum-v1")
        >>> policy = Actor(lambda x: 0 * x[..., :1], spec=env.action_spec)
        >>> policy = exploring(policy, env, noise=0.1)
        >>> collector = exploring_collector(env, policy, random_steps=2, total_steps=5, seed=0)
        >>> [batch["action"].shape for batch in collector]
        [torch.Size([1, 1]), torch.Size([1, 1]), torch.Size([1, 1]), torch.Size([1, 1]), ...]
        >>> collector.shutdown()
    """
    env.set_seed(seed)
    if greedy_every is not None:
        policy = GreedyEpisodes(policy, every=greedy_every)
    return Collector(
        env,
        policy,
        frames_per_batch=1,
        total_frames=total_steps,
        auto_register_policy_transforms=False,
        init_random_frames=random_steps,
    )


class Replayable(Protocol):
    """An environment that can be brought back into its episode."""

    def episode(self) -> dict[str, Any]:
        """How it came to be where it is."""

    def replay(self, episode: dict[str, Any]) -> None:
        """Goes there; a RuntimeError says why it cannot."""


class CollectorState:
    """A collector's counters, the tensordict it carries from step to step, and its episode.

    ``Collector.state_dict`` starts a new episode when it is loaded; this goes on in the old one, by
    a replay that is verified. What cannot be replayed starts a new episode, with a warning.

    Args:
        collector: of one environment that a :class:`~torchrl_mage.envs.RecordedEnv` records, as
            ``Task.make_env`` has it; before or between two of its batches.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self.new_episode = False  # whether the last state that was loaded began one

    def _recorded(self) -> Replayable | None:
        layer = getattr(self._collector.env, "_env", None)
        while isinstance(layer, gymnasium.Wrapper):
            if hasattr(layer, "episode") and hasattr(layer, "replay"):
                return cast(Replayable, layer)
            layer = layer.env
        return None

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings."""
        collector, recorded = self._collector, self._recorded()
        return {
            "frames": collector._frames,
            "iterations": collector._iter,
            "trajectories": collector._traj_pool.state_dict(),
            "carrier": collector._carrier.flatten_keys("/").clone().to_dict(),
            "episode": recorded.episode() if recorded is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was read."""
        collector, recorded = self._collector, self._recorded()
        collector._frames, collector._iter = state["frames"], state["iterations"]
        collector._traj_pool.load_state_dict(state["trajectories"])
        self.new_episode = False
        try:
            if recorded is None or state["episode"] is None:
                raise RuntimeError("its episode was not recorded (see torchrl_mage.envs.Task)")
            recorded.replay(state["episode"])
        except RuntimeError as error:
            warnings.warn(
                f"a new episode begins where the run goes on, which is not bit for bit what it "
                f"would have been: the environment could not be brought back, {error}.",
                stacklevel=2,
            )
            self.new_episode = True
            collector.reset()
            return
        carrier = TensorDict(state["carrier"], batch_size=collector._carrier.batch_size)
        collector._carrier = carrier.to(collector._carrier.device).unflatten_keys("/")
