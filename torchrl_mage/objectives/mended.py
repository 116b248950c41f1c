"""TorchRL's TD3 loss, with what every loss here needs mended, each fault in one place."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.objectives import TD3Loss, ValueEstimators
from torchrl.objectives.utils import default_value_kwargs
from torchrl.objectives.value import TD0Estimator, ValueEstimatorBase

from torchrl_mage.objectives.arguments import (
    action_box,
    check_choice,
    check_no_batch_norm,
    check_nonnegative,
    check_positive_count,
)


class MendedTD3Loss(TD3Loss):
    """:class:`torchrl.objectives.TD3Loss` whose networks live as a user would expect.

    What is mended, each of torchrl 0.14.1, with the thread of github.com/pytorch/rl where there is
    one:

    - a list of one critic was held constant, and so were parameters that critics of a list share:
      each is trained, from its own values (pytorch/rl#1034);
    - bounds were rounded to float32: they have the networks' dtype, and so has gamma;
    - ``train`` and ``eval`` did not reach the networks, nor did their dropout (pytorch/rl#1935);
    - a loss could not be pickled, and a copy called the original's networks;
    - a converted or moved loss kept detached parameters of before;
    - ``reset_parameters_recursive`` drew a stack of critics with the stack for a layer's fan-in
      (pytorch/rl#2017);
    - a subclass without ``out_keys`` of its own shared its parent's, or none.

    Args and keyword args are those of :class:`~torchrl_mage.MAGELoss`.
    """

    out_keys: list[str]

    actor_network: TensorDictModule
    qvalue_network: TensorDictModule
    actor_network_params: TensorDictParams
    qvalue_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    max_action: Tensor
    min_action: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "out_keys" not in cls.__dict__:
            # tensordict takes a class's list away, to a property, at its first instance.
            owner = next(base for base in cls.__mro__ if "out_keys" in base.__dict__)
            keys = owner.__dict__["out_keys"]
            cls.out_keys = list(owner.__dict__["_out_keys"] if isinstance(keys, property) else keys)

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        *,
        action_spec: TensorSpec | None,
        bounds: tuple[float, float] | None,
        num_qvalue_nets: int,
        policy_noise: float,
        noise_clip: float,
        loss_function: str,
        delay_actor: bool,
        delay_qvalue: bool,
        separate_losses: bool,
        reduction: str | None,
        deactivate_vmap: bool,
    ) -> None:
        check_nonnegative(policy_noise=policy_noise, noise_clip=noise_clip)
        check_positive_count(num_qvalue_nets=num_qvalue_nets)
        check_choice("loss_function", loss_function, ("smooth_l1", "l2", "l1"))
        check_choice("reduction", reduction, ("mean", "sum", "none", None))
        if isinstance(qvalue_network, (Sequence, nn.ModuleList)):
            qvalue_network = _critics_of_their_own(
                list(qvalue_network), actor_network, num_qvalue_nets, separate_losses
            )
        critics = qvalue_network if isinstance(qvalue_network, list) else [qvalue_network]
        for name, network in (("actor", actor_network), *(("critic", c) for c in critics)):
            check_no_batch_norm(name, network)
        like = next((p for net in (actor_network, *critics) for p in net.parameters()), None)
        super().__init__(
            actor_network,
            qvalue_network,
            bounds=action_box(
                action_spec,
                bounds,
                self.default_keys().action,
                torch.empty(()) if like is None else like,
            ),
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

    def convert_to_functional(self, module: Any, module_name: str, *args: Any, **kw: Any) -> None:
        """As TorchRL's, but a list of one critic keeps its values and is trained."""
        if not (isinstance(module, list) and len(module) == 1):
            super().convert_to_functional(module, module_name, *args, **kw)
            return
        own = TensorDict.from_module(module[0]).data.clone().unsqueeze(0)
        super().convert_to_functional(module[0], module_name, *args, **kw)
        for name in (f"{module_name}_params", f"target_{module_name}_params"):
            if name in self._modules:
                self._modules[name].data.update_(own)

    def make_value_estimator(
        self,
        value_type: ValueEstimators | type[TD0Estimator] | TD0Estimator | None = None,
        **hyperparams: Any,
    ) -> MendedTD3Loss:
        """Sets ``gamma`` (0.99 by default) of the TD(0) target, or another estimator of its kind.

        Args:
            value_type: ``ValueEstimators.TD0``, or a ``TD0Estimator`` of your own, such as
                :class:`~torchrl_mage.BoundedTD0Estimator`: its class, or one that was made.
            **hyperparams: of the estimator, unless it was made.

        Raises:
            NotImplementedError: ``value_type`` needs trajectories.
        """
        kind = value_type if isinstance(value_type, type) else type(value_type)
        if issubclass(kind, ValueEstimatorBase) and not issubclass(kind, TD0Estimator):
            raise NotImplementedError(
                f"{type(self).__name__} imagines single steps, and {kind.__name__} needs "
                "trajectories: pass a TD0Estimator."
            )
        super().make_value_estimator(value_type, **hyperparams)
        if not isinstance(value_type, ValueEstimatorBase):
            gamma = hyperparams.get("gamma", default_value_kwargs(ValueEstimators.TD0)["gamma"])
            self._value_estimator.gamma = torch.as_tensor(
                gamma, dtype=self.max_action.dtype, device=self.max_action.device
            )
        self._forward_value_estimator_keys()
        return self

    def train(self, mode: bool = True) -> MendedTD3Loss:
        """Training or evaluation mode of actor and critics too: whether their dropout drops."""
        super().train(mode)
        for network in (self.actor_network, self.qvalue_network):
            network.train(mode)
        return self

    def reset_parameters_recursive(self) -> None:
        """Redraws actor and critics; a world model is not the loss's to reset."""
        actor, critics = self.actor_network_params.data, self.qvalue_network_params.data
        for network, params in (
            (self.actor_network, actor),
            *((self.qvalue_network, critic) for critic in critics.unbind(0)),
        ):
            with params.to_module(network, preserve_module_state=False):
                network.reset_parameters_recursive()
        self.target_actor_network_params.data.update_(actor)
        self.target_qvalue_network_params.data.update_(critics)

    def _forget(self, tensordict: TensorDictBase) -> None:
        """Drops the weak references that a functional call leaves behind."""
        self._clear_weakrefs(
            tensordict,
            "actor_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )

    def _apply(self, fn: Any, recurse: bool = True) -> MendedTD3Loss:
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


def _critics_of_their_own(
    critics: list[TensorDictModule],
    actor: TensorDictModule,
    wanted: int,
    separate_losses: bool,
) -> list[TensorDictModule]:
    """The critics of a list, those copied that share parameters with one before them.

    Raises:
        ValueError: there are not as many as ``wanted``, or ``separate_losses`` is asked of critics
            that share parameters with the actor.
    """
    if len(critics) != wanted:
        raise ValueError(
            f"got a list of {len(critics)} critics and num_qvalue_nets={wanted}; they must agree."
        )
    shared = {*actor.parameters()} & {p for critic in critics for p in critic.parameters()}
    if separate_losses and shared:
        raise ValueError(
            f"separate_losses=True with a list of critics, {len(shared)} of whose parameters are "
            "the actor's: pass a single critic, which is replicated."
        )
    seen: set[Tensor] = set()
    for i, critic in enumerate(critics):
        if not seen.isdisjoint(own := set(critic.parameters())):
            critics[i] = deepcopy(critic)
        seen |= own
    return critics
