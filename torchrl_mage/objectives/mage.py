"""MAGE: a critic trained on the action-gradient of its TD error, and its actor."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.objectives import TD3Loss, ValueEstimators
from torchrl.objectives.utils import default_value_kwargs
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_mage.functional import (
    mage_critic_loss,
    target_gradient_paths,
    value_and_action_gradient,
)
from torchrl_mage.objectives.checks import (
    bounded_action_spec,
    check_action,
    check_bounds,
    check_choice,
    check_dtype,
    check_nonnegative,
    check_weights,
    check_written,
    read_entry,
    run_network,
)
from torchrl_mage.objectives.imagination import check_depends_on_action, ended, imagine

_GOES_ON = "_goes_on"  # by which share an episode continues, where a gradient is split into paths


class MAGELoss(TD3Loss):
    r"""The critic and actor losses of MAGE-TD3, from states alone.

    The world model imagines :math:`s' \sim p(s, a)` at :math:`a = \pi(s)`, with its reward, and

    .. math::
        y &= r + \gamma \min_i \bar Q_i(s', \bar\pi(s') + \epsilon), \qquad \delta_i = y - Q_i(s, a)

        L_Q &= \sum_i \text{mean}\; c\,\rho(\|\nabla_a \delta_i\|) + \lambda\,\rho(\delta_i)

        L_\pi &= -\text{mean}\; \min_i Q_i(s, \pi(s))

    (arXiv:2004.14309, Algorithm 2; Huber :math:`\rho` from appendix D.2). Since ``y`` does not
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
            critics read, ``reward`` ``[*B, 1]`` and, if the task ends, ``terminated`` (boolean). A
            differentiable ``termination_probability`` masks the target by ``1 - p`` instead. It
            gets no gradient, is not part of ``parameters()`` or the state dict, and may be trained
            in place meanwhile.

    Keyword Args:
        action_spec: bounded spec of the action; exclusive with ``bounds``.
        bounds: ``(low, high)`` of the action; exclusive with ``action_spec``.
        num_qvalue_nets: number of critics; 1, without target noise, is MAGE-DDPG.
        sub_sample_len: how many critics, drawn at random for each call, the target's minimum is
            over; the actor then ascends the mean of all (REDQ, arXiv:2101.05982). ``None``: all,
            and the actor ascends their minimum.
        lmbda: weight of the TD error, :math:`\lambda \ge 0`.
        gradient_coeff: weight ``c`` of the action-gradient error; 0 is Dyna-TD3.
        policy_noise: standard deviation of the target policy's noise.
        noise_clip: its bound.
        loss_function: :math:`\rho`: ``"smooth_l1"``, ``"l2"`` or ``"l1"``.
        delay_actor: whether the actor has a target network.
        delay_qvalue: whether the critics have target networks.
        separate_losses: whether parameters shared by actor and critic are trained by the actor's
            loss only.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the states' batch shape).
        deactivate_vmap: whether to loop over the critics instead of vectorising them.

    :meth:`forward` writes ``loss_qvalue``, ``loss_actor`` and, detached: ``td_error``
    (:math:`|\delta_i|`, ``[C, *B]``), ``action_gradient_error`` (:math:`\|\nabla_a\delta_i\|`,
    ``[C, *B]``), ``action_gradient`` (:math:`\|\nabla_a Q_i\|`, ``[C, *B]``), ``pred_value``
    ``[C, *B]``, ``target_value`` ``[*B]``, ``next_terminated`` (share or probability, ``[*B]``) and
    ``state_action_value_actor`` ``[C, *B]``. The gradient's entries are absent when
    ``gradient_coeff`` is 0. Its input is left as it was but for the priority key ``td_error``.

    Randomness comes from the global generator: the subset of the critics, if any, the world model's
    draws, then the target noise.

    Raises:
        ValueError: an argument is out of range; an entry is missing or has the wrong shape or
            dtype; the world model writes no reward; or, at the first eager call, its next state
            does not depend on the action.

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
        >>> loss = MAGELoss(actor, critics, world_model, bounds=(-1.0, 1.0))
        >>> _ = loss.make_value_estimator(gamma=0.99)
        >>> from torchrl.objectives import SoftUpdate
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> out = loss(TensorDict(observation=torch.zeros(8, 3), batch_size=[8]))
        >>> out["loss_qvalue"].shape, out["action_gradient_error"].shape
        (torch.Size([]), torch.Size([2, 8]))
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

    actor_network: TensorDictModule
    qvalue_network: TensorDictModule
    actor_network_params: TensorDictParams
    qvalue_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    world_model: TensorDictModuleBase
    max_action: Tensor
    min_action: Tensor

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
        lmbda: float = 0.2,
        gradient_coeff: float = 1.0,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        separate_losses: bool = False,
        reduction: str = "mean",
        deactivate_vmap: bool = False,
    ) -> None:
        check_nonnegative(
            lmbda=lmbda,
            gradient_coeff=gradient_coeff,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
        )
        check_choice("loss_function", loss_function, ("smooth_l1", "l2", "l1"))
        check_choice("reduction", reduction, ("mean", "sum", "none", None))
        if num_qvalue_nets < 1:
            raise ValueError(f"num_qvalue_nets must be at least 1, got {num_qvalue_nets}.")
        if sub_sample_len is not None and not 1 <= sub_sample_len <= num_qvalue_nets:
            raise ValueError(
                f"sub_sample_len must lie between 1 and num_qvalue_nets={num_qvalue_nets}, got "
                f"{sub_sample_len}."
            )
        if isinstance(qvalue_network, (Sequence, nn.ModuleList)):
            qvalue_network = list(qvalue_network)
            if len(qvalue_network) != num_qvalue_nets:
                raise ValueError(
                    f"got a list of {len(qvalue_network)} critics and num_qvalue_nets="
                    f"{num_qvalue_nets}; they must agree."
                )
            shared = {*actor_network.parameters()} & {
                parameter for critic in qvalue_network for parameter in critic.parameters()
            }
            if separate_losses and shared:
                raise ValueError(
                    f"separate_losses=True with a list of critics, {len(shared)} of whose "
                    "parameters are the actor's: pass a single critic, which is replicated."
                )
            seen: set[nn.Parameter] = set()
            # TorchRL would hold constant what critics share: each gets its own.
            for i, critic in enumerate(qvalue_network):
                if not seen.isdisjoint(own := set(critic.parameters())):
                    qvalue_network[i] = deepcopy(critic)
                seen |= own
        only = None  # a list of one, which TorchRL would take for a constant
        if isinstance(qvalue_network, list) and len(qvalue_network) == 1:
            (qvalue_network,) = qvalue_network
            only = TensorDict.from_module(qvalue_network).data.clone().unsqueeze(0)
        if action_spec is not None:
            action_spec = bounded_action_spec(action_spec, self.default_keys().action)
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
        for name in ("qvalue_network_params", "target_qvalue_network_params"):
            if only is not None and name in self._modules:
                self._modules[name].data.update_(only)
        check_bounds(self.min_action, self.max_action)
        for parameter in self.parameters():  # TorchRL rounds floats to float32
            box = (self.min_action, self.max_action) if bounds is None else bounds
            self.min_action, self.max_action = (
                torch.as_tensor(bound, dtype=parameter.dtype, device=parameter.device)
                for bound in box
            )
            break
        if not gradient_coeff:
            self.out_keys = [key for key in self.out_keys if not key.startswith("action_gradient")]
        # Not registered: the model is trained elsewhere, and its weights are not the loss's.
        self.__dict__["world_model"] = world_model
        self.lmbda = float(lmbda)
        self.gradient_coeff = float(gradient_coeff)
        self.sub_sample_len = sub_sample_len
        self._next_state_checked = False

    # ------------------------------------------------------------------ losses

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses and their diagnostics, from the states in ``tensordict``."""
        loss_actor, actor_metadata = self.actor_loss(tensordict)
        loss_qvalue, metadata = self.value_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, metadata["td_error"].max(0).values)
        return TensorDict(
            loss_actor=loss_actor, loss_qvalue=loss_qvalue, **actor_metadata, **metadata
        )

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss and its detached diagnostics."""
        state = self._state(tensordict)
        if self.gradient_coeff and not (self._next_state_checked or torch.compiler.is_compiling()):
            self._check_next_state(state)
        constants = self._constants()
        with torch.no_grad():
            action = self._act(state, self.actor_network_params)
            if self.gradient_coeff:
                inputs = self._differentiated(state, action)
                target, target_gradient, terminated = value_and_action_gradient(
                    lambda inputs: self._target(*self._placed(state, inputs), *constants), inputs
                )
            else:
                target, terminated = self._target(state, action, *constants)

        critics = self.qvalue_network_params
        metadata = {"target_value": target, "next_terminated": terminated}
        gradient_errors: tuple[Tensor, ...] = ()
        if self.gradient_coeff:
            value, gradient, _ = value_and_action_gradient(
                lambda inputs: (self._qvalue(*self._placed(state, inputs), critics), ()),
                self._for_each(critics, inputs),
            )
            split = (action.shape[-1], inputs.shape[-1] - action.shape[-1])
            gradient_errors = (target_gradient - gradient).split(split, -1)
            metadata["action_gradient_error"] = gradient_errors[0].detach().norm(dim=-1)
            metadata["action_gradient"] = gradient.detach().split(split, -1)[0].norm(dim=-1)
        else:
            value = self._qvalue(state, self._for_each(critics, action), critics)
        td_error = target - value
        metadata |= {"td_error": td_error.detach().abs(), "pred_value": value.detach()}
        loss = self._critic_loss(td_error, *gradient_errors)
        loss = self._reduced(loss, tensordict)
        self._forget(tensordict)
        return loss, metadata

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss and its detached diagnostics."""
        state = self._state(tensordict)
        action = self._act(state, self.actor_network_params)
        value = self._value_of_actor(state, action)
        loss = self._reduced(-self._ascended(value), tensordict)
        self._forget(tensordict)
        return loss, {"state_action_value_actor": value.detach()}

    def target_gradient_paths(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """The target's action-gradient split into its paths (Eq. 13), a diagnostic.

        Returns:
            ``reward_path``, ``next_state_path`` and ``next_action_path``, each ``[*B, A]``; their
            sum is the gradient of the target that :meth:`value_loss` draws.
        """
        state = self._state(tensordict)
        estimator, actor_params, qvalue_params = self._constants()
        with torch.no_grad():
            action = self._act(state, self.actor_network_params)

        def transition(action: Tensor) -> tuple[TensorDictBase, Tensor]:
            imagined = self._imagine(state, action)
            _, share = ended(imagined, self.tensor_keys)
            next_state = imagined.select(*self._next_keys).set(_GOES_ON, 1 - share)
            return next_state, imagined.get(self.tensor_keys.reward).squeeze(-1)

        paths = target_gradient_paths(
            transition,
            lambda next_state: TensorDict(
                {str(i): x for i, x in enumerate(self._target_action(next_state, actor_params))}
            ),
            lambda next_state, chosen: (
                self._next_value(next_state, (*chosen.values(),), qvalue_params)
                * next_state.get(_GOES_ON)
            ).squeeze(-1),
            action,
            gamma=estimator.gamma,
        )
        self._forget(tensordict)
        return dict(zip(("reward_path", "next_state_path", "next_action_path"), paths, strict=True))

    # ------------------------------------------------------------------ their parts

    def _constants(self) -> tuple[ValueEstimatorBase, TensorDictBase, TensorDictBase]:
        """Estimator, target actor and target critics, which differentiation holds fixed.

        Made or read here: inside a transform neither a buffer nor detached data may appear.
        """
        qvalue_params = self.target_qvalue_network_params
        if self.sub_sample_len is not None:
            drawn = torch.rand(self.num_qvalue_nets, device=self.max_action.device).argsort()
            qvalue_params = qvalue_params.data[drawn[: self.sub_sample_len]]
        return self.value_estimator, self.target_actor_network_params, qvalue_params

    def _differentiated(self, state: TensorDictBase, action: Tensor) -> Tensor:
        """What the TD error is differentiated with respect to, the action first, ``[*B, A]``."""
        return action

    def _placed(self, state: TensorDictBase, inputs: Tensor) -> tuple[TensorDictBase, Tensor]:
        """The state and the action that those inputs stand for."""
        return state, inputs

    def _critic_loss(
        self,
        td_error_CB: Tensor,
        action_gradient_error_CBA: Tensor | None = None,
        state_gradient_error_CBD: Tensor | None = None,
    ) -> Tensor:
        """The critics' objective, ``[*B]``; MAGE's has no part of the state's gradient."""
        return mage_critic_loss(
            td_error_CB,
            action_gradient_error_CBA,
            lmbda=self.lmbda,
            gradient_coeff=self.gradient_coeff,
            loss_function=self.loss_function,
        )

    def _act(self, state: TensorDictBase, params: TensorDictBase) -> Tensor:
        """``pi(s)``, ``[*B, A]``."""
        with params.to_module(self.actor_network, preserve_module_state=False):
            inputs = state.select(*self.actor_network.in_keys)
            out = run_network("actor", self.actor_network, inputs)
        action = out.get(self.tensor_keys.action, None)
        action = check_written(action, self.tensor_keys.action, "actor", "action")
        return check_action(action, self.tensor_keys.action, state.batch_size, self.max_action)

    def _target_action(
        self, next_state: TensorDictBase, params: TensorDictBase
    ) -> tuple[Tensor, ...]:
        """What the next state's value reads of the policy: its action with noise, ``[*B, A]``."""
        action = self._act(next_state, params)
        noise = (torch.randn_like(action) * self.policy_noise).clamp(
            -self.noise_clip, self.noise_clip
        )
        return ((action + noise).clamp(self.min_action, self.max_action),)

    def _next_value(
        self, next_state: TensorDictBase, chosen: tuple[Tensor, ...], params: TensorDictBase
    ) -> Tensor:
        """``min_i Q_i(s', a')``, ``[*B, 1]``, of what :meth:`_target_action` chose."""
        (action,) = chosen
        return self._qvalue(next_state, self._for_each(params, action), params).min(0)[0][..., None]

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

    @staticmethod
    def _for_each(params: TensorDictBase, inputs: Tensor) -> Tensor:
        """A copy of the inputs for each of the critics, ``[C, *B, A]``."""
        return inputs.expand(params.batch_size[0], *inputs.shape)

    def _qvalue(self, state: TensorDictBase, action_CBA: Tensor, params: TensorDictBase) -> Tensor:
        """``Q_i(s, a_i)``, ``[C, *B]``: each critic its own copy of the action, or of both."""
        td = state.select(*self.qvalue_network.in_keys, strict=False)
        td = td.expand(action_CBA.shape[:-1]).set(self.tensor_keys.action, action_CBA)
        key = self.tensor_keys.state_action_value
        out = run_network("critic", self._vmap_qvalue_network00, td, params)
        value = out.get(key, None)
        value = check_written(value, key, "critic", "state_action_value")
        if value.shape != (*action_CBA.shape[:-1], 1):
            raise ValueError(
                f"the critic's {key!r} has shape "
                f"{tuple(value.shape)} over {len(action_CBA)} critics, expected "
                f"{(*action_CBA.shape[:-1], 1)}: end it with a layer of one output."
            )
        return value.squeeze(-1)

    def _target(
        self,
        state: TensorDictBase,
        action: Tensor,
        estimator: ValueEstimatorBase,
        actor_params: TensorDictBase,
        qvalue_params: TensorDictBase,
    ) -> tuple[Tensor, Tensor]:
        """``y`` and the share of terminated next states, each ``[*B]``, differentiable in ``a``."""
        keys = self.tensor_keys
        imagined = self._imagine(state, action)
        terminated, share = ended(imagined, keys)
        next_state = imagined.select(*self._next_keys)
        chosen = self._target_action(next_state, actor_params)
        next_value = self._next_value(next_state, chosen, qvalue_params)
        if keys.termination_probability in imagined:
            next_value = next_value * (1 - share)
        transition = TensorDict(batch_size=state.batch_size)
        for key, value in (
            (keys.reward, imagined.get(keys.reward)),
            (keys.terminated, terminated),
            (keys.done, terminated),
            (keys.state_action_value, next_value),
        ):
            transition.set(unravel_key(("next", key)), value)
        target = estimator.value_estimate(transition)
        return target.squeeze(-1), share.squeeze(-1).detach()

    # ------------------------------------------------------------------ keys and checks

    def _read_by(self, *modules: TensorDictModuleBase) -> list[NestedKey]:
        """The keys of the state, the action left out, that the modules read."""
        keys = dict.fromkeys(unravel_key(key) for module in modules for key in module.in_keys)
        keys.pop(unravel_key(self.tensor_keys.action), None)
        return list(keys)

    @property
    def _state_keys(self) -> list[NestedKey]:
        return self._read_by(self.actor_network, self.qvalue_network, self.world_model)

    @property
    def _next_keys(self) -> list[NestedKey]:
        return self._read_by(self.actor_network, self.qvalue_network)

    def _set_in_keys(self) -> None:
        self._in_keys = self._state_keys

    def _state(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The states alone, with a batch size that the caller's tensordict may not carry."""
        state = TensorDict()
        for key in self._state_keys:
            state.set(key, read_entry(tensordict, key, "the networks read"))
        for key in self._next_keys:
            check_dtype(key, state.get(key), self.max_action.dtype, "the networks")
        # A keyword call brings no batch size: all that the entries share but their last dimension.
        shapes = [state.get(key).shape[:-1] for key in self._state_keys]
        depth = min(len(shape) for shape in shapes)  # min(key=) would not compile at any size
        shared = next(shape for shape in shapes if len(shape) == depth)
        while any(shape[: len(shared)] != shared for shape in shapes):
            shared = shared[:-1]
        state.batch_size = tensordict.batch_size or shared
        if not state.batch_size.numel() and self.reduction == "mean":
            raise ValueError(
                f"the tensordict holds no states (batch size {list(state.batch_size)}), and the "
                'mean over none is undefined; pass at least one, or reduction="sum".'
            )
        return state

    def _imagine(self, state: TensorDictBase, action: Tensor) -> TensorDictBase:
        return imagine(self.world_model, state, action, self.tensor_keys, self._next_keys)

    def _check_next_state(self, state: TensorDictBase) -> None:
        """Refuses, once, a world model whose next state carries no gradient to the action."""
        devices = [self.max_action.device] if self.max_action.is_cuda else []
        with torch.inference_mode(False), torch.random.fork_rng(devices):
            state = state.clone()  # what inference mode made carries no gradient
            action = self._act(state, self.actor_network_params).detach()
            check_depends_on_action(
                partial(self._imagine, state), action, self._next_keys, self._without_gradient
            )
        self._next_state_checked = True

    # ------------------------------------------------------------------ life cycle

    def make_value_estimator(
        self, value_type: ValueEstimators | None = None, **hyperparams: Any
    ) -> MAGELoss:
        """Sets ``gamma`` (0.99 by default) of the TD(0) target; other estimators need trajectories.

        Raises:
            NotImplementedError: ``value_type`` is not ``ValueEstimators.TD0``.
        """
        super().make_value_estimator(value_type, **hyperparams)
        if not isinstance(value_type, ValueEstimatorBase):
            # In the networks' dtype: a float32 gamma would cost a float64 loss half its digits.
            gamma = hyperparams.get("gamma", default_value_kwargs(ValueEstimators.TD0)["gamma"])
            self._value_estimator.gamma = torch.as_tensor(
                gamma, dtype=self.max_action.dtype, device=self.max_action.device
            )
        return self

    def train(self, mode: bool = True) -> MAGELoss:
        """Training or evaluation mode of actor and critics too: whether their dropout drops."""
        super().train(mode)
        for network in (self.actor_network, self.qvalue_network):
            network.train(mode)
        return self

    def _forget(self, tensordict: TensorDictBase) -> None:
        self._clear_weakrefs(
            tensordict,
            "actor_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )

    def reset_parameters_recursive(self) -> None:
        """Redraws actor and critics; the world model is not the loss's to reset."""
        actor, critics = self.actor_network_params.data, self.qvalue_network_params.data
        # A critic at a time: a layer would take the stack of them for its fan-in.
        for network, params in (
            (self.actor_network, actor),
            *((self.qvalue_network, critic) for critic in critics.unbind(0)),
        ):
            with params.to_module(network, preserve_module_state=False):
                network.reset_parameters_recursive()
        self.target_actor_network_params.data.update_(actor)
        self.target_qvalue_network_params.data.update_(critics)

    def _apply(self, fn: Any, recurse: bool = True) -> MAGELoss:
        self.world_model._apply(fn)
        super()._apply(fn)
        for child in self.children():
            if isinstance(child, TensorDictParams):
                child._erase_cache()  # it holds detached parameters as they were before
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for closure in ("_vmap_qvalue_network00", "_vmap_actor_network00", "_cache"):
            state.pop(closure, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_cache"] = {}
        self._make_vmap()
