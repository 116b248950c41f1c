"""MAGE-SAC: the action-gradient of soft actor-critic's TD error, and its stochastic actor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    dispatch,
)
from torch import Tensor, nn
from torchrl.modules.distributions.utils import rsample_and_log_prob

from torchrl_mage.objectives.imagined import ACTION, BONUS, AgentArguments
from torchrl_mage.objectives.mage import MAGELoss

PER_ACTION = {"auto": -1.0, "half": -0.5}  # nats for each number of the action


class MAGESACLoss(MAGELoss):
    r"""Critic, actor and temperature losses of MAGE with an entropy-regularised stochastic actor.

    With :math:`a \sim \pi(\cdot|s)`, :math:`s' \sim p(s, a)` and :math:`a' \sim \pi(\cdot|s')`, all
    reparameterised,

    .. math::
        y &= r + \gamma (\min_i \bar Q_i(s', a') - \alpha \log \pi(a'|s')),
        \qquad \delta_i = y - Q_i(s, a)

        L_Q &= \sum_i \text{mean}\; c\,\rho(\|\nabla_a \delta_i\|) + \lambda\,\rho(\delta_i)

        L_\pi &= \text{mean}\; \alpha \log \pi(a|s) - \min_i Q_i(s, a)

        L_\alpha &= -\log \alpha\; \text{mean} (\log \pi(a|s) + \bar H)

    Soft actor-critic (arXiv:1812.05905, section 5) with the critics' objective of MAGE
    (arXiv:2004.14309, Algorithm 2). The gradient of ``y`` takes in what the next state does to the
    entropy there. There is no target actor. With ``horizon`` above 1, each imagined action is a
    draw with its own bonus.

    Args:
        actor_network: stochastic policy with a reparameterised distribution, such as a
            ``ProbabilisticActor`` of ``TanhNormal``.
        qvalue_network: as in :class:`~torchrl_mage.MAGELoss`.
        world_model: as there.

    Keyword Args:
        lmbda: weight of the TD error, :math:`\lambda \ge 0`.
        gradient_coeff: weight ``c`` of the action-gradient error.
        alpha_init: first temperature :math:`\alpha`, in units of the reward.
        fixed_alpha: whether it stays; then ``loss_alpha`` is 0.
        target_entropy: :math:`\bar H` in nats, or ``"auto"``: minus the number of actions, or
            ``"half"``: half of that (MBPO's, arXiv:1906.08253); either takes an ``action_spec``.
        loss_function: :math:`\rho`: ``"smooth_l1"``, ``"l2"`` or ``"l1"``.
        **shared: ``action_spec``, ``bounds``, ``num_qvalue_nets``, ``sub_sample_len``, ``horizon``,
            ``delay_qvalue``, ``separate_losses``, ``reduction`` and ``deactivate_vmap``, as in
            :class:`~torchrl_mage.MAGELoss`.

    :meth:`forward` writes what :class:`~torchrl_mage.MAGELoss` does, and ``loss_alpha``, ``alpha``
    and ``entropy`` (:math:`-\log \pi(a|s)`, ``[*B]``).

    Randomness comes from the global generator: in :meth:`forward` the actor's loss draws its action
    first, then in :meth:`value_loss` the subset of the critics, if any, the action, and for each
    imagined step the world model's draws and the next action.

    Raises:
        ValueError: as in :class:`~torchrl_mage.MAGELoss`; ``alpha_init`` is not positive,
            the actor is not stochastic, or ``target_entropy`` cannot be told.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import NormalParamExtractor, TensorDictSequential
        >>> from torchrl.data import Bounded
        >>> from torchrl.modules import MLP, ProbabilisticActor, TanhNormal
        >>> from torchrl_mage import OraclePendulum
        >>> actor = ProbabilisticActor(
        ...     TensorDictModule(
        ...         nn.Sequential(MLP(3, 2, num_cells=[16]), NormalParamExtractor()),
        ...         in_keys=["observation"], out_keys=["loc", "scale"],
        ...     ),
        ...     in_keys=["loc", "scale"], distribution_class=TanhNormal,
        ... )
        >>> spec = Bounded(-1, 1, (1,))
        >>> critics = [
        ...     TensorDictModule(
        ...         MLP(4, 1, num_cells=[16]),
        ...         in_keys=["observation", "action"], out_keys=["state_action_value"],
        ...     )
        ...     for _ in range(2)
        ... ]
        >>> loss = MAGESACLoss(actor, critics, OraclePendulum(), action_spec=spec)
        >>> _ = loss.make_value_estimator(gamma=0.99)
        >>> from torchrl.objectives import SoftUpdate
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> out = loss(TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]] * 8), batch_size=[8]))
        >>> sorted(key for key in out.keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_alpha', 'loss_qvalue']
    """

    out_keys = [*MAGELoss.out_keys, "loss_alpha", "alpha", "entropy"]  # noqa: RUF012

    log_alpha: Tensor
    target_entropy: float
    actor_network: ProbabilisticTensorDictSequential

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        world_model: TensorDictModuleBase,
        *,
        lmbda: float = 0.2,
        gradient_coeff: float = 1.0,
        alpha_init: float = 1.0,
        fixed_alpha: bool = False,
        target_entropy: float | Literal["auto", "half"] = "auto",
        loss_function: str = "smooth_l1",
        **shared: Unpack[AgentArguments],
    ) -> None:
        if not (math.isfinite(alpha_init) and alpha_init > 0):
            raise ValueError(f"alpha_init must be a finite positive number, got {alpha_init}.")
        if not hasattr(actor_network, "get_dist"):
            raise ValueError(
                f"MAGE-SAC needs a stochastic actor, got a {type(actor_network).__name__}: wrap "
                "the network in a ProbabilisticActor with distribution_class=TanhNormal, or use "
                "MAGELoss."
            )
        super().__init__(
            actor_network,
            qvalue_network,
            world_model,
            lmbda=lmbda,
            gradient_coeff=gradient_coeff,
            policy_noise=0.0,
            noise_clip=0.0,
            loss_function=loss_function,
            delay_actor=False,
            **shared,
        )
        self.alpha_init = float(alpha_init)
        self.fixed_alpha = fixed_alpha
        if isinstance(target_entropy, str):
            if target_entropy not in PER_ACTION:
                raise ValueError(
                    f"target_entropy must be a number, 'auto' or 'half', got {target_entropy!r}."
                )
            if shared.get("action_spec") is None:
                raise ValueError(
                    f"target_entropy={target_entropy!r} goes by the number of actions, which "
                    "bounds do not tell: pass action_spec, or the number itself."
                )
            target_entropy = PER_ACTION[target_entropy] * self.max_action.shape[-1]
        elif not math.isfinite(target_entropy):
            raise ValueError(f"target_entropy must be a finite number, got {target_entropy}.")
        self.target_entropy = float(target_entropy)
        log_alpha = torch.tensor(
            math.log(alpha_init), dtype=self.max_action.dtype, device=self.max_action.device
        )
        if fixed_alpha:
            self.register_buffer("log_alpha", log_alpha)
        else:
            self.register_parameter("log_alpha", nn.Parameter(log_alpha))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses and their diagnostics, from the states in ``tensordict``."""
        out = super().forward(tensordict)
        out.set("loss_alpha", self.alpha_loss(out.get("entropy"), tensordict))
        return out.set("alpha", self.log_alpha.detach().exp())

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss, and its detached diagnostics with the policy's ``entropy``."""
        state = self._states(tensordict)
        action, log_prob = self._sample(state, self.actor_network_params)
        value = self._value_of_actor(state, action)
        alpha = self.log_alpha.detach().exp()
        loss = self._reduced(alpha * log_prob - self._ascended(value), tensordict)
        self._forget(tensordict)
        return loss, {
            "state_action_value_actor": value.detach(),
            "entropy": -log_prob.detach(),
        }

    def alpha_loss(self, entropy: Tensor, tensordict: TensorDictBase | None = None) -> Tensor:
        """The temperature's loss, from the ``entropy`` of the actor's draws, ``[*B]``.

        A ``tensordict`` is read for its mask and its weights, which the other losses heed too.
        """
        if self.fixed_alpha:
            entropy = torch.full_like(entropy, self.target_entropy)
        return self._reduced(self.log_alpha * (entropy - self.target_entropy), tensordict)

    def _sample(self, state: TensorDictBase, params: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``a ~ pi(s)``, ``[*B, A]``, and ``log pi(a|s)``, ``[*B]``."""
        with params.to_module(self.actor_network, preserve_module_state=False):
            policy = self.actor_network.get_dist(state.select(*self.actor_network.in_keys))
        action, log_prob = rsample_and_log_prob(policy)
        if log_prob.dim() == action.dim():
            log_prob = log_prob.sum(-1)
        return action, log_prob

    def _act(self, state: TensorDictBase, params: TensorDictBase) -> Tensor:
        return self._sample(state, params)[0]

    def choose(
        self, state: TensorDictBase, params: TensorDictBase, *, last: bool
    ) -> TensorDictBase:
        """The policy's draw, and ``-alpha log pi(a|s)`` as its bonus."""
        action, log_prob = self._sample(state, params)
        bonus = -self.log_alpha.exp() * log_prob[..., None]
        return TensorDict({ACTION: action, BONUS: bonus}, batch_size=state.batch_size)

    def reset_parameters_recursive(self) -> None:
        """Redraws actor and critics; the temperature starts anew."""
        super().reset_parameters_recursive()
        self.log_alpha.data.fill_(math.log(self.alpha_init))
