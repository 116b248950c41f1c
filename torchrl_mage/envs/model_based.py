"""An environment made of a world model."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ModelBasedEnvBase

from torchrl_mage.modules import EnsembleWorldModel

Propagation = Literal["step", "trajectory"]


class ModelBasedEnv(ModelBasedEnvBase):
    """Rollouts in a world model, differentiable, for any batch of states at once.

    Resets to the observations that the tensordict brings, else to fresh ones of ``base_env``. Where
    the world model writes no ``terminated``, nothing ends.

    Args:
        world_model: reads ``observation`` and ``action``, writes under ``"next"`` the observations,
            ``reward`` and, if the task ends, ``terminated``. May be trained in place meanwhile.
        base_env: gives the specs (in the world model's dtype) and, by being reset, the first
            observations; an environment of its own, not the one that training steps; batch size
            ``[]``.
        propagation: ``"step"`` draws a member of the ensemble at each step (TS1 of PETS);
            ``"trajectory"`` keeps each element's member along a rollout (TS-infinity), under the
            key ``"ensemble_member"``.

    Raises:
        ValueError: ``base_env`` is batched, the world model reads or leaves out a key that it
            should write, or trajectories are asked of a model without an ensemble.

    Example:
        >>> from torchrl_mage.envs import OraclePendulum, get_task
        >>> env = ModelBasedEnv(OraclePendulum(), get_task("Pendulum-v1").make_env())
        >>> start = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]] * 5), batch_size=[5])
        >>> env.rollout(7, tensordict=start)["next", "reward"].shape
        torch.Size([5, 7, 1])
    """

    def __init__(
        self,
        world_model: TensorDictModuleBase,
        base_env: EnvBase,
        *,
        propagation: Propagation = "step",
    ) -> None:
        if propagation not in get_args(Propagation):
            raise ValueError(
                f"propagation must be one of {get_args(Propagation)}, got {propagation!r}."
            )
        if base_env.batch_size:
            raise ValueError(
                f"base_env has batch size {list(base_env.batch_size)}; pass a single environment: "
                "the model takes any batch of states by itself."
            )
        # The model's own: the base class would move it, replacing buffers that others share.
        tensors = [*world_model.parameters(), *world_model.buffers()]
        device = tensors[0].device if tensors else base_env.device or torch.device("cpu")
        super().__init__(world_model, device=device, batch_size=torch.Size([]))
        self.__dict__["base_env"] = base_env
        self.propagation = propagation
        written = {unravel_key(key) for key in world_model.out_keys}
        self._observation_keys = [
            key
            for key in base_env.observation_spec.keys(True, True)
            if unravel_key(("next", key)) in written
        ]
        required = {unravel_key(key) for key in world_model.in_keys} - set(self._observation_keys)
        required -= {unravel_key(key) for key in base_env.action_keys}
        if required or not self._observation_keys:
            raise ValueError(
                f"the world model reads {sorted(map(str, world_model.in_keys))} and writes "
                f"{sorted(map(str, written))}, of what the environment observes "
                f"{sorted(map(str, self._observation_keys))}. To go on from its own next state it "
                f"must write {sorted(map(str, required)) or 'an observation'} too, under 'next'."
            )
        reward_key = unravel_key(("next", base_env.reward_key))
        if reward_key not in written:
            raise ValueError(
                f"the world model writes no reward under {reward_key!r}: append a reward module, "
                "e.g. TensorDictSequential(dynamics, task.reward)."
            )
        floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
        self._set_specs(base_env, next(floating, None))

    def rollout(
        self, *args: Any, tensordict: TensorDictBase | None = None, **kwargs: Any
    ) -> TensorDictBase:
        """A rollout as TorchRL's, also from a slice of another.

        Its dimension has the name ``"time"``, which that of the new steps gets. A
        :class:`~torchrl.envs.TransformedEnv` around this one takes a slice without that name:
        ``start.names = [None] * start.ndim``.
        """
        if tensordict is not None and "time" in tensordict.names:
            names = [None if name == "time" else name for name in tensordict.names]
            tensordict = tensordict.clone(False)
            tensordict.names = names
        return super().rollout(*args, tensordict=tensordict, **kwargs)

    @torch.no_grad()
    def visited_states(
        self, policy: TensorDictModuleBase, start: TensorDictBase, steps: int
    ) -> TensorDictBase:
        """States that a policy visits within ``steps`` imagined steps, as many as the starts.

        From one in ``steps + 1`` of the starts, drawn at random, a rollout goes ``steps`` steps, or
        stays where it was last before the episode ends; of these states as many as there are
        starts, shuffled: the branched rollouts of MBPO (arXiv:1906.08253) as a source of states
        for a loss. Those of one rollout are not independent.

        Args:
            policy: writes the action; it explores where TorchRL's exploration type says so.
            start: observations, batch size ``[*B]``; left as they are.
            steps: of a rollout; 0 gives the starts, shuffled.

        Returns:
            The observations, ``[*B]``, without gradient.

        Raises:
            ValueError: ``steps`` is negative.

        Example:
            >>> from torchrl_mage.envs import OraclePendulum, get_task
            >>> env = ModelBasedEnv(OraclePendulum(), get_task("Pendulum-v1").make_env())
            >>> start = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]] * 5), batch_size=[5])
            >>> env.visited_states(env.rand_action, start, 3)["observation"].shape
            torch.Size([5, 3])
        """
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}.")
        keys = (*self._observation_keys, *self._kept_keys)
        rollouts = math.ceil(start.numel() / (steps + 1))
        chosen = torch.randperm(start.numel(), device=start.device)[:rollouts]
        state = self.reset(start.reshape(-1)[chosen].select(*self._observation_keys))
        visited = [state.select(*keys)]
        goes_on_R1 = torch.ones(rollouts, 1, dtype=torch.bool, device=self.device)
        for _ in range(steps):
            following = self.step(policy(visited[-1].clone(False)))["next"]
            goes_on_R1 = goes_on_R1 & ~following.get(self._terminated_keys[0])  # all alike
            visited.append(following.select(*keys).where(goes_on_R1.squeeze(-1), visited[-1]))
        states = torch.stack(visited).select(*self._observation_keys).reshape(-1)
        drawn = torch.randperm(len(states), device=self.device)[: start.numel()]
        return states[drawn].reshape(start.batch_size)

    def _set_specs(self, base_env: EnvBase, dtype: torch.dtype | None) -> None:
        """Those of ``base_env``, their floating entries in the world model's ``dtype``."""
        self.set_specs_from_env(base_env)
        observations = Composite(device=self.device)
        for key in self._observation_keys:
            # Unbounded: a learned model may leave the environment's bounds.
            spec = base_env.observation_spec[key]
            observations[key] = Unbounded(spec.shape, dtype=spec.dtype, device=self.device)
        if dtype is not None:
            observations = _in_dtype(observations, dtype)
            self.full_action_spec = _in_dtype(base_env.full_action_spec, dtype).to(self.device)
            self.full_reward_spec = _in_dtype(base_env.full_reward_spec, dtype).to(self.device)
        if self.propagation == "trajectory":
            sizes = [
                module.ensemble_size
                for module in self.world_model.modules()
                if isinstance(module, EnsembleWorldModel)
            ]
            if len(sizes) != 1:
                raise ValueError(
                    "propagation='trajectory' needs one ensemble in the world model, such as a "
                    f"GaussianEnsembleWorldModel, found {len(sizes)}; use propagation='step'."
                )
            self._ensemble_size = sizes[0]
            observations[EnsembleWorldModel.member_key] = Categorical(
                self._ensemble_size, shape=(1,), device=self.device
            )
        self.observation_spec = observations
        self.state_spec = observations.clone()

    @property
    def _terminated_keys(self) -> list[NestedKey]:
        return [key for key in self.done_keys if _last(key) == "terminated"]

    @property
    def _kept_keys(self) -> list[NestedKey]:
        """What a step hands on unchanged."""
        return [EnsembleWorldModel.member_key] if self.propagation == "trajectory" else []

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        for key in self._kept_keys:  # a planner starts from states that were never reset here
            if tensordict.get(key, None) is None:
                tensordict.set(key, self._drawn_members(tensordict.batch_size))
        inputs = tensordict.select(*self.world_model.in_keys, *self._kept_keys)
        imagined = self.world_model(inputs)
        out = tensordict.select(*self._kept_keys)
        for key in (*self._observation_keys, self.reward_key):
            out.set(key, imagined.get(unravel_key(("next", key))))
        reward = out.get(self.reward_key)
        running = torch.zeros_like(reward, dtype=torch.bool)
        for key in (*self._terminated_keys, "terminated"):
            if (terminated := imagined.get(unravel_key(("next", key)), None)) is not None:
                return self._set_done(out, terminated)
        return self._set_done(out, running)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        batch = self.batch_size if tensordict is None else tensordict.batch_size
        if tensordict is None:
            tensordict = TensorDict(batch_size=batch, device=self.device)
        fresh = torch.ones(batch, dtype=torch.bool, device=self.device)
        if "_reset" in tensordict:
            fresh = tensordict.get("_reset").reshape(batch)
        elif all(tensordict.get(key, None) is not None for key in self._observation_keys):
            fresh = torch.zeros_like(fresh)

        out = TensorDict(batch_size=batch, device=self.device)
        start = self._fresh_observations(int(fresh.sum()), **kwargs)
        for key in self._observation_keys:
            given = tensordict.get(key, None)
            if given is None:
                given = self.observation_spec[key].zero(batch)
            if fresh.any():
                given = given.clone()
                given[fresh] = start.get(key).to(given.dtype)
            out.set(key, given)
        for key in self._kept_keys:
            member = self._drawn_members(batch)
            given = tensordict.get(key, None)
            out.set(key, member if given is None else torch.where(fresh[..., None], member, given))
        return self._set_done(out, torch.zeros((*batch, 1), dtype=torch.bool, device=self.device))

    def _drawn_members(self, batch: torch.Size) -> torch.Tensor:
        return torch.randint(self._ensemble_size, (*batch, 1), device=self.device)

    def _fresh_observations(self, count: int, **kwargs: Any) -> TensorDictBase:
        starts = [self.base_env.reset(**kwargs).to(self.device) for _ in range(count)]
        return torch.stack(starts) if starts else TensorDict()

    def _set_done(self, out: TensorDictBase, terminated: torch.Tensor) -> TensorDictBase:
        for key in self.full_done_spec.keys(True, True):
            truncated = _last(key) == "truncated"
            out.set(key, torch.zeros_like(terminated) if truncated else terminated.clone())
        return out

    def _set_seed(self, seed: int | None) -> None:
        """Seeds ``base_env``; what the model draws comes from the global generator."""
        self.base_env.set_seed(seed)


def _last(key: NestedKey) -> str:
    return key[-1] if isinstance(key, tuple) else key


def _in_dtype(specs: Composite, dtype: torch.dtype) -> Composite:
    specs = specs.clone()
    for key in specs.keys(True, True):
        if specs[key].dtype.is_floating_point:
            specs[key] = specs[key].to(dtype)
    return specs
