"""A video of one evaluation episode, recorded without a screen."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.record import PixelRenderTransform


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
            f'video=true needs {error.name}: pip install -e ".[video]"'
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
) -> None:
    """Writes one episode of the deterministic policy as an MP4 file.

    Args:
        env: made with ``render_mode="rgb_array"``.
        policy: writes ``action``.
        path: the file.
        seed: seeds the environment.
        fps: frames a second of the video.
        max_steps: where an episode without an end is cut.
    """
    import imageio.v2 as imageio  # an extra

    env.set_seed(seed)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        filmed = TransformedEnv(env, PixelRenderTransform(preproc=np.ascontiguousarray))
        frames = filmed.rollout(max_steps, policy)["next", "pixels"]
    imageio.mimsave(path, list(frames.cpu().numpy()), fps=fps, macro_block_size=None)
