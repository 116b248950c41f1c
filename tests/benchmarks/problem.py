"""The recipes' problem sizes: MAGE-TD3's step as the trainer takes it, and a naive one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from naive import actor_loss, critic_loss
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import TanhModule

from torchrl_mage import (
    GaussianEnsembleLoss,
    GaussianEnsembleWorldModel,
    MAGELoss,
    NetworkSoftUpdate,
    Normalizer,
    get_task,
)
from torchrl_mage.modules import xavier_mlp
from torchrl_mage.objectives import radam
from torchrl_mage.trainers import clipped_step, compiled
from torchrl_mage.trainers.hardware import Precision

LMBDA, TAU, CLIP, GAMMA = 0.2, 0.005, 2.0, 0.99


@dataclass(frozen=True)
class Size:
    """Dimensions of a task, and a recipe's of its networks, batches and targets."""

    task: str
    obs: int
    action: int
    batch: int
    model: tuple[int, ...]
    actor: tuple[int, ...]
    critic: tuple[int, ...] = (384, 384)
    members: int = 8
    fit_batch: int = 256
    horizon: int = 1
    layer_norm: bool = False

    @staticmethod
    def _forward(widths: tuple[int, ...]) -> int:
        return sum(2 * a * b for a, b in itertools.pairwise(widths))

    @property
    def policy_flop(self) -> float:
        """Floating-point operations of one policy-optimisation step, from the shapes.

        Forwards' worth: actor 1; both target critics and, for each imagined step, model and target
        actor 2 (forward and the gradient of their input), on one member a sample; both critics 6;
        and every second time the actor's step, 3 of the actor and 2 of both critics.
        """
        actor = self._forward((self.obs, *self.actor, self.action))
        critics = 2 * self._forward((self.obs + self.action, *self.critic, 1))
        model = self._forward((self.obs + self.action, *self.model, 2 * self.obs))
        actors = 1 + 2 * self.horizon + 0.5 * 3
        imagined = 2 * self.horizon * model
        return self.batch * (actors * actor + imagined + (2 + 6 + 0.5 * 2) * critics)

    @property
    def fit_flop(self) -> float:
        """Of one minibatch for every member: three forwards' worth."""
        model = self._forward((self.obs + self.action, *self.model, 2 * self.obs))
        return 3 * self.members * self.fit_batch * model


SIZES = {
    "pendulum": Size("Pendulum-v1", 3, 1, 512, (128, 128), (128, 128)),
    "halfcheetah": Size("HalfCheetah-v5", 18, 6, 1024, (512,) * 4, (384, 384)),
    "pendulum fast": Size(
        "Pendulum-v1", 3, 1, 256, (128, 128), (128, 128), (128, 128), fit_batch=128, horizon=3
    ),
    "halfcheetah fast": Size(
        "HalfCheetah-v5",
        18,
        6,
        256,
        (256,) * 4,
        (256, 256),
        (256, 256),
        members=5,
        fit_batch=128,
        horizon=3,
        layer_norm=True,
    ),
}
CPU = torch.device("cpu")


class Trainer:
    """The updates of ``examples/mage_td3.py``, eager or compiled (the fit too, to compare)."""

    def __init__(
        self,
        size: Size,
        compile: bool,
        device: torch.device = CPU,
        precision: Precision = "float32",
    ) -> None:
        torch.manual_seed(0)
        task = get_task(size.task)
        self.size = size
        self.normalizer = Normalizer(size.obs, device=device)
        self.dynamics = GaussianEnsembleWorldModel(
            size.obs, size.action, ensemble_size=size.members, num_cells=size.model, device=device
        )
        world_model = TensorDictSequential(
            self.dynamics,
            task.reward,
            self.normalizer.on(("next", "observation"), ("next", "normalized_observation")),
        )
        self.actor_net = xavier_mlp(size.obs, size.action, size.actor, device=device)
        self.actor = TensorDictSequential(
            TensorDictModule(self.actor_net, ["normalized_observation"], ["param"]),
            TanhModule(in_keys=["param"], out_keys=["action"], low=-1.0, high=1.0),
        )
        self.critic_nets = [
            xavier_mlp(
                size.obs + size.action, 1, size.critic, layer_norm=size.layer_norm, device=device
            )
            for _ in range(2)
        ]
        critics = [
            TensorDictModule(net, ["normalized_observation", "action"], ["state_action_value"])
            for net in self.critic_nets
        ]
        self.loss = MAGELoss(
            self.actor,
            critics,
            world_model,
            bounds=(-1.0, 1.0),
            lmbda=LMBDA,
            horizon=size.horizon,
        )
        self.loss.make_value_estimator(gamma=GAMMA)
        self.critic_targets = NetworkSoftUpdate(self.loss, "qvalue_network", tau=TAU)
        self.actor_targets = NetworkSoftUpdate(self.loss, "actor_network", tau=TAU)
        self.model_loss = GaussianEnsembleLoss(self.dynamics)
        parameters = {
            "critic": self.loss.qvalue_network_params.parameters(),
            "actor": self.loss.actor_network_params.parameters(),
        }
        self.optimizers = {name: radam(ps, lr=1e-4) for name, ps in parameters.items()}
        self.optimizers["model"] = radam(
            self.model_loss.world_model_params.parameters(),
            lr=1e-4,
            weight_decay=1e-4,
            decoupled_weight_decay=True,
        )
        self.steps = {name: clipped_step(o, CLIP) for name, o in self.optimizers.items()}
        self.data = TensorDict(
            {
                "observation": torch.randn(4096, size.obs, device=device),
                "action": torch.rand(4096, size.action, device=device),
                ("next", "observation"): torch.randn(4096, size.obs, device=device),
            },
            [4096],
        )
        self.loss.value_loss(self._states())
        wrap = {"enabled": compile, "device": device}
        self.value_loss = compiled(self.loss.value_loss, **wrap, precision=precision)
        self.actor_loss = compiled(self.loss.actor_loss, **wrap, precision=precision)
        self.model_nll = compiled(self.model_loss.nll, **wrap, precision=precision)
        self.steps["model"] = compiled(self.steps["model"], fullgraph=False, **wrap)

    def _states(self) -> TensorDict:
        index = torch.randint(len(self.data), (self.size.batch,), device=self.data.device)
        return self.normalizer(self.data.select("observation")[index])

    def policy_steps(self) -> None:
        """Two policy-optimisation steps: the actor moves in one of them."""
        for turn in range(2):
            states = self._states()
            self._descend("critic", self.value_loss(states)[0])
            self.critic_targets.step()
            if turn:
                self._descend("actor", self.actor_loss(states)[0])
                self.actor_targets.step()

    def fit_batch(self) -> None:
        """One minibatch for every member."""
        index = torch.randint(len(self.data), (self.size.members, self.size.fit_batch))
        self._descend("model", self.model_nll(self.data[index])[0])

    def _descend(self, name: str, loss: Tensor) -> None:
        loss.backward()
        self.steps[name]()
        self.optimizers[name].zero_grad()


