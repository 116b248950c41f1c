"""MAGE: a critic trained on the action-gradient of its TD error, and its actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_mage.functional import mage_critic_loss, value_and_action_gradient
from torchrl_mage.objectives.arguments import check_nonnegative
from torchrl_mage.objectives.contract import check_hook
from torchrl_mage.objectives.imagined import AgentArguments, ImaginedTD3Loss


class MAGELoss(ImaginedTD3Loss):
    r"""The critic and actor losses of MAGE-TD3, from states alone.

    The world model imagines :math:`s' \sim p(s, a)` at :math:`a = \pi(s)`, with its reward, and

    .. math::
        y &= r + \gamma \min_i \bar Q_i(s', \bar\pi(s') + \epsilon), \qquad \delta_i = y - Q_i(s, a)

        L_Q &= \sum_i \text{mean}\; c\,\rho(\|\nabla_a \delta_i\|) + \lambda\,\rho(\delta_i)

        L_\pi &= -\text{mean}\; \min_i Q_i(s, \pi(s))

    (arXiv:2004.14309, Algorithm 2; Huber :math:`\rho` from appendix D.2). With ``horizon`` above 1,
    ``y`` is the return of several imagined steps (arXiv:1803.00101). Since ``y`` does not
    depend on the critics in training, its action-gradient is computed once, as a constant, and only
    :math:`\nabla_a Q_i` is differentiated twice; the result is exactly that of differentiating
    through everything.

    Args:
        actor_network: deterministic policy, writes ``action``.
        qvalue_network: critic ``Q(s, a)``, writes ``state_action_value`` ``[*B, 1]``. A list of
            critics keeps each one's initial parameters, and copies those that one shares with
            another; a single one is replicated ``num_qvalue_nets`` times with parameters redrawn
            uniformly in the original's range.
        world_model: reads the state and ``action``, writes under ``"next"`` the keys that actor and
            critics read (and, if ``horizon`` is above 1, those that it reads itself), ``reward``
            ``[*B, 1]`` and, if the task ends, ``terminated`` (boolean). A differentiable
            ``termination_probability`` masks the target by ``1 - p`` instead. It gets no gradient,
            is not part of ``parameters()`` or the state dict, and may be trained in place
            meanwhile.

    Keyword Args:
        lmbda: weight of the TD error, :math:`\lambda \ge 0`.
        gradient_coeff: weight ``c`` of the action-gradient error; 0 is Dyna-TD3.
        action_noise: standard deviation of Gaussian noise on the action at which the critics are
            trained, in units of the action, clipped to its box; 0 is the paper.
        policy_noise: standard deviation of the target policy's noise.
        noise_clip: its bound.
        loss_function: :math:`\rho`: ``"smooth_l1"``, ``"l2"`` or ``"l1"``.
        delay_actor: whether the actor has a target network.
        action_spec: bounded spec of the action; exclusive with ``bounds``.
        bounds: ``(low, high)`` of the action; exclusive with ``action_spec``.
        num_qvalue_nets: number of critics; 1, without target noise, is MAGE-DDPG.
        sub_sample_len: how many critics, drawn at random for each call, the target's minimum is
            over; the actor then ascends the mean of all (REDQ, arXiv:2101.05982). ``None``: all,
            and the actor ascends their minimum.
        horizon: imagined steps of the target; 1 is the paper. Actions after the first are the
            target policy's, the last one noisy.
        delay_qvalue: whether the critics have target networks.
        separate_losses: whether parameters shared by actor and critic are trained by the actor's
            loss only.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the states' batch shape).
        deactivate_vmap: whether to loop over the critics instead of vectorising them.

    :meth:`forward` writes ``loss_qvalue``, ``loss_actor`` and, detached: ``td_error``
    (:math:`|\delta_i|`, ``[C, *B]``), ``action_gradient_error`` (:math:`\|\nabla_a\delta_i\|`,
    ``[C, *B]``), ``action_gradient`` (:math:`\|\nabla_a Q_i\|`, ``[C, *B]``), ``pred_value``
    ``[C, *B]``, ``target_value`` ``[*B]``, ``next_terminated`` (share or probability of the first
    step, ``[*B]``) and ``state_action_value_actor`` ``[C, *B]``. The gradient's entries are absent
    when ``gradient_coeff`` is 0. Its input is left as it was but for the priority key ``td_error``.

    Randomness comes from the global generator: the subset of the critics, if any, the noise on the
    critics' action, if any, then for each imagined step the world model's draws, and at the last
    the target noise.

    Raises:
        ValueError: an argument is out of range; or, at the first eager call with states of a kind,
            an entry is missing or has the wrong shape or dtype, the world model writes no reward,
            or its next state does not depend on the action.

    Example:
        >>> from torchrl.modules import MLP, TanhModule
        >>> from torchrl_mage import GaussianEnsembleWorldModel
        >>> from tensordict.nn import TensorDictSequential
        >>> world_model = TensorDictSequential(
        ...     GaussianEnsembleWorldModel(3, 1, num_cells=(16,)),
        ...     TensorDictModule(
        ...         lambda a: -a.square(), in_keys=["action"], out_keys=[("next", "reward")]
        ...     ),
        ... )
        >>> actor = TensorDictModule(
        ...     torch.nn.Sequential(MLP(3, 1, num_cells=[16]), torch.nn.Tanh()),
        ...     in_keys=["observation"], out_keys=["action"],
        ... )
        >>> critics = [
        ...     TensorDictModule(
        ...         MLP(4, 1, num_cells=[16]),
        ...         in_keys=["observation", "action"], out_keys=["state_action_value"],
        ...     )
        ...     for _ in range(2)
        ... ]
        >>> loss = MAGELoss(actor, critics, world_model, bounds=(-1.0, 1.0), horizon=3)
        >>> _ = loss.make_value_estimator(gamma=0.99)
        >>> from torchrl.objectives import SoftUpdate
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> out = loss(TensorDict(observation=torch.zeros(8, 3), batch_size=[8]))
        >>> out["loss_qvalue"].shape, out["action_gradient_error"].shape
        (torch.Size([]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        world_model: TensorDictModuleBase,
        *,
        lmbda: float = 0.2,
        gradient_coeff: float = 1.0,
        action_noise: float = 0.0,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        **shared: Unpack[AgentArguments],
    ) -> None:
        check_nonnegative(lmbda=lmbda, gradient_coeff=gradient_coeff, action_noise=action_noise)
        super().__init__(
            actor_network,
            qvalue_network,
            world_model,
            differentiated=gradient_coeff > 0,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function=loss_function,
            delay_actor=delay_actor,
            **shared,
        )
        self.lmbda = float(lmbda)
        self.gradient_coeff = float(gradient_coeff)
        self.action_noise = float(action_noise)

    @property
    def perturbed_keys(self) -> list[NestedKey]:
        """The state's entries in which the TD error is differentiated too, beside the action."""
        return []

    def check(self, tensordict: TensorDictBase) -> None:
        """Runs actor, world model and critics once on the states, and names what does not fit.

        Raises:
            ValueError: as of every loss; or a perturbed entry is none that the networks read.
        """
        super().check(tensordict)
        if strange := [key for key in self.perturbed_keys if key not in self._state_keys]:
            raise ValueError(
                f"the loss's perturbed_keys {strange} are none of the state entries that actor, "
                f"critics and world model read, {self._state_keys}."
            )

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss and its detached diagnostics."""
        state = self._states(tensordict)
        constants = self._constants()
        critics, action_key = self.qvalue_network_params, self.tensor_keys.action

        def at(inputs: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
            action = inputs.get(action_key)
            if not self.perturbed_keys:
                return state, action
            return state.expand(inputs.batch_size).clone(False).update(inputs), action

        def target(inputs: TensorDictBase) -> tuple[Tensor, Tensor]:
            return self._target(*at(inputs), *constants)

        def value(inputs: TensorDictBase) -> tuple[Tensor, tuple[()]]:
            return self._qvalue(*at(inputs), critics), ()

        errors = TensorDict()
        metadata: dict[str, Tensor] = {}
        with torch.no_grad():
            action = self.critics_action(state)
            check_hook("critics_action", action[..., 0], state.batch_size)
            inputs = state.select(*self.perturbed_keys).set(action_key, action)
            if self.differentiated:
                target_B, target_slope, ended_B = value_and_action_gradient(target, inputs)
            else:
                target_B, ended_B = target(inputs)
        inputs_CB = self._for_each(critics, inputs)
        if self.differentiated:
            value_CB, slope, _ = value_and_action_gradient(value, inputs_CB)
            errors = target_slope - slope
            metadata["action_gradient_error"] = errors.get(action_key).detach().norm(dim=-1)
            metadata["action_gradient"] = slope.get(action_key).detach().norm(dim=-1)
        else:
            value_CB, _ = value(inputs_CB)
        td_error_CB = target_B - value_CB
        objective_B = self.critic_objective(td_error_CB, errors)
        check_hook("critic_objective", objective_B, state.batch_size)
        loss = self._reduced(objective_B, tensordict)
        self._forget(tensordict)
        return loss, metadata | {
            "td_error": td_error_CB.detach().abs(),
            "pred_value": value_CB.detach(),
            "target_value": target_B,
            "next_terminated": ended_B,
        }

    def critics_action(self, state: TensorDictBase) -> Tensor:
        """The action at which the critics are trained, ``[*B, A]``."""
        action = self._act(state, self.actor_network_params)
        if not self.action_noise:
            return action
        noise = self.action_noise * torch.randn_like(action)
        return (action + noise).clamp(self.min_action, self.max_action)

    def critic_objective(self, td_error_CB: Tensor, errors: TensorDictBase) -> Tensor:
        """The critics' objective, ``[*B]``, of ``delta`` and, by key, its gradients."""
        return mage_critic_loss(
            td_error_CB,
            errors.get(self.tensor_keys.action, None),
            lmbda=self.lmbda,
            gradient_coeff=self.gradient_coeff,
            loss_function=self.loss_function,
        )
