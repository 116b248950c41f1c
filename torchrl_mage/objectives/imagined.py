"""What the agent losses share: TD3 on transitions that a world model imagines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import TensorSpec
from torchrl.objectives import TD3Loss, ValueEstimators
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_mage.diagnostics import target_gradient_paths
from torchrl_mage.objectives.arguments import check_positive_count
from torchrl_mage.objectives.contract import (
    check_hook,
    check_weights,
    ended,
    imagine,
)
from torchrl_mage.objectives.door import LossWithDoor
from torchrl_mage.objectives.real_value_loss import real_value_loss

ACTION, BONUS = "action", "bonus"  # what the target makes of a policy's choice


class AgentArguments(TypedDict, total=False):
    """What every agent loss takes; the defaults and the meaning are :class:`ImaginedTD3Loss`'s."""

    action_spec: TensorSpec | None
    bounds: tuple[float, float] | None
    num_qvalue_nets: int
    sub_sample_len: int | None
    horizon: int
    delay_qvalue: bool
    separate_losses: bool
    reduction: str | None
    deactivate_vmap: bool


class ImaginedTD3Loss(LossWithDoor):
    r"""The target, the actor's loss and the diagnostics of all losses on imagined transitions.

    The target of a first action is the return of ``H`` steps of the world model under the policy,
    with the target critics' value at the end (model value expansion, arXiv:1803.00101; ``H = 1`` is
    MAGE's, arXiv:2004.14309):

    .. math::
        y = \sum_{h<H} \gamma^h c_h r_h + \gamma^H c_H \min_i \bar Q_i(s_H, a_H),
        \qquad c_h = \prod_{j<h} (1 - d_j)

    It is TD(0)'s backup applied ``H`` times, from the last step to the first.

    Args:
        actor_network: policy, writes ``action``.
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
        action_spec: bounded spec of the action; exclusive with ``bounds``.
        bounds: ``(low, high)`` of the action; exclusive with ``action_spec``.
        num_qvalue_nets: number of critics.
        sub_sample_len: how many critics, drawn at random for each call, the target's minimum is
            over; the actor then ascends the mean of all (REDQ, arXiv:2101.05982). ``None``: all,
            and the actor ascends their minimum.
        horizon: imagined steps ``H`` of the target.
        differentiated: whether the TD error's gradient is trained, so that the next state must
            depend on the action.
        policy_noise: standard deviation of the target policy's noise, at the last imagined step.
        noise_clip: its bound.
        loss_function: distance that the critics' loss is made of.
        delay_actor: whether the actor has a target network.
        delay_qvalue: whether the critics have target networks.
        separate_losses: whether parameters shared by actor and critic are trained by the actor's
            loss only.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the states' batch shape).
        deactivate_vmap: whether to loop over the critics instead of vectorising them.
    """

    @dataclass
    class _AcceptedKeys(TD3Loss._AcceptedKeys):
        """Keys that ``set_keys`` accepts; ``reward``, ``terminated`` ... are read under "next"."""

        termination_probability: NestedKey = "termination_probability"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = [  # noqa: RUF012
        "loss_actor",
        "loss_qvalue",
        "td_error",
        "action_gradient_error",
        "action_gradient",
        "pred_value",
        "target_value",
        "next_terminated",
        "state_action_value_actor",
    ]
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0,)
    _without_gradient = "set gradient_coeff=0 for Dyna"

    world_model: TensorDictModuleBase

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        world_model: TensorDictModuleBase,
        *,
        action_spec: TensorSpec | None = None,
        bounds: tuple[float, float] | None = None,
        num_qvalue_nets: int = 2,
        sub_sample_len: int | None = None,
        horizon: int = 1,
        differentiated: bool = True,
        policy_noise: float = 0.0,
        noise_clip: float = 0.0,
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        separate_losses: bool = False,
        reduction: str | None = "mean",
        deactivate_vmap: bool = False,
    ) -> None:
        check_positive_count(horizon=horizon)
        if sub_sample_len is not None and not 1 <= sub_sample_len <= num_qvalue_nets:
            raise ValueError(
                f"sub_sample_len must lie between 1 and num_qvalue_nets={num_qvalue_nets}, got "
                f"{sub_sample_len}."
            )
        super().__init__(
            actor_network,
            qvalue_network,
            action_spec=action_spec,
            bounds=bounds,
            num_qvalue_nets=num_qvalue_nets,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function=loss_function,
            delay_actor=delay_actor,
            delay_qvalue=delay_qvalue,
            separate_losses=separate_losses,
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
        )
        if not differentiated:
            self.out_keys = [key for key in self.out_keys if not key.startswith("action_gradient")]
        # Not registered: the model is trained elsewhere, and its weights are not the loss's.
        self.__dict__["world_model"] = world_model
        self.horizon = horizon
        self.differentiated = differentiated
        self.sub_sample_len = sub_sample_len
        self._checked: set[Any] = set()  # the kinds of batch that were checked

    # ------------------------------------------------------------------ losses

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses and their diagnostics, from the states in ``tensordict``."""
        loss_actor, actor_metadata = self.actor_loss(tensordict)
        loss_qvalue, metadata = self.value_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, metadata["td_error"].max(0).values)
        return TensorDict(
            loss_actor=loss_actor, loss_qvalue=loss_qvalue, **actor_metadata, **metadata
        )

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss and its detached diagnostics."""
        state = self._states(tensordict)
        action = self._act(state, self.actor_network_params)
        value = self._value_of_actor(state, action)
        loss = self._reduced(-self._ascended(value), tensordict)
        self._forget(tensordict)
        return loss, {"state_action_value_actor": value.detach()}

    def real_value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' TD error on observed transitions; see :mod:`~.real_value_loss`."""
        return real_value_loss(self, tensordict)

    # ------------------------------------------------------------------ the target

    def _constants(self) -> tuple[ValueEstimatorBase, TensorDictBase, TensorDictBase]:
        """Estimator, target actor and target critics, which differentiation holds fixed.

        Made or read here: inside a transform neither a buffer nor detached data may appear.
        """
        qvalue_params = self.target_qvalue_network_params
        if self.sub_sample_len is not None:
            drawn = torch.rand(self.num_qvalue_nets, device=self.max_action.device).argsort()
            qvalue_params = qvalue_params.data[drawn[: self.sub_sample_len]]
        return self.value_estimator, self.target_actor_network_params, qvalue_params

    def _target(
        self, state: TensorDictBase, action: Tensor, *constants: Any
    ) -> tuple[Tensor, Tensor]:
        """``y`` and the share of terminated next states, each ``[*B]``, differentiable in ``a``."""
        target, share = self._backup(state, action, self.horizon, *constants)
        return target.squeeze(-1), share.squeeze(-1).detach()

    def _backup(
        self,
        state: TensorDictBase,
        action: Tensor,
        steps: int,
        estimator: ValueEstimatorBase,
        actor_params: TensorDictBase,
        qvalue_params: TensorDictBase,
    ) -> tuple[Tensor, Tensor]:
        """``r + gamma (1 - d) V(s', a')`` and ``d``, each ``[*B, 1]``, of ``steps`` steps."""
        next_state, reward, terminated, share = self.imagined_step(state, action)
        chosen = self.choose(next_state, actor_params, last=steps == 1)
        constants = estimator, actor_params, qvalue_params
        next_value = self.next_value(next_state, chosen, steps - 1, *constants)
        check_hook("next_value", next_value, reward.shape)
        if terminated is None:  # a probability masks
            next_value = next_value * (1 - share)
            terminated = torch.zeros_like(reward, dtype=torch.bool)
        return self._transition_value(estimator, reward, terminated, next_value), share

    def _transition_value(
        self, estimator: ValueEstimatorBase, reward: Tensor, terminated: Tensor, next_value: Tensor
    ) -> Tensor:
        """What the estimator makes of a transition, all of them ``[*B, 1]``."""
        keys = self.tensor_keys
        transition = TensorDict(batch_size=reward.shape[:-1])
        for key, value in (
            (keys.reward, reward),
            (keys.terminated, terminated),
            (keys.done, terminated),
            (keys.state_action_value, next_value),
        ):
            transition.set(unravel_key(("next", key)), value)
        return estimator.value_estimate(transition)

    def next_value(
        self,
        state: TensorDictBase,
        chosen: TensorDictBase,
        steps: int,
        estimator: ValueEstimatorBase,
        actor_params: TensorDictBase,
        qvalue_params: TensorDictBase,
    ) -> Tensor:
        """``V(s, a)``, ``[*B, 1]``: what ``steps`` more steps and the target critics say."""
        action = chosen.get(ACTION)
        if steps:
            value, _ = self._backup(state, action, steps, estimator, actor_params, qvalue_params)
        else:
            value_CB = self._qvalue(state, self._for_each(qvalue_params, action), qvalue_params)
            value = value_CB.min(0)[0][..., None]
        bonus = chosen.get(BONUS, None)
        return value if bonus is None else value + bonus

    def imagined_step(
        self, state: TensorDictBase, action: Tensor
    ) -> tuple[TensorDictBase, Tensor, Tensor | None, Tensor]:
        """Where an action leads, and what that pays.

        Returns:
            The next state, with the keys that the networks read; the reward ``[*B, 1]``; whether it
            ends, boolean ``[*B, 1]``, or ``None`` where a probability masks; and the share that
            ends, ``[*B, 1]``: that boolean as a number, or the probability. The target is masked by
            the one or the other, Eq. 13's paths by the share: they must agree.
        """
        keys = self.tensor_keys
        imagined = imagine(self.world_model, state, action, keys.action)
        terminated, share = ended(imagined, keys)
        masks = keys.termination_probability in imagined
        next_state = imagined.select(*self._next_keys)
        return next_state, imagined.get(keys.reward), None if masks else terminated, share

    def choose(
        self, state: TensorDictBase, params: TensorDictBase, *, last: bool
    ) -> TensorDictBase:
        """The policy's choice in an imagined state: an ``action`` ``[*B, A]``, noisy at the last.

        A ``bonus`` ``[*B, 1]`` beside it is added to the value.
        """
        action = self._act(state, params)
        if last:
            noise = (torch.randn_like(action) * self.policy_noise).clamp(
                -self.noise_clip, self.noise_clip
            )
            action = (action + noise).clamp(self.min_action, self.max_action)
        return TensorDict({ACTION: action}, batch_size=state.batch_size)

    def target_gradient_paths(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """Eq. 13's split of the target's action-gradient; see :mod:`torchrl_mage.diagnostics`."""
        return target_gradient_paths(self, tensordict)

    # ------------------------------------------------------------------ actor and critics

    def _act(self, state: TensorDictBase, params: TensorDictBase) -> Tensor:
        """``pi(s)``, ``[*B, A]``."""
        with params.to_module(self.actor_network, preserve_module_state=False):
            out = self.actor_network(state.select(*self.actor_network.in_keys))
        action: Any = out.get(self.tensor_keys.action, None)
        if action is not None:  # else the door names who should have written it
            action = action.to(self.max_action.dtype)  # an actor of lower precision, by autocast
        return action

    def _qvalue(self, state: TensorDictBase, action_CBA: Tensor, params: TensorDictBase) -> Tensor:
        """``Q_i(s, a_i)``, ``[C, *B]``: each critic its own copy of the action, or of both."""
        td = state.select(*self.qvalue_network.in_keys, strict=False)
        td = td.expand(action_CBA.shape[:-1]).set(self.tensor_keys.action, action_CBA)
        out = self._vmap_qvalue_network00(td, params)
        return out.get(self.tensor_keys.state_action_value).squeeze(-1).to(action_CBA.dtype)

    @staticmethod
    def _for_each(params: TensorDictBase, inputs: Any) -> Any:
        """A copy of the inputs for each of the critics, ``[C, *B, A]``."""
        return inputs.expand(params.batch_size[0], *inputs.shape)

    def _value_of_actor(self, state: TensorDictBase, action: Tensor) -> Tensor:
        """``Q_i(s, a)`` of critics held fixed, ``[C, *B]``, differentiable in the action."""
        params = self._cached_detach_qvalue_network_params
        return self._qvalue(state, self._for_each(params, action), params)

    def _ascended(self, value_CB: Tensor) -> Tensor:
        """What of the critics the actor ascends, ``[*B]``."""
        return value_CB.min(0)[0] if self.sub_sample_len is None else value_CB.mean(0)

    def _reduced(self, loss: Tensor, tensordict: TensorDictBase | None) -> Tensor:
        """The reduction of a loss ``[*B]``, by prioritised replay's weights if there are some."""
        weights = None if tensordict is None else self._maybe_get_priority_weight(tensordict)
        if weights is not None:
            weights = check_weights(weights, self.tensor_keys.priority_weight, loss)
        return self._reduce_loss(loss, tensordict, weights=weights)

    def _apply(self, fn: Any, recurse: bool = True) -> ImaginedTD3Loss:
        self.world_model._apply(fn)
        super()._apply(fn, recurse)
        self._checked.clear()
        return self
