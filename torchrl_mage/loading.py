"""What a run has trained, ready for use: its policy, world model and critics."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from torchrl_mage.envs import OraclePendulum, Task, find_task
from torchrl_mage.modules import (
    GaussianEnsembleWorldModel,
    Normalizer,
    RawPolicy,
    RewardModel,
    RewardScaler,
    TerminationModel,
    critic,
    deterministic_actor,
    stochastic_actor,
)

MODEL = ("world_model", "reward", "termination")
PARTS = ("actor", "critics", "critic", "normalizer", "reward_scaler", *MODEL)
CONFIG, NETWORKS, BEST = "config.yaml", "networks.pt", "best_networks.pt"
IN_A_LOSS = {"actor": "actor_network_params.", "critics": "qvalue_network_params."}

States = dict[str, Mapping[str, Tensor]]


class LoadError(RuntimeError):
    """A folder holds no run that can be loaded; the message says why."""


@dataclass(frozen=True)
class LoadedRun:
    """What :func:`load_run` returns.

    Args:
        policy: the environment's ``observation`` in, ``action`` in [-1, 1] out, as
            ``task.make_env()`` takes it; draws actions, where it is stochastic, unless the
            exploration type says otherwise.
        world_model: reads ``observation`` and ``action``, writes under ``"next"`` what the task's
            reward and termination, the agent's normaliser and the learned dynamics say.
        critics: each reads ``observation`` and ``action`` and writes ``state_action_value``.
        task: makes the environment.
        settings: of the run, nested.
    """

    policy: TensorDictModuleBase
    world_model: TensorDictModuleBase
    critics: list[TensorDictModuleBase]
    task: Task
    settings: dict[str, Any]

    @torch.no_grad()
    def act(self, observation: np.ndarray) -> np.ndarray:
        """The deterministic action in a plain gymnasium environment, raw units both ways.

        Args:
            observation: ``[*B, D]`` of ``task.make_gymnasium()``.

        Returns:
            ``[*B, A]``, in the environment's own box.
        """
        policy = self.raw_policy
        state = torch.as_tensor(np.asarray(observation, np.float32), device=policy.low.device)
        return policy(state).cpu().numpy()

    @cached_property
    def raw_policy(self) -> RawPolicy:
        """What :meth:`act` computes, as a module on tensors, e.g. for ``torch.export``."""
        env = self.task.make_gymnasium()
        space = env.action_space
        env.close()
        assert isinstance(space, Box)
        return RawPolicy(self.policy, space.low, space.high)


def load_run(
    path: str | Path, *, best: bool = False, device: torch.device | str | None = None
) -> LoadedRun:
    """Loads what the run in a folder has trained; no Hydra, and no code from its files.

    Args:
        path: a run's folder, as the scripts write it. One that was stopped is loaded from its
            newest checkpoint.
        best: the networks of the best evaluation instead of the last ones.
        device: where they go; ``None`` is the CPU.

    Raises:
        LoadError: the folder holds no run, one of another version, one that has nothing to load
            yet, or a damaged file.

    Example:
        >>> load_run("no/such/folder")
        Traceback (most recent call last):
            ...
        torchrl_mage.loading.LoadError: no/such/folder holds no run: it has no config.yaml. ...
    """
    path = Path(path)
    settings = _settings(path)
    states = _states(path, best)
    try:
        return _built(settings, states, torch.device(device or "cpu"))
    except ValueError as error:  # the task's, which names what is missing
        raise LoadError(f"{path} cannot be loaded here: {error}") from error
    except (KeyError, TypeError, RuntimeError) as error:
        raise LoadError(
            f"{path} is the run of another version of this package, or of a script without these "
            f"networks: {type(error).__name__}: {error}. Load it with the version that trained it."
        ) from error


def ship_run(path: str | Path, out: str | Path, *, best: bool = False, limit: int = 10**6) -> bool:
    """Writes a folder with no more of a run than :func:`load_run` needs, for others to have.

    Args:
        path: the run's folder.
        out: the new one, with the run's ``config.yaml`` and a ``networks.pt``.
        best: the networks of the best evaluation instead of the last ones.
        limit: of ``networks.pt``, in bytes. Of a larger one policy and critics alone are written:
            the world model and a learned reward or termination stay behind.

    Returns:
        Whether all is there.

    Raises:
        LoadError: as :func:`load_run`, ``out`` holds a run already, or cannot be written, or policy
            and critics alone are larger than ``limit``.

    Example:
        >>> ship_run("no/such/folder", "agent")
        Traceback (most recent call last):
            ...
        torchrl_mage.loading.LoadError: no/such/folder holds no run: it has no config.yaml. ...
    """
    path, out = Path(path), Path(out)
    load_run(path, best=best)  # what cannot be loaded is not shipped
    states = {name: state for name, state in _states(path, best).items() if name in PARTS}
    whole = _packed(states)
    agent = whole
    if len(whole) > limit:
        agent = _packed({name: state for name, state in states.items() if name not in MODEL})
    if len(agent) > limit:
        raise LoadError(
            f"policy and critics of {path} take {len(agent)} bytes; {limit} are allowed."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / CONFIG).exists():
            raise LoadError(f"{out} holds a run already; name a new folder.")
        (out / CONFIG).write_text((path / CONFIG).read_text())
        (out / NETWORKS).write_bytes(agent)
    except OSError as error:
        raise LoadError(f"{out} cannot be written: {error}") from error
    return agent is whole


def _packed(states: States) -> bytes:
    file = io.BytesIO()
    torch.save(states, file)
    return file.getvalue()


def _settings(path: Path) -> dict[str, Any]:
    import yaml  # of the extra "examples", as is all that writes runs

    try:
        return yaml.safe_load((path / CONFIG).read_text())
    except OSError as error:
        raise LoadError(
            f"{path} holds no run: it has no {CONFIG}. Name the folder that a script printed or "
            "was given, e.g. runs/mage_td3/pendulum/seed0_DATE."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LoadError(f"{path / CONFIG} is damaged: {error}") from error


def _states(path: Path, best: bool) -> States:
    """The networks' state dicts, by name."""
    if best or (path / NETWORKS).exists():
        file = path / (BEST if best else NETWORKS)
        if not file.exists():
            raise LoadError(f"{path} has no {BEST}: none of its evaluations is done yet.")
        return _read(file)
    saved = sorted((path / "checkpoints").glob("step_*"))
    if not saved:
        raise LoadError(f"{path} has neither {NETWORKS} nor a checkpoint: nothing to load yet.")
    parts = _read(saved[-1] / "state.pt")
    loss = parts.get("loss", {})
    inside = {
        name: {k.removeprefix(prefix): v for k, v in loss.items() if k.startswith(prefix)}
        for name, prefix in IN_A_LOSS.items()
    }
    return {**parts, **inside}


