"""Taylor TD: the critics' TD update, expected over small perturbations of state and action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_mage.functional import taylor_td_loss
from torchrl_mage.objectives.arguments import check_nonnegative
from torchrl_mage.objectives.imagined import AgentArguments
from torchrl_mage.objectives.mage import MAGELoss


class TaylorTDLoss(MAGELoss):
    r"""The critic and actor losses of TaTD3, from states alone.

    .. math::
        L_Q = \frac12 \sum_i \text{mean}\; \delta_i^2 + \lambda_a \|\nabla_a \delta_i\|^2
        + \lambda_s \|\nabla_s \delta_i\|^2

    with :math:`\delta_i` as in :class:`~torchrl_mage.MAGELoss`, whose pieces it shares. Minus its
    gradient is the TD update expected over Gaussian perturbations of the action (variance
    :math:`\lambda_a`) and of the state (:math:`\lambda_s`), to first order (Garibbo, Robeyns and
    Aitchison, NeurIPS 2023, arXiv:2302.14182); see
    :func:`~torchrl_mage.functional.taylor_td_loss`. The actor's loss is TD3's.

    Args:
        actor_network: deterministic policy, as in :class:`~torchrl_mage.MAGELoss`.
        qvalue_network: critics, as there.
        world_model: as there.

    Keyword Args:
        action_variance: :math:`\lambda_a`, in squared units of the action. The default is the
            square of TD3's smoothing noise.
        state_variance: :math:`\lambda_s`, in squared units of the state. Above 0, actor, critics
            and world model must read one and the same state entry, since a state of several entries
            that depend on each other (a raw and a normalised one) has no gradient of its own.
        policy_noise: standard deviation of the target policy's noise.
        noise_clip: its bound.
        delay_actor: whether the actor has a target network.
        **shared: ``action_spec``, ``bounds``, ``num_qvalue_nets``, ``sub_sample_len``, ``horizon``,
            ``delay_qvalue``, ``separate_losses``, ``reduction`` and ``deactivate_vmap``, as in
            :class:`~torchrl_mage.MAGELoss`.

    Writes what :class:`~torchrl_mage.MAGELoss` does.

    Raises:
        ValueError: as there; or ``state_variance`` is above 0 and there are several state entries,
            or one that is not a vector.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP
        >>> from torchrl_mage import OraclePendulum
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
        >>> loss = TaylorTDLoss(
        ...     actor, critics, OraclePendulum(), bounds=(-1.0, 1.0), state_variance=1e-4
        ... )
        >>> _ = loss.make_value_estimator(gamma=0.99)
        >>> from torchrl.objectives import SoftUpdate
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> state = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]] * 8), batch_size=[8])
        >>> loss(state)["loss_qvalue"].shape
        torch.Size([])
    """

    _without_gradient = "set both variances to 0 for the TD error alone"

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        world_model: TensorDictModuleBase,
        *,
        action_variance: float = 0.04,
        state_variance: float = 0.0,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        delay_actor: bool = True,
        **shared: Unpack[AgentArguments],
    ) -> None:
        check_nonnegative(action_variance=action_variance, state_variance=state_variance)
        super().__init__(
            actor_network,
            qvalue_network,
            world_model,
            gradient_coeff=float(bool(action_variance or state_variance)),
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function="l2",
            delay_actor=delay_actor,
            **shared,
        )
        self.action_variance = float(action_variance)
        self.state_variance = float(state_variance)

    @property
    def perturbed_keys(self) -> list[NestedKey]:
        """The one state entry, where the state has a variance."""
        if not self.state_variance:
            return []
        if len(self._state_keys) != 1:
            raise ValueError(
                f"state_variance={self.state_variance} needs one state entry, actor, critics and "
                f"world model read {self._state_keys}; pass state_variance=0, or modules that read "
                "the raw observation and normalise it themselves."
            )
        return self._state_keys

    def critic_objective(self, td_error_CB: Tensor, errors: TensorDictBase) -> Tensor:
        """Half the squared TD error and its gradients, ``[*B]``, summed over the critics."""
        none = td_error_CB.new_zeros(*td_error_CB.shape, 0)  # a gradient of no features
        (state_key,) = self.perturbed_keys or (None,)
        if state_key is not None:
            _check_vector(state_key, errors.get(state_key), td_error_CB)
        return taylor_td_loss(
            td_error_CB,
            errors.get(self.tensor_keys.action, none),
            none if state_key is None else errors.get(state_key),
            action_variance=self.action_variance,
            state_variance=self.state_variance,
        )


def _check_vector(key: NestedKey, gradient: Tensor, td_error_CB: Tensor) -> None:
    """Refuses a state whose gradient is not ``[C, *B, D]``: pixels, say."""
    if gradient.dim() != td_error_CB.dim() + 1:
        raise ValueError(
            f"state_variance needs a state of one vector, {key!r} has the features "
            f"{list(gradient.shape[td_error_CB.dim() :])}; pass state_variance=0, or encode it "
            "into a vector first."
        )
