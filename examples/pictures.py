"""Pictures of what a run has learned: its policy, its world model and its critics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_mage import (
    GaussianEnsembleWorldModel,
    LoadedRun,
    LoadError,
    OraclePendulum,
    RewardScaler,
    predict_open_loop,
)
from torchrl_mage.diagnostics import oracle_value
from torchrl_mage.trainers import record_episode, write_film

HORIZON = 200  # steps of the true return, as in appendix D.2


def film(run: LoadedRun, file: Path, seed: int, exploration: ExplorationType, length: int) -> None:
    """Films the episode that begins from a seed, ``length`` steps at most, at its own speed."""
    try:
        env = run.task.make_env(render_mode="rgb_array")
        fps = env._env.metadata.get("render_fps", 30)
        torch.manual_seed(seed)
        record_episode(
            env,
            run.policy,
            file,
            seed=seed,
            fps=fps,
            max_steps=length,
            exploration=exploration,
        )
    except Exception as error:  # whatever an environment raises
        raise SystemExit(
            f"{run.task.name} cannot be filmed: {type(error).__name__}: {error}"
        ) from error


def check_imagines(run: LoadedRun, *, film: bool) -> None:
    """Refuses a run without a learned world model, or a film of a task that cannot be drawn.

    Raises:
        LoadError: it is one.
    """
    if not isinstance(run.world_model[0], GaussianEnsembleWorldModel):
        raise LoadError("the run has no learned world model to imagine with; name one that has.")
    if film and run.task.pose is None:
        raise LoadError(
            f"what {run.task.name} observes does not tell how to draw it: --imagine FILE.png plots "
            "it, a Task(pose=...) lets it be filmed."
        )


def foreseen(run: LoadedRun, episode: TensorDictBase, steps: int) -> tuple[Tensor, Tensor]:
    """An episode's observations ``[K, D]``, and what each member makes of them, ``[E, K, D]``.

    Args:
        run: with a learned world model, see :func:`check_imagines`.
        episode: of the run's environment, ``[T]``.
        steps: that the model runs open loop, on the episode's actions; ``T`` at most.
    """
    model, steps = run.world_model[0], min(steps, len(episode))
    members_EKD = predict_open_loop(model, episode, steps).cpu()
    return episode["next", "observation"][:steps].cpu(), members_EKD


def imagined_film(run: LoadedRun, episode: TensorDictBase, steps: int, file: Path) -> None:
    """Films an episode on the left, and what the members' mean makes of its actions on the right.

    Args:
        run: with a learned world model, of a task whose observation tells how to draw it.
        episode: as of :func:`foreseen`.
        steps: likewise.
        file: what is written.

    Raises:
        LoadError: the run has no learned world model, or its task cannot be drawn.
    """
    check_imagines(run, film=True)
    pose = run.task.pose
    assert pose is not None
    real_KD, members_EKD = foreseen(run, episode, steps)
    env = run.task.make_gymnasium(render_mode="rgb_array")
    env.reset(seed=0)
    frames = []
    for pair in zip(real_KD.numpy(), members_EKD.mean(0).numpy(), strict=True):
        shown = []
        for observation in pair:
            pose(env, observation)
            shown.append(np.array(env.render()))
        frames.append(np.concatenate(shown, 1))
    write_film(file, frames, fps=env.metadata.get("render_fps", 30))
    env.close()


def imagination(run: LoadedRun, episode: TensorDictBase, steps: int) -> Figure:
    """Each feature of an episode, as it was and as every member of the world model foresees it.

    Args:
        run: with a learned world model.
        episode: as of :func:`foreseen`.
        steps: likewise.

    Raises:
        LoadError: the run has no learned world model.
    """
    check_imagines(run, film=False)
    real_KD, members_EKD = foreseen(run, episode, steps)
    steps = len(real_KD)
    mean_KD, std_KD = members_EKD.mean(0), members_EKD.std(0, correction=0)
    time = range(1, steps + 1)
    columns = min(real_KD.shape[1], 4)
    lines = -(-real_KD.shape[1] // columns)
    figure = Figure(figsize=(3.2 * columns, 0.6 + 2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False).flat
    for feature, axes in enumerate(panels):
        if feature >= real_KD.shape[1]:
            axes.set_axis_off()
            continue
        mean, std = mean_KD[:, feature], std_KD[:, feature]
        axes.plot(time, members_EKD[:, :, feature].T, color="C0", linewidth=0.4, alpha=0.6)
        axes.fill_between(time, mean - std, mean + std, color="C0", alpha=0.25, linewidth=0)
        axes.plot(time, mean, color="C0", label="imagined: members, their mean and spread")
        axes.plot(time, real_KD[:, feature], color="black", linestyle="--", label="real")
        axes.set_title(f"feature {feature}", fontsize="small")
        # A member that runs away would hide the rest.
        low, high = torch.stack([real_KD[:, feature], mean]).aminmax()
        margin = max(0.3 * (high - low).item(), 1e-3)
        axes.set_ylim(low.item() - margin, high.item() + margin)
        axes.grid(alpha=0.3)
    figure.supxlabel("steps open loop, on the real actions", fontsize="small")
    figure.suptitle(f"{run.task.name}: what the world model foresees", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", fontsize=7)
    return figure


def critic_map(
    run: LoadedRun, visited: Tensor, features: Sequence[int] | None = None, *, points: int = 41
) -> Figure:
    """The critics' value and action-gradient at the policy's actions, over two features.

    On Pendulum beside the return of :data:`HORIZON` steps on the true dynamics; a soft critic, of
    ``mage_sac.py``, counts the entropy too.

    Args:
        run: with critics; of several the lowest counts, as when the actor is trained.
        visited: observations ``[N, D]``, which say how far the map goes and what the other features
            are: their medians.
        features: two indices; ``None`` is Pendulum's angle and speed, elsewhere the first two.
        points: on each axis.

    Raises:
        LoadError: there are no such two features.
    """
    name = run.task.name
    pendulum = name == "Pendulum-v1"
    if pendulum and features is None:
        axes_values = [torch.linspace(-torch.pi, torch.pi, points), torch.linspace(-8, 8, points)]
        angle, speed = torch.meshgrid(*axes_values, indexing="xy")
        states = torch.stack([angle.cos(), angle.sin(), speed], -1)
        labels = ["angle (rad, 0 upright)", "speed (rad/s)"]
    else:
        axes_values, states = _plane(visited.cpu(), features or (0, 1), points, name)
        labels = [f"feature {i}" for i in features or (0, 1)]
    td = TensorDict(observation=states, batch_size=states.shape[:2]).to(visited.device)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        maps = {"critic": _critic_value(run, td)}
        if pendulum and states.shape[-1] == 3:
            discount = run.settings["discount"]
            maps[f"true dynamics, {HORIZON} steps"] = oracle_value(
                run.policy, _oracle(run), td, horizon=HORIZON, gamma=discount
            )
    return _drawn(
        maps, axes_values, labels, f"{name}: value and action-gradient in the critics' unit"
    )


def _plane(
    visited_ND: Tensor, features: Sequence[int], points: int, name: str
) -> tuple[list[Tensor], Tensor]:
    """The axes' values and observations ``[points, points, D]`` over the visited ranges."""
    count = visited_ND.shape[1]
    if len(set(features)) < 2 or not all(0 <= i < count for i in features):
        raise LoadError(
            f"--features {' '.join(map(str, features))}: {name} has the features 0 to {count - 1}; "
            "choose two."
        )
    ranges = [visited_ND[:, i].aminmax() for i in features]
    axes_values = [torch.linspace(low.item(), high.item(), points) for low, high in ranges]
    states = visited_ND.median(0).values.repeat(points, points, 1)
    for i, grid in zip(features, torch.meshgrid(*axes_values, indexing="xy"), strict=True):
        states[..., i] = grid
    return axes_values, states