class NaiveTrainer:
    """The same updates written plainly: every member for every sample, critic after critic, double
    backward through everything, optimisers and targets parameter by parameter.
    """

    def __init__(self, size: Size) -> None:
        ours = Trainer(size, compile=False)
        self.size, self.data, self.model = size, ours.data["observation"], ours.dynamics
        self.transitions = ours.data
        self.actor = nn.Sequential(ours.actor_net, nn.Tanh())
        self.critics = nn.ModuleList(copy.deepcopy(ours.critic_nets))
        self.targets = copy.deepcopy(nn.ModuleList([self.actor, *self.critics]))
        self.reward: Callable[..., Tensor] = get_task(size.task).reward.module
        self.critic_optimizer = torch.optim.RAdam(self.critics.parameters(), lr=1e-4)
        self.actor_optimizer = torch.optim.RAdam(self.actor.parameters(), lr=1e-4)
        self.model_optimizer = torch.optim.RAdam(self.model.parameters(), lr=1e-4)

    def _members(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        x = inputs.expand(self.size.members, *inputs.shape) if inputs.dim() == 2 else inputs
        for layer in self.model.network:
            is_linear = hasattr(layer, "weight")
            x = torch.baddbmm(layer.bias, x, layer.weight) if is_linear else x * torch.sigmoid(x)
        mean, raw = x.chunk(2, -1)
        return mean, -5 + 4 * torch.sigmoid(raw)

    def _next_state(self, state: Tensor, action: Tensor) -> Tensor:
        mean, log_var = self._members(torch.cat([state, action], -1))
        member = torch.randint(self.size.members, (len(state),))
        chosen = mean[member, torch.arange(len(state))], log_var[member, torch.arange(len(state))]
        return state + chosen[0] + (0.5 * chosen[1]).exp() * torch.randn_like(state)

    def policy_steps(self) -> None:
        """As :meth:`Trainer.policy_steps`."""
        for turn in range(2):
            state = self.data[torch.randint(len(self.data), (self.size.batch,))]
            noise = (0.2 * torch.randn(self.size.batch, self.size.action)).clamp(-0.5, 0.5)
            loss = critic_loss(
                state,
                self.actor,
                self.targets[0],
                self.critics,
                self.targets[1:],
                self._next_state,
                self.reward,
                lambda s: torch.zeros_like(s[..., :1], dtype=torch.bool),
                noise,
                lmbda=LMBDA,
                gradient_coeff=1.0,
                loss_function="smooth_l1",
                gamma=GAMMA,
                horizon=self.size.horizon,
            )
            self._descend(self.critic_optimizer, self.critics, loss, self.targets[1:])
            if turn:
                loss = actor_loss(state, self.actor, self.critics)
                self._descend(self.actor_optimizer, self.actor, loss, self.targets[0])

    def fit_batch(self) -> None:
        """As :meth:`Trainer.fit_batch`."""
        td = self.transitions[
            torch.randint(len(self.data), (self.size.members, self.size.fit_batch))
        ]
        mean, log_var = self._members(torch.cat([td["observation"], td["action"]], -1))
        target = td["next", "observation"] - td["observation"]
        loss = ((mean - target) ** 2 / log_var.exp() + log_var).mean()
        self._descend(self.model_optimizer, self.model, loss, None)

    def _descend(
        self,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        loss: Tensor,
        target: nn.Module | None,
    ) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(network.parameters(), CLIP)
        optimizer.step()
        for ours, theirs in zip(
            network.parameters(), target.parameters() if target else (), strict=False
        ):
            theirs.data.copy_(TAU * ours.data + (1 - TAU) * theirs.data)
