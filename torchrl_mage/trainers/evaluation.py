"""Deterministic evaluation of a policy, and a video of it, recorded without a screen."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.record import PixelRenderTransform

GIF_FPS, GIF_SIDE = 20, 240


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
    exploration: ExplorationType = ExplorationType.DETERMINISTIC,
) -> Evaluation:
    """Runs whole episodes with the deterministic policy, or as ``exploration`` says.

    Stateless: the episodes depend on the policy and ``seed`` alone (and, of a policy that draws its
    actions, on the global generator), so that an interrupted and
    resumed run evaluates what an uninterrupted one would.

    Args:
        env: an environment of its own, not the one that training steps.
        policy: writes ``action``.
        episodes: number of episodes.
        seed: seeds the environment.
        max_steps: where an episode without an end is cut.
        exploration: ``RANDOM`` draws the actions of a stochastic policy.

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
    with set_exploration_type(exploration):
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


def use_offscreen_rendering() -> None:
    """Lets pygame and MuJoCo draw without a screen, where the user has chosen nothing else.

    Call it before the environment is made. MuJoCo then renders through EGL; ``MUJOCO_GL=osmesa``
    renders in software.

    Raises:
        ModuleNotFoundError: the extra ``video`` is not installed.
    """
    try:
        import imageio.v2  # noqa: F401  # an extra
        import imageio_ffmpeg  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'a video needs {error.name}: pip install -e ".[video]"'
        ) from error
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("MUJOCO_GL", "egl")


@torch.no_grad()
def record_episode(
    env: EnvBase,
    policy: TensorDictModuleBase,
    path: str | Path,
    *,
    seed: int,
    fps: int = 30,
    max_steps: int = 1000,
    exploration: ExplorationType = ExplorationType.DETERMINISTIC,
) -> None:
    """Films one episode of the deterministic policy, or as ``exploration`` says.

    Args:
        env: made with ``render_mode="rgb_array"``.
        policy: writes ``action``.
        path: the file, see :func:`write_film`.
        seed: seeds the environment.
        fps: frames a second of the video.
        max_steps: where an episode without an end is cut.
        exploration: ``RANDOM`` draws the actions of a stochastic policy.
    """
    filmed = TransformedEnv(env, PixelRenderTransform(preproc=np.ascontiguousarray))
    _ = filmed.observation_spec  # resets the environment to see its pixels' shape
    filmed.set_seed(seed)
    with set_exploration_type(exploration):
        frames = filmed.rollout(max_steps, policy)["next", "pixels"]
    write_film(path, list(frames.cpu().numpy()), fps=fps)


def write_film(path: str | Path, frames: Sequence[np.ndarray], *, fps: int) -> None:
    """Writes frames ``[H, W, 3]``, uint8, as the file's name says: MP4, or a small GIF that loops.

    A GIF shows at most :data:`GIF_FPS` frames a second, their shorter side of at most
    :data:`GIF_SIDE` pixels.

    Needs the extra ``video``.
    """
    import imageio.v2 as imageio  # an extra

    path = Path(path)
    options: dict[str, Any] = {"macro_block_size": None, "fps": fps}
    if path.suffix == ".gif":
        turn = math.ceil(fps / GIF_FPS)
        scale = math.ceil(min(frames[0].shape[:2]) / GIF_SIDE)
        frames = [frame[::scale, ::scale] for frame in frames[::turn]]
        options = {"loop": 0, "duration": 1000 * turn / fps}
    imageio.mimsave(path, list(frames), **options)
