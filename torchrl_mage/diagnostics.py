"""How far a critic's action-gradient and a world model's predictions are from the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torchrl.envs.utils import step_mdp

from torchrl_mage import functional
from torchrl_mage.functional import gaussian_nll, mixture_moments
from torchrl_mage.modules import GaussianEnsembleWorldModel


def policy_gradient_bound(
    policy: nn.Module,
    state: Tensor,
    action_gradient_error: Tensor,
    *,
    gamma: float,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Bound on the error of a deterministic policy gradient (arXiv:2004.14309, Prop. 3.1).

    .. math::
        \|\nabla_\theta J - \widehat\nabla_\theta J\| \le
        \frac{L_\pi}{1 - \gamma} E_{s \sim d^\pi_\mu} \|\nabla_a \delta(s, a)|_{a = \pi(s)}\|

    in the 2-norm. The expectation over the discounted state distribution is the weighted mean over
    ``state``: take the states of rollouts of the policy, the one at time ``t`` with weight
    :math:`\gamma^t`. The Lipschitz constant :math:`L_\pi` of the policy *in its parameters* is
    estimated by the largest spectral norm of :math:`\partial \pi_\theta(s) / \partial \theta` over
    ``state``. For the distribution that the weights describe, both are exact.

    Args:
        policy: maps ``[D]`` to ``[A]``; its parameters are :math:`\theta`.
        state: ``[B, D]``.
        action_gradient_error: :math:`\nabla_a \delta` at ``a = policy(state)``, ``[B, A]``.
        gamma: discount factor in [0, 1).
        weight: weight of each state, ``[B]``, non-negative; equal where ``None``.

    Raises:
        ValueError: ``gamma`` is outside [0, 1), a shape does not match, or a weight is negative or
            all are zero.

    Example:
        >>> policy = nn.Linear(1, 1, bias=False)  # d pi / d theta = s
        >>> state = torch.tensor([[1.0], [2.0]])
        >>> policy_gradient_bound(policy, state, torch.tensor([[1.0], [-3.0]]), gamma=0.5)
        tensor(8.)
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma}.")
    if state.dim() != 2 or action_gradient_error.shape[:-1] != state.shape[:-1]:
        raise ValueError(
            f"state must be [B, D] and action_gradient_error [B, A], got {tuple(state.shape)} and "
            f"{tuple(action_gradient_error.shape)}."
        )
    weight = torch.ones_like(state[:, 0]) if weight is None else weight
    if weight.shape != state.shape[:1] or (weight < 0).any() or not weight.any():
        raise ValueError(
            f"weight must be {list(state.shape[:1])}, non-negative and not all zero, got shape "
            f"{list(weight.shape)} and values from {weight.min().item()} to {weight.max().item()}."
        )
    parameters = {name: value.detach() for name, value in policy.named_parameters()}
    jacobian = vmap(jacrev(lambda p, s: functional_call(policy, p, (s,))), in_dims=(None, 0))
    columns = [part.flatten(2) for part in jacobian(parameters, state).values()]
    lipschitz = torch.linalg.matrix_norm(torch.cat(columns, -1), 2).max()
    error = torch.linalg.vector_norm(action_gradient_error, dim=-1)
    return lipschitz / (1 - gamma) * (weight * error).sum() / weight.sum()


def target_gradient_paths(loss: Any, tensordict: TensorDictBase) -> dict[str, Tensor]:
    """The action-gradient of a loss's target, split into its paths (arXiv:2004.14309, Eq. 13).

    With ``horizon`` above 1, ``Q(s', a')`` is the return of the steps that are left. The paths are
    made of the very transition, choice and value of which the loss makes its target, so that those
    of a subclass are its own.

    Args:
        loss: a :class:`~torchrl_mage.MAGELoss` or another of the agent losses.
        tensordict: states ``[*B]``, as the loss reads them; left as it is.

    Returns:
        ``reward_path``, ``next_state_path`` and ``next_action_path``, each ``[*B, A]``; their sum
        is the gradient of the target that ``loss.value_loss`` draws from the same generator.

    Raises:
        NotImplementedError: a subclass makes its target of other parts.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl_mage import MAGELoss, OraclePendulum
        >>> from torchrl_mage.modules import critic, deterministic_actor
        >>> actor = deterministic_actor(3, Bounded(-1, 1, (1,)), [8], in_key="observation")
        >>> critics = [critic(3, 1, [8], in_key="observation") for _ in range(2)]
        >>> loss = MAGELoss(
        ...     actor, critics, OraclePendulum(), bounds=(-1.0, 1.0),
        ...     delay_actor=False, delay_qvalue=False,
        ... )
        >>> _ = loss.make_value_estimator(gamma=0.99)
        >>> states = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]] * 5), batch_size=[5])
        >>> target_gradient_paths(loss, states)["reward_path"].shape
        torch.Size([5, 1])
    """
    _check_parts(type(loss))
    state = loss._states(tensordict)
    estimator, actor_params, _ = constants = loss._constants()
    goes_on = "_goes_on"  # by which share an episode continues

    def transition(action: Tensor) -> tuple[TensorDictBase, Tensor]:
        next_state, reward, _, share = loss.imagined_step(state, action)
        return next_state.set(goes_on, 1 - share), reward.squeeze(-1)

    def next_value(next_state: TensorDictBase, chosen: TensorDictBase) -> Tensor:
        value = loss.next_value(next_state, chosen, loss.horizon - 1, *constants)
        return (value * next_state.get(goes_on)).squeeze(-1)

    with torch.no_grad():
        action = loss._act(state, loss.actor_network_params)
    paths = functional.target_gradient_paths(
        transition,
        lambda next_state: loss.choose(next_state, actor_params, last=loss.horizon == 1),
        next_value,
        action,
        gamma=estimator.gamma,
    )
    loss._forget(tensordict)
    return dict(zip(("reward_path", "next_state_path", "next_action_path"), paths, strict=True))


def _check_parts(kind: type) -> None:
    """Refuses a loss whose target is not made of the parts of which the paths are."""
    for name in ("_target", "_backup"):
        first, *later = [vars(c)[name] for c in reversed(kind.__mro__) if name in vars(c)]
        if later:
            raise NotImplementedError(
                f"{later[-1].__qualname__} replaces {first.__qualname__}: what paths the gradient "
                "of its target has is not known. Override imagined_step, choose or next_value, of "
                "which target and paths are made, or target_gradient_paths too."
            )


@torch.enable_grad()
def oracle_gradient_error(
    policy: TensorDictModuleBase,
    qvalue: TensorDictModuleBase,
    oracle: TensorDictModuleBase,
    tensordict: TensorDictBase,
    *,
    horizon: int,
    gamma: float,
) -> Tensor:
    r"""Error of a critic's action-gradient along trajectories (arXiv:2004.14309, Eq. 14).

    .. math::
        L = \frac{1}{H} \sum_{t=0}^{H-1} \gamma^t
        \|\nabla_a G(s_t, a_t) - \nabla_a \hat Q(s_t, a_t)\|_1

    with ``G`` the empirical discounted return from ``t`` to the end of the episode, differentiated
    through the true dynamics and the policy (appendix D.2). Deterministic policy and dynamics.

    Args:
        policy: writes ``action``, in [-1, 1]; reads the state.
        qvalue: the (first) critic, writes ``state_action_value`` ``[*B, 1]``.
        oracle: the true dynamics and reward as a world model, such as
            :class:`~torchrl_mage.OraclePendulum`, of a task that does not terminate.
        tensordict: the first states, batch size ``[*B]``.
        horizon: length ``H`` of the episode.
        gamma: discount factor.

    Returns:
        ``[*B]``, the error of each trajectory.

    Raises:
        ValueError: ``horizon`` is below 1, or the oracle terminates.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_mage import OraclePendulum
        >>> policy = TensorDictModule(lambda s: 0 * s[..., :1], ["observation"], ["action"])
        >>> flat = TensorDictModule(lambda a: 0 * a, ["action"], ["state_action_value"])
        >>> upright = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]]), batch_size=[1])
        >>> oracle_gradient_error(policy, flat, OraclePendulum(), upright, horizon=5, gamma=0.99)
        tensor([0.])
    """
    pushes, visited, total = _pushed_rollout(policy, oracle, tensordict, horizon, gamma)
    # The past does not depend on a push, so the gradient of the whole return with respect to the
    # push at t is gamma^t times that of the return from t on.
    true_slope = torch.stack(torch.autograd.grad(total.sum(), pushes, materialize_grads=True))

    # A first state may bring more than the following ones have, such as a reset's done.
    shared = set.intersection(*[set(state.keys(True, True)) for state in visited])
    states = TensorDict.stack([state.select(*shared) for state in visited])
    action = states.get("action").requires_grad_()
    value = qvalue(states.set("action", action)).get("state_action_value")
    (slope,) = torch.autograd.grad(value.sum(), action, materialize_grads=True)
    discount = gamma ** torch.arange(horizon, dtype=slope.dtype, device=slope.device)
    discount = discount.reshape(-1, *(1,) * (slope.dim() - 1))
    return (true_slope - discount * slope).abs().sum(-1).sum(0) / horizon


@torch.enable_grad()
def oracle_value(
    policy: TensorDictModuleBase,
    oracle: TensorDictModuleBase,
    tensordict: TensorDictBase,
    *,
    horizon: int,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    r"""The true value of a policy's action, and its action-gradient (arXiv:2004.14309, D.2).

    :math:`G(s_0, a_0) = \sum_{t<H} \gamma^t r_t` at :math:`a_0 = \pi(s_0)`: what a critic is to
    say there. Arguments and errors are those of :func:`oracle_gradient_error`.

    Returns:
        ``G`` ``[*B]`` and its gradient ``[*B, A]``.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_mage import OraclePendulum
        >>> policy = TensorDictModule(lambda s: 0 * s[..., :1] + 0.5, ["observation"], ["action"])
        >>> upright = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]]), batch_size=[1])
        >>> oracle_value(policy, OraclePendulum(), upright, horizon=1, gamma=0.99)
        (tensor([-0.0010]), tensor([[-0.0040]]))
    """
    pushes, _, total = _pushed_rollout(policy, oracle, tensordict, horizon, gamma)
    (slope,) = torch.autograd.grad(total.sum(), pushes[:1], materialize_grads=True)
    return total.detach(), slope


def _pushed_rollout(
    policy: TensorDictModuleBase,
    oracle: TensorDictModuleBase,
    tensordict: TensorDictBase,
    horizon: int,
    gamma: float,
) -> tuple[list[Tensor], list[TensorDictBase], Tensor]:
    """A rollout with a push of zero on each action, its states and actions, its return ``[*B]``."""
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    pushes, visited, rewards = [], [], []
    state = tensordict.clone(False)
    for t in range(horizon):
        action = policy(state.clone(False)).get("action")
        pushes.append(torch.zeros_like(action).requires_grad_())
        visited.append(state.clone(False).set("action", action).detach())
        out = oracle(state.set("action", action + pushes[-1]))
        if out.get(("next", "terminated"), torch.zeros(())).any():
            raise ValueError(f"the oracle terminated at step {t}; Eq. 14 takes whole episodes.")
        rewards.append(gamma**t * out.get(("next", "reward")).squeeze(-1))
        state = step_mdp(out, exclude_done=True, exclude_reward=True, exclude_action=True)
    return pushes, visited, torch.stack(rewards).sum(0)


@torch.no_grad()
def model_diagnostics(
    model: GaussianEnsembleWorldModel, episodes: Sequence[TensorDictBase], *, horizon: int = 5
) -> dict[str, Tensor]:
    r"""How well a world model foresees episodes that it was not trained on.

    Args:
        model: the dynamics.
        episodes: of the real environment, each of shape ``[T]`` with the model's ``in_keys`` and
            ``out_keys``; their lengths may differ.
        horizon: how many steps the model is let run open loop, on the real actions.

    Returns:
        These tensors, by name.

        - ``model_nll`` ``[E]``: each member's negative log-likelihood a dimension, in the unit of
          ``loss_world_model`` (normalised differences, doubled, without constant);
        - ``model_within_1_sigma`` and ``model_within_2_sigma``: the share of next observations
          inside one and two standard deviations of the mixture's mean (0.683 and 0.954 where the
          model is calibrated and Gaussian);
        - ``model_disagreement``: root mean square deviation of the members' means from theirs,
          normalised differences;
        - ``model_open_loop_error`` ``[K]``: root mean square error after 1, 2 ... ``K`` steps of
          the members' mean, from every ``horizon``-th state on, in standard deviations of the
          observation; ``K`` is ``horizon``, or the longest episode's length.

    Raises:
        ValueError: there is no episode, or ``horizon`` is below 1.

    Example:
        >>> from torchrl_mage import get_task
        >>> episode = get_task("Pendulum-v1").make_env().rollout(20)
        >>> model = GaussianEnsembleWorldModel(3, 1, ensemble_size=4, num_cells=(8,))
        >>> found = model_diagnostics(model, [episode])
        >>> found["model_nll"].shape, found["model_open_loop_error"].shape
        (torch.Size([4]), torch.Size([5]))
    """
    if not episodes or horizon < 1:
        raise ValueError(
            f"needs at least one episode and a horizon of at least 1, got {len(episodes)} and "
            f"{horizon}."
        )
    keys = (*model.in_keys, *model.out_keys)
    episodes = [episode.select(*keys) for episode in episodes]
    observation, action, following = (torch.cat([e[key] for e in episodes]) for key in keys)
    scale = model.difference_statistics.std
    mean_EBD, var_EBD = _predict(model, observation, action)
    nll_EBD = gaussian_nll(
        mean_EBD / scale, (var_EBD / scale.square()).log(), (following / scale).expand_as(mean_EBD)
    )
    mean_BD, var_BD = mixture_moments(mean_EBD, var_EBD)
    deviation_BD = (following - mean_BD).abs() / var_BD.sqrt()
    return {
        "model_nll": nll_EBD.mean((1, 2)),
        "model_within_1_sigma": (deviation_BD < 1).to(scale.dtype).mean(),
        "model_within_2_sigma": (deviation_BD < 2).to(scale.dtype).mean(),
        "model_disagreement": ((mean_EBD - mean_BD) / scale).square().mean().sqrt(),
        "model_open_loop_error": _open_loop_error(model, episodes, horizon),
    }


@torch.no_grad()
def predict_open_loop(
    model: GaussianEnsembleWorldModel, episode: TensorDictBase, steps: int
) -> Tensor:
    r"""What each member of a world model makes of an episode whose first state alone it is shown.

    A member follows its own mean, :math:`s_{k+1} = \mu_e(s_k, a_k)`, with the episode's actions;
    how far the members are apart says how sure the ensemble is.

    Args:
        model: the dynamics.
        episode: of the real environment, ``[T]``, with the model's ``in_keys``.
        steps: how many, ``K``.

    Returns:
        The observations after 1, 2 ... ``K`` steps, ``[E, K, D]``, in raw units.

    Raises:
        ValueError: ``episode`` has another number of dimensions, or fewer than ``steps`` steps, or
            ``steps`` is below 1.

    Example:
        >>> from torchrl_mage import get_task
        >>> episode = get_task("Pendulum-v1").make_env().rollout(20)
        >>> model = GaussianEnsembleWorldModel(3, 1, ensemble_size=4, num_cells=(8,))
        >>> predict_open_loop(model, episode, 10).shape
        torch.Size([4, 10, 3])
    """
    if episode.dim() != 1 or not 1 <= steps <= len(episode):
        raise ValueError(
            f"steps must be from 1 to the length of one episode [T], got {steps} and an episode of "
            f"shape {list(episode.shape)}."
        )
    observation, action = (episode[key] for key in model.in_keys)
    state_ED = observation[0].expand(model.ensemble_size, -1)
    states = []
    for t in range(steps):
        input_EI = model.input_rows(state_ED, action[t].expand(model.ensemble_size, -1))
        mean_E1D, _ = model.gaussian(model.network(input_EI.unsqueeze(1)))  # its own state alone
        difference_ED = model.difference_statistics.denormalize(mean_E1D.squeeze(1))
        state_ED = model._steady(state_ED, state_ED + difference_ED)
        states.append(state_ED)
    return torch.stack(states, 1)


def _predict(
    model: GaussianEnsembleWorldModel, observation: Tensor, action: Tensor, rows: int = 256
) -> tuple[Tensor, Tensor]:
    """As ``model.predict``, in the memory that a minibatch of the model's fit takes."""
    parts = zip(observation.split(rows), action.split(rows), strict=True)
    mean, var = zip(*[model.predict(*part) for part in parts], strict=True)
    return torch.cat(mean, 1), torch.cat(var, 1)


def _open_loop_error(
    model: GaussianEnsembleWorldModel, episodes: Sequence[TensorDictBase], horizon: int
) -> Tensor:
    """Error after 1, 2 ... steps, ``[K]``, over windows that the episode's end may cut short."""
    windows = [window for episode in episodes for window in episode.split(horizon)]
    windows.sort(key=len, reverse=True)
    state = torch.stack([window[model.in_keys[0]][0] for window in windows])
    errors = []
    for t in range(len(windows[0])):
        running = [window[t] for window in windows if len(window) > t]
        action, truth = (
            torch.stack([now[key] for now in running])
            for key in (model.in_keys[1], model.out_keys[0])
        )
        state = _predict(model, state[: len(running)], action)[0].mean(0)
        error = (state - truth) / model.observation_statistics.std
        errors.append(error.square().mean().sqrt())
    return torch.stack(errors)
