"""The critics' TD error on transitions that were observed, beside those that are imagined."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.utils import distance_loss

from torchrl_mage.objectives.contract import ended, read_entry, read_states


def real_value_loss(loss: Any, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The critics' TD error on transitions that were observed, to be added to the value loss.

    .. math::
        \sum_i \rho(\delta_i), \qquad
        \delta_i = r + \gamma (1 - d) \min_j \bar Q_j(s', a') - Q_i(s, a)

    with the loss's own estimator and choice of ``a'``; off-policy, as in TD3 and SAC. A model
    promises what never comes where little was seen, and critics that know imagined transitions
    alone believe it; MBPO (arXiv:1906.08253) mixes real ones into its batches likewise.

    Args:
        loss: a :class:`~torchrl_mage.MAGELoss` or another of the agent losses.
        tensordict: transitions ``[*B]``: the states that actor and critics read, ``action``, and
            under ``"next"`` those states, ``reward`` and, if the task ends, ``terminated``,
            ``[*B, 1]`` each.

    Returns:
        The loss, and detached ``real_td_error`` (``[C, *B]``).

    Raises:
        ValueError: an entry is missing, or of another dtype than the networks.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl_mage import MAGELoss, OraclePendulum
        >>> from torchrl_mage.modules import critic, deterministic_actor
        >>> from torchrl.data import Bounded
        >>> actor = deterministic_actor(3, Bounded(-1, 1, (1,)), [8], in_key="observation")
        >>> critics = [critic(3, 1, [8], in_key="observation") for _ in range(2)]
        >>> loss = MAGELoss(
        ...     actor, critics, OraclePendulum(), bounds=(-1.0, 1.0),
        ...     delay_actor=False, delay_qvalue=False,
        ... )
        >>> _ = loss.make_value_estimator(gamma=0.99)
        >>> following = TensorDict(observation=torch.rand(5, 3), reward=torch.rand(5, 1))
        >>> batch = TensorDict(
        ...     observation=torch.rand(5, 3), action=torch.rand(5, 1), next=following,
        ...     batch_size=[5],
        ... )
        >>> real, metadata = real_value_loss(loss, batch)
        >>> metadata["real_td_error"].shape
        torch.Size([2, 5])
    """
    keys, critics = loss.tensor_keys, loss.qvalue_network_params
    dtype, read = loss.max_action.dtype, loss._network_keys
    state = read_states(tensordict, read, read, dtype)
    reader = "the critics' TD error reads"
    action = read_entry(tensordict, keys.action, reader)
    following = read_entry(tensordict, "next", reader)
    next_state = read_states(following, read, read, dtype)
    reward = read_entry(following, keys.reward, reader)
    terminated, _ = ended(following, keys)
    estimator, actor_params, _ = constants = loss._constants()
    with torch.no_grad():
        chosen = loss.choose(next_state, actor_params, last=True)
        next_value = loss.next_value(next_state, chosen, 0, *constants)
        target = loss._transition_value(estimator, reward, terminated, next_value)
    value_CB = loss._qvalue(state, loss._for_each(critics, action), critics)
    td_error_CB = target.squeeze(-1) - value_CB
    zero = torch.zeros_like(td_error_CB)
    objective_B = distance_loss(td_error_CB, zero, loss.loss_function).sum(0)
    total = loss._reduced(objective_B, tensordict)
    loss._forget(tensordict)
    return total, {"real_td_error": td_error_CB.detach().abs()}
