"""Hydra's side of a run: its settings, whether it goes on, how it ends, and what a sweep says."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before torch is imported: threads that wait must not spin while another process needs the core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

from command_line import checked, config_path  # answers what it can, before torch too

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_mage import GaussianEnsembleWorldModel, Normalizer
from torchrl_mage.diagnostics import model_diagnostics
from torchrl_mage.envs import Task, find_task, read_transitions
from torchrl_mage.objectives.imagined import ImaginedTD3Loss
from torchrl_mage.trainers import (
    EXIT_INTERRUPTED,
    Evaluation,
    Interrupted,
    Run,
    SettingsError,
    held_transitions,
    open_run,
    record_episode,
    set_up_torch,
    use_offscreen_rendering,
)

Train = Callable[[DictConfig, Run, Task, torch.device], float]


def script(
    title: str,
    *,
    config_name: str,
    show: Sequence[str],
    check: Callable[[DictConfig], None] = lambda cfg: None,
) -> Callable[[Train], Callable[[], None]]:
    """Makes a training function a Hydra script.

    Args:
        title: of its runs, before the task and the seed.
        config_name: its YAML.
        show: the metrics beside its progress bar, after the return.
        check: refuses settings that are none of this script's.

    Returns:
        A decorator of a function that gets the settings, the run (entered: its folder is locked),
        the task and the device, and returns the final evaluation's mean return.
    """

    def decorate(train: Train) -> Callable[[], None]:
        @functools.wraps(train)
        def main(cfg: DictConfig) -> float:
            hydra_cfg = HydraConfig.get()
            settings, path = open_run(
                hydra_cfg.runtime.output_dir,
                checked(cfg),
                resume=cfg.resume,
                overridden=hydra_cfg.overrides.task,
            )
            check(cfg)
            return _started(train, OmegaConf.create(settings), path, title, show)

        path = config_path(config_name)
        return hydra.main(config_path=path, config_name=config_name, version_base="1.3")(main)

    return decorate


def _started(train: Train, cfg: DictConfig, path: Path, title: str, show: Sequence[str]) -> float:
    device = set_up_torch(
        cfg.device, seed=cfg.seed, threads=cfg.threads, matmul_precision=cfg.matmul_precision
    )
    task = find_task(cfg.env.id)
    if cfg.video:
        use_offscreen_rendering()
        _check_can_be_filmed(task)
    run = Run(
        path,
        title=f"{title} {task.name} seed {cfg.seed}",
        total_steps=cfg.offline_steps + cfg.total_steps,
        offline_steps=cfg.offline_steps,
        log_interval=cfg.log_interval,
        eval_interval=cfg.eval_interval,
        eval_episodes=cfg.eval_episodes,
        checkpoint_interval=cfg.checkpoint_interval,
        seed=cfg.seed,
        discount=cfg.discount,
        logger=cfg.logger,
        show=show,
        on_divergence=cfg.on_divergence,
        divergence_limit=cfg.divergence_limit,
        scaled=cfg.critic.get("units") == "range",
        settings=OmegaConf.to_container(cfg),
    )
    try:
        with run:
            return train(cfg, run, task, device)
    except Interrupted as stop:
        print(stop)
        sys.exit(EXIT_INTERRUPTED)


def _check_can_be_filmed(task: Task) -> None:
    """Refuses, before anything is trained, an environment that cannot be rendered."""
    try:
        env = task.make_env(render_mode="rgb_array")
        env.reset()
        frame = env._env.render()
        env.close()
    except Exception as error:
        raise SettingsError(
            f"video=true: {task.name} cannot be filmed ({type(error).__name__}: {error}); leave "
            'video out, or give it the render mode "rgb_array".'
        ) from error
    if frame is None:
        raise SettingsError(
            f'video=true: {task.name} rendered nothing in its mode "rgb_array"; leave video out.'
        )


def only_pendulum(cfg: DictConfig) -> None:
    """Refuses a task whose true dynamics are not differentiable here."""
    if cfg.env.name != "Pendulum-v1":
        raise SettingsError(
            f"env.name = {cfg.env.name!r}: this script needs differentiable true dynamics and has "
            "Pendulum's alone; leave env out."
        )


def fixed_actor(cfg: DictConfig) -> None:
    """Refuses that too, and what only an actor in training can do."""
    only_pendulum(cfg)
    if cfg.video or cfg.data or cfg.on_divergence != "stop":
        raise SettingsError(
            f"video = {cfg.video}, data = {cfg.data}, on_divergence = {cfg.on_divergence}: this "
            "script's actor is the one thing that stays as it is; leave them out."
        )


def replay_buffer(
    cfg: DictConfig, run: Run, task: Task, device: torch.device
) -> tuple[ReplayBuffer, TensorDict | None]:
    """A buffer for the whole run, and the data that the run begins with, if it has any.

    A run that goes on has them in its checkpoint: their source is read once.
    """
    data, held = None, held_transitions(run.path) if cfg.data else 0
    if cfg.data and not held:
        data = read_transitions(cfg.data, task).to(device)
        held = len(data)
        run.say(f"{held} transitions of {cfg.data} to begin with")
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(held + cfg.total_steps, device=device),
        batch_size=cfg.policy.updates_per_step * cfg.policy.batch_size,
    )
    return buffer, data


def critic_clip(cfg: DictConfig) -> float:
    """Bound of the critics' gradient elements: the authors' 5 in the scale of our loss.

    Theirs is ours divided by 2 lambda and averaged over two critics; at lambda 0 (appendix B.1) the
    bound is that of the full version's lambda of 0.05.
    """
    return cfg.critic.grad_clip or 10 * cfg.loss.lmbda or 0.5


def film(cfg: DictConfig, run: Run, task: Task, policy: Any) -> None:
    """Films an episode of the final policy, where ``video`` asks for it."""
    if cfg.video:
        env = task.make_env(device=policy.device, render_mode="rgb_array")
        record_episode(env, policy, run.path / "evaluation.mp4", seed=cfg.seed)


def report_model(
    run: Run,
    dynamics: GaussianEnsembleWorldModel,
    loss: ImaginedTD3Loss,
    normalizer: Normalizer,
    evaluation: Evaluation,
) -> None:
    """Reports how well the model foresees the episodes, and Eq. 13's paths where they went."""
    found = model_diagnostics(dynamics, evaluation.episodes)
    nll = found.pop("model_nll")
    run.report(**found, **{f"model_nll_{member}": value for member, value in enumerate(nll)})
    visited = torch.cat([episode.select("observation") for episode in evaluation.episodes])
    states = normalizer(visited[:: -(-len(visited) // 256)])  # some are enough for a mean
    gpu = [states.device] if visited["observation"].is_cuda else []
    with torch.random.fork_rng(gpu):  # training draws the same with and without it
        paths = loss.target_gradient_paths(states)
    run.report(**{name: path.norm(dim=-1) for name, path in paths.items()})
