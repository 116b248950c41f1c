"""The world model of a run: what of the task is known, what is learned, and how that is fitted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential

from torchrl_mage import (
    BoundedTD0Estimator,
    GaussianEnsembleLoss,
    GaussianEnsembleWorldModel,
    Normalizer,
    RewardModel,
    RewardScaler,
    TerminationModel,
)
from torchrl_mage.envs import Task
from torchrl_mage.objectives import TransitionLoss, fit, radam
from torchrl_mage.trainers import Minimizer, Run, SettingsError


def _is_large(model: torch.nn.Module) -> bool:
    """Whether its optimiser's step is worth a graph: 14 s to compile, a seventh of it saved.

    Of 4.2 ms at 1,065,000 parameters; of the 0.9 at 143,000 it saves 0.2.
    """
    return sum(parameter.numel() for parameter in model.parameters()) >= 10**6


def _in_order(*parts: TensorDictModuleBase | None) -> TensorDictSequential:
    """Of the parts that there are."""
    return TensorDictSequential(*(part for part in parts if part is not None))


class LearnedWorldModel:
    """Dynamics, reward, termination and the next state's normaliser, in the order of use.

    Args:
        cfg: ``world_model``, ``reward_model``, ``reward``, ``termination``, ``discount``,
            ``critic.units``, ``critic.bounded``.
        task: what is known of it is used where ``reward`` and ``termination`` say so.
        normalizer: of the agent.
        action_dim: number of action features.
        device: of the networks.
    """

    def __init__(
        self,
        cfg: DictConfig,
        task: Task,
        normalizer: Normalizer,
        action_dim: int,
        device: torch.device,
    ) -> None:
        obs_dim = normalizer.statistics.mean.shape[0]
        self._cfg = cfg.world_model
        self._head_cfg = cfg.get("reward_model")
        self.dynamics = GaussianEnsembleWorldModel(
            obs_dim,
            action_dim,
            ensemble_size=cfg.world_model.ensemble_size,
            num_cells=cfg.world_model.num_cells,
            device=device,
        )
        self.heads: dict[str, RewardModel | TerminationModel] = {}
        if cfg.get("reward") == "learned" or (cfg.get("reward") == "auto" and not task.reward):
            self.heads["reward"] = self._head(RewardModel, obs_dim, action_dim, device)
        elif task.reward is None:
            raise SettingsError(f"no reward of {task.name} is known: pass reward=learned.")
        if cfg.get("termination") == "learned" or (
            cfg.get("termination") == "auto" and not task.known
        ):
            self.heads["termination"] = self._head(TerminationModel, obs_dim, action_dim, device)
        elif not task.known:
            raise SettingsError(f"when {task.name} ends is not known: pass termination=learned.")
        self._known = {}
        if task.reward is not None and "reward" not in self.heads:
            self._known["reward"] = task.reward
        if task.termination is not None and "termination" not in self.heads:
            self._known["terminated"] = task.termination
        self._warmup_steps, self._seen, self._task = cfg.warmup_steps, 0, task
        self._discount, self.scaler = cfg.discount, None
        self._bounded = cfg.critic.get("bounded", False)
        if cfg.critic.get("units") == "range":
            endless = task.termination is None and "termination" not in self.heads
            self.scaler = RewardScaler(cfg.discount, centered=endless, device=device)
        following = normalizer.on(("next", "observation"), ("next", "normalized_observation"))
        self.module = _in_order(
            self.dynamics,
            self.heads.get("reward", task.reward),
            self.scaler,
            self.heads.get("termination", task.termination),
            following,
        )
        self.read = _in_order(normalizer, self.scaler, following)  # a real transition, as imagined

    def value_estimator(self) -> dict[str, Any]:
        """What a loss's ``make_value_estimator`` takes."""
        gamma = {"gamma": self._discount}
        if self.scaler is None or not self._bounded:
            return gamma
        return {"value_type": BoundedTD0Estimator, "bounds": self.scaler.value_bounds, **gamma}

    def _head(self, kind: Any, obs_dim: int, action_dim: int, device: torch.device) -> Any:
        assert self._head_cfg is not None
        return kind(obs_dim, action_dim, num_cells=self._head_cfg.num_cells, device=device)

    def held_by(self, run: Run, in_graph: Callable[..., Any]) -> LearnedWorldModel:
        """Has ``run`` hold what is learned; makes its minimizers, which ``in_graph`` compiles."""
        self._run = run
        if self.heads:
            run.say(f"learned beside the dynamics: {', '.join(self.heads)}")
        scaler = {} if self.scaler is None else {"reward_scaler": self.scaler}
        run.holds(world_model=self.dynamics, **self.heads, **scaler)
        nll = GaussianEnsembleLoss(self.dynamics)
        # On a CPU a compiled likelihood is 10 % faster, and its compilation takes longer than that
        # saves; the small batches of the first fits are not worth one anywhere.
        likelihood = in_graph(nll.nll, batch_size=self._cfg.batch_size, on_cpu=False)
        fitted: list[tuple[Any, Any, Any, DictConfig]] = [
            (self.dynamics, nll, likelihood, self._cfg)
        ]
        for head in self.heads.values():
            assert self._head_cfg is not None
            error = TransitionLoss(head)
            fitted.append((head, error, error.error, self._head_cfg))
        self._fitted = []
        for model, loss, function, cfg in fitted:
            minimize = Minimizer(
                run,
                getattr(loss, "name", "loss_world_model"),
                function,
                radam(
                    model.parameters(),
                    lr=cfg.lr,
                    weight_decay=cfg.weight_decay,
                    decoupled_weight_decay=True,
                ),
                clip=cfg.grad_clip,
                # RAdam's step has a graph break by design.
                **({"graph": partial(in_graph, fullgraph=False)} if _is_large(model) else {}),
            )
            self._fitted.append((model, minimize, loss.in_keys))
        return self

    def observe(self, transition: TensorDictBase) -> None:
        """Takes new transitions' rewards into the value range; checks what is known by them.

        Raises:
            SettingsError: during warm-up, or in data to begin with, a known reward or termination
                is not the environment's.
        """
        if self._seen < max(self._warmup_steps, 1):
            self._check_known(transition)
        self._seen += len(transition)
        if self.scaler is not None:
            self.scaler.update(transition["next", "reward"])

    def _check_known(self, transition: TensorDictBase) -> None:
        states = transition.select("observation", "action", ("next", "observation"))
        for name, module in self._known.items():
            known, real = module(states.clone())["next", name], transition["next", name]
            right = torch.isclose(known.float(), real.float(), rtol=1e-3, atol=1e-3).all(-1)
            if not right.all():
                i = int(right.logical_not().nonzero()[0, 0])
                where = f"step {self._seen + 1}" if len(states) == 1 else f"transition {i} of data"
                raise SettingsError(
                    f"{where}: the {name} that is known of {self._task.name} is "
                    f"{known[i].tolist()}, the environment's {real[i].tolist()}, at "
                    f"the action {transition['action'][i].tolist()} in [-1, 1]. Mend the "
                    "Task's function, or learn it: reward=learned termination=learned."
                )

    def fit(self, data: TensorDictBase) -> None:
        """Fits all that is learned to all transitions; the new ones enter its statistics."""
        with self._run.timing("fit"):
            for model, minimize, keys in self._fitted:
                fit(
                    model,
                    minimize,
                    data.select(*keys),
                    new=len(data) - int(model.observation_statistics.count),
                    batch_size=self._cfg.batch_size,
                    min_batches=self._cfg.fit_batches,
                    exact=self._cfg.exact_fit_batches,
                )
