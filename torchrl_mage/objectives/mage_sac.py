"""MAGE-SAC: the action-gradient of soft actor-critic's TD error, and its stochastic actor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    dispatch,
)
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules.distributions.utils import rsample_and_log_prob

from torchrl_mage.objectives.checks import check_action, run_network
from torchrl_mage.objectives.mage import MAGELoss


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
    entropy there. There is no target actor.

    Args:
        actor_network: stochastic policy with a reparameterised distribution, such as a
            ``ProbabilisticActor`` of ``TanhNormal``.
        qvalue_network: as in :class:`~torchrl_mage.MAGELoss`.
        world_model: as there.

    Keyword Args:
        action_spec: bounded spec of the action; exclusive with ``bounds``.
        bounds: ``(low, high)`` of the action; exclusive with ``action_spec``.
        num_qvalue_nets: number of critics.
        sub_sample_len: as in :class:`~torchrl_mage.MAGELoss`.
        lmbda: weight of the TD error, :math:`\lambda \ge 0`.
        gradient_coeff: weight ``c`` of the action-gradient error.
        alpha_init: first temperature :math:`\alpha`, in units of the reward.
        fixed_alpha: whether it stays; then ``loss_alpha`` is 0.
        target_entropy: :math:`\bar H` in nats, or ``"auto"``: minus the number of actions, which
            takes an ``action_spec``.
        loss_function: :math:`\rho`: ``"smooth_l1"``, ``"l2"`` or ``"l1"``.
        delay_qvalue: whether the critics have target networks.
        separate_losses: as in :class:`~torchrl_mage.MAGELoss`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        deactivate_vmap: whether to loop over the critics.

    :meth:`forward` writes what :class:`~torchrl_mage.MAGELoss` does, and ``loss_alpha``, ``alpha``
    and ``entropy`` (:math:`-\log \pi(a|s)`, ``[*B]``).

    Randomness comes from the global generator: in :meth:`forward` the actor's loss draws its action
    first, then in :meth:`value_loss` the subset of the critics, if any, the action, the world
    model's draws, the next action.

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
        action_spec: TensorSpec | None = None,
        bounds: tuple[float, float] | None = None,
        num_qvalue_nets: int = 2,
        sub_sample_len: int | None = None,
        lmbda: float = 0.2,
        gradient_coeff: float = 1.0,
        alpha_init: float = 1.0,
        fixed_alpha: bool = False,
        target_entropy: float | Literal["auto"] = "auto",
        loss_function: str = "smooth_l1",
        delay_qvalue: bool = True,
        separate_losses: bool = False,
        reduction: str = "mean",
        deactivate_vmap: bool = False,
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
            action_spec=action_spec,
            bounds=bounds,
            num_qvalue_nets=num_qvalue_nets,
            sub_sample_len=sub_sample_len,
            lmbda=lmbda,
            gradient_coeff=gradient_coeff,
            policy_noise=0.0,
            noise_clip=0.0,
            loss_function=loss_function,
            delay_actor=False,
            delay_qvalue=delay_qvalue,
            separate_losses=separate_losses,
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
        )
        self.alpha_init = float(alpha_init)
        self.fixed_alpha = fixed_alpha
        if target_entropy == "auto":
            if action_spec is None:
                raise ValueError(
                    "target_entropy='auto' is minus the number of actions, which bounds do not "
                    "tell: pass action_spec, or the number itself."
                )
            target_entropy = -float(self.max_action.shape[-1])
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
        state = self._state(tensordict)
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
            inputs = state.select(*self.actor_network.in_keys)
            policy = run_network("actor", self.actor_network.get_dist, inputs)
        action, log_prob = rsample_and_log_prob(policy)
        check_action(action, self.tensor_keys.action, state.batch_size, self.max_action)
        if log_prob.dim() == action.dim():
            log_prob = log_prob.sum(-1)
        return action, log_prob

    def _act(self, state: TensorDictBase, params: TensorDictBase) -> Tensor:
        return self._sample(state, params)[0]

    def _target_action(
        self, next_state: TensorDictBase, params: TensorDictBase
    ) -> tuple[Tensor, ...]:
        """The next action and its log-probability."""
        return self._sample(next_state, params)

    def _next_value(
        self, next_state: TensorDictBase, chosen: tuple[Tensor, ...], params: TensorDictBase
    ) -> Tensor:
        """``min_i Q_i(s', a') - alpha log pi(a'|s')``, ``[*B, 1]``."""
        action, log_prob = chosen
        value = super()._next_value(next_state, (action,), params)
        return value - self.log_alpha.exp() * log_prob[..., None]

    def reset_parameters_recursive(self) -> None:
        """Redraws actor and critics; the temperature starts anew."""
        super().reset_parameters_recursive()
        self.log_alpha.data.fill_(math.log(self.alpha_init))