def _read(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise LoadError(f"{file} is damaged or holds more than tensors: {error}") from error


def _built(settings: dict[str, Any], states: States, device: torch.device) -> LoadedRun:
    task = find_task(settings["env"]["id"])
    env = task.make_env()
    spec, obs_dim = env.action_spec, env.observation_spec["observation"].shape[-1]
    action_dim = spec.shape[-1]
    env.close()

    normalizer = _filled(Normalizer(obs_dim), states["normalizer"])
    soft = settings["actor"].get("soft_bounds", False)  # older runs have none
    deterministic = partial(deterministic_actor, soft_bounds=soft)
    make = stochastic_actor if settings["script"].endswith("sac") else deterministic
    actor = _filled(make(obs_dim, spec, settings["actor"]["num_cells"]), states["actor"])
    values = states["critics"] if "critics" in states else states["critic"]
    count = next(value.shape[0] for value in values.values() if isinstance(value, Tensor))
    cells, layer_norm = settings["critic"]["num_cells"], settings["critic"].get("layer_norm", False)
    critics: list[TensorDictModuleBase] = [
        TensorDictSequential(
            normalizer,
            _filled(
                critic(obs_dim, action_dim, cells, layer_norm=layer_norm),
                {k: v[i] for k, v in values.items() if isinstance(v, Tensor)},
            ),
        ).to(device)
        for i in range(count)
    ]
    return LoadedRun(
        policy=TensorDictSequential(normalizer, actor).to(device),
        world_model=_world_model(settings, states, task, normalizer, action_dim).to(device),
        critics=critics,
        task=task,
        settings=settings,
    )


def _world_model(
    settings: dict[str, Any], states: States, task: Task, normalizer: Normalizer, action_dim: int
) -> TensorDictSequential:
    """Dynamics, reward, termination and the next state's normaliser, in the order of use."""
    obs_dim = normalizer.statistics.mean.shape[0]
    scaler = []
    if "reward_scaler" in states:
        scaler = [_filled(RewardScaler(settings["discount"]), states["reward_scaler"])]
    follow = normalizer.on(("next", "observation"), ("next", "normalized_observation"))
    if "world_model" not in states:  # a script that has the true dynamics, or none
        if settings["script"] == "mage_ddpg":
            return TensorDictSequential(OraclePendulum(), follow)
        return TensorDictSequential(_NoModel(), *scaler)  # the critics' unit stays known
    model = settings["world_model"]
    dynamics = GaussianEnsembleWorldModel(
        obs_dim,
        action_dim,
        ensemble_size=model["ensemble_size"],
        num_cells=model["num_cells"],
    )
    parts: list[Any] = [_filled(dynamics, states["world_model"])]
    for name, kind, known in (
        ("reward", RewardModel, task.reward),
        ("termination", TerminationModel, task.termination),
    ):
        if name in states:
            cells = settings["reward_model"]["num_cells"]
            parts.append(_filled(kind(obs_dim, action_dim, num_cells=cells), states[name]))
        elif known is not None:
            parts.append(known)
        if name == "reward":
            parts += scaler
    return TensorDictSequential(*parts, follow)


class _NoModel(TensorDictModule):
    """In the place of a world model, where the script trained none or it was not shipped."""

    def __init__(self) -> None:
        super().__init__(self._refuse, in_keys=["observation"], out_keys=[("next", "observation")])

    @staticmethod
    def _refuse(observation: Tensor) -> Tensor:
        raise LoadError("this run is model-free or was shipped so: it has no world model.")


def _filled(module: Any, state: Mapping[str, Tensor]) -> Any:
    """A module with a state dict, whose other entries (a tensordict's own) are left out."""
    assert isinstance(module, nn.Module)
    module.load_state_dict({k: v for k, v in state.items() if not k.startswith("__")})
    return module.requires_grad_(False)