@torch.enable_grad()
def _critic_value(run: LoadedRun, td: TensorDictBase) -> tuple[Tensor, Tensor]:
    """``Q`` ``[*B]`` and its action-gradient ``[*B, A]``."""
    action = run.policy(td.clone(False))["action"].detach().requires_grad_()
    td = td.select("observation").set("action", action)
    values = [critic(td.clone(False))["state_action_value"] for critic in run.critics]
    value = torch.stack(values).amin(0).squeeze(-1)
    (slope,) = torch.autograd.grad(value.sum(), action)
    return value.detach(), slope


def _oracle(run: LoadedRun) -> TensorDictSequential:
    """Pendulum's true dynamics, its rewards in the unit of the run's critics."""
    scalers = [part for part in run.world_model if isinstance(part, RewardScaler)]
    return TensorDictSequential(OraclePendulum(), *scalers)


def _drawn(
    maps: dict[str, tuple[Tensor, Tensor]], axes_values: list[Tensor], labels: list[str], title: str
) -> Figure:
    """A row for each map; a column has one scale, of the central 98 % of its numbers."""
    values = [value.cpu() for value, _ in maps.values()]
    # One action has a direction, of several the gradient's length is drawn.
    single = next(iter(maps.values()))[1].shape[-1] == 1
    slopes = [(s.squeeze(-1) if single else s.norm(dim=-1)).cpu() for _, s in maps.values()]
    columns = [
        ("Q(s, π(s))", values, "viridis", _limits(values)),
        ("∂Q/∂a at π(s)", slopes, "RdBu_r", _symmetric(slopes))
        if single
        else ("length of ∂Q/∂a at π(s)", slopes, "viridis", _limits(slopes)),
    ]
    ticks = [values.numpy() for values in axes_values]
    figure = Figure(figsize=(9, 0.6 + 3.4 * len(maps)), layout="constrained")
    panels = figure.subplots(len(maps), 2, sharex=True, sharey=True, squeeze=False)
    for column, (name, tables, colors, (low, high)) in enumerate(columns):
        for row, (source, table) in enumerate(zip(maps, tables, strict=True)):
            axes: Axes = panels[row, column]
            mesh = axes.pcolormesh(*ticks, table.numpy(), cmap=colors, vmin=low, vmax=high)
            axes.set_title(f"{name}, {source}", fontsize="small")
            axes.set(xlabel=labels[0], ylabel=labels[1])
            axes.label_outer()
        figure.colorbar(mesh, ax=panels[:, column], extend="both")
    figure.suptitle(title, fontsize="medium")
    return figure


def _limits(tables: list[Tensor]) -> tuple[float, float]:
    low, high = torch.cat([t.flatten() for t in tables]).quantile(torch.tensor([0.01, 0.99]))
    return low.item(), high.item()


def _symmetric(tables: list[Tensor]) -> tuple[float, float]:
    _, high = _limits([table.abs() for table in tables])
    return -high, high
