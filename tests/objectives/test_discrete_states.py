"""MAGE on discrete states: the target's gradient by enumeration, one graph, the optimal policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import windy_grid
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import MLP
from torchrl.objectives import SoftUpdate
from windy_grid import ACTION, CATEGORIES, GAMMA, OBS, WindyGrid, states

from torchrl_mage import CategoricalEnsembleLoss, CategoricalWorldModel, MAGELoss
from torchrl_mage.objectives import fit


class Linear(nn.Module):
    """A critic that is linear in each variable of the state."""

    def __init__(self, dtype):
        super().__init__()
        self.worth = nn.Parameter(torch.randn(*CATEGORIES, dtype=dtype))

    def forward(self, observation, action):
        column, row = observation.split(CATEGORIES, -1)
        worth = ((column @ self.worth) * row).sum(-1, keepdim=True)
        return worth - 0.1 * action.square().sum(-1, keepdim=True)


def make_loss(dtype=torch.float32, critic=None, temperature=0.5, cells=32, **kwargs):
    dynamics = CategoricalWorldModel(
        OBS,
        ACTION,
        categories=CATEGORIES,
        ensemble_size=3,
        num_cells=(32, 32),
        temperature=temperature,
        dtype=dtype,
    )
    actor = nn.Sequential(MLP(OBS, ACTION, num_cells=[32], activation_class=nn.SiLU), nn.Tanh())
    actor = TensorDictModule(actor.to(dtype), ["observation"], ["action"])
    critics = [
        TensorDictModule(
            critic
            or MLP(OBS + ACTION, 1, num_cells=[cells] * 2, activation_class=nn.SiLU).to(dtype),
            ["observation", "action"],
            ["state_action_value"],
        ).to(dtype)
        for _ in range(kwargs.get("num_qvalue_nets", 2))
    ]
    world_model = TensorDictSequential(dynamics, windy_grid.reward)
    loss = MAGELoss(actor, critics, world_model, bounds=(-1.0, 1.0), **kwargs)
    loss.make_value_estimator(gamma=GAMMA)
    return loss, dynamics, SoftUpdate(loss, tau=0.02)


def test_targets_action_gradient_is_the_enumerated_expectations():
    """Over all 12 next cells and all members; the relaxation's bias is far below the error here.

    The policy is one action everywhere, the critic linear in each variable, the temperature 0.1:
    the bias at it is below 1 % (tests/modules/test_categorical_world_model.py).
    """
    critic = Linear(torch.float64)
    loss, dynamics, _ = make_loss(
        torch.float64, critic, temperature=0.1, num_qvalue_nets=1, policy_noise=0.0
    )
    with torch.no_grad():
        for parameter in loss.actor_network_params.parameters():
            parameter.zero_()
        loss.actor_network_params["module", "0", "2", "bias"].copy_(torch.tensor([0.5, -0.3]))
        dynamics.network[-1].weight.mul_(4)  # so that the action matters
    draws, cell = 100_000, states(torch.float64)[4]
    td = TensorDict(observation=cell.expand(draws, -1), batch_size=[draws])
    paths = torch.stack(list(loss.target_gradient_paths(td).values())).sum(0)
    mean, error = paths.mean(0), paths.std(0) / draws**0.5

    here = td[:1]
    action = loss.actor_network(here.clone())["action"].detach().requires_grad_()
    torch.testing.assert_close(action[0].atanh(), torch.tensor([0.5, -0.3], dtype=torch.float64))
    column, row = dynamics.predict(here["observation"], action).split(CATEGORIES, -1)
    p = (column[..., :, None] * row[..., None, :]).flatten(-2)  # [member, 1, cell]
    worth = windy_grid.WORTH.double() + GAMMA * critic.worth.detach()
    expected = (p * worth.flatten()).sum(-1).mean() - windy_grid.COST * action.square().sum()
    (gradient,) = torch.autograd.grad(expected, action)
    assert ((mean - gradient[0]).abs() < 4 * error).all(), (mean, gradient, error)
    assert 4 * error.norm() < 0.15 * gradient.norm()


def test_value_loss_compiles_in_one_graph():
    loss, _, _ = make_loss()
    td = TensorDict(observation=states(), batch_size=[12])
    loss.check(td)
    # Eager's kernels and random numbers: what is tested is the one graph.
    graph = torch.compile(loss.value_loss, fullgraph=True, backend="eager")
    results = []
    for function in (loss.value_loss, graph):
        torch.manual_seed(1)
        value, metadata = function(td)
        parameters = tuple(loss.qvalue_network_params.parameters())
        results.append((value, metadata, torch.autograd.grad(value, parameters)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("horizon", [1, 3])
def test_losses_in_either_dtype_over_several_imagined_steps(horizon, dtype):
    """Each step's draw is an observation of the next."""
    loss, dynamics, _ = make_loss(dtype, horizon=horizon)
    out = loss(TensorDict(observation=states(dtype), batch_size=[12]))
    assert out["loss_qvalue"].dtype == out["loss_actor"].dtype == dtype
    (out["loss_qvalue"] + out["loss_actor"]).backward()
    trained = [*loss.qvalue_network_params.parameters(), *loss.actor_network_params.parameters()]
    assert all(parameter.grad.isfinite().all() for parameter in trained)
    assert all(parameter.grad is None for parameter in dynamics.parameters())
    assert out["action_gradient_error"].min() > 0


def test_the_grid_leaves_something_to_learn():
    """Best and nothing done; the environment moves as its probabilities say."""
    best = windy_grid.best_values()
    assert windy_grid.values(torch.zeros(12, ACTION)).mean() < 0.3 * best.mean()
    env, action = WindyGrid(), np.array([0.2, -0.4], np.float32)
    env.reset(seed=0)
    counts = torch.zeros(12)
    for _ in range(400):
        env.state = states()[4]
        counts += (states() == torch.tensor(env.step(action)[0])).all(-1)
    p = windy_grid.transition(states()[4], torch.tensor(action))
    error = (p * (1 - p) / 400).sqrt()
    assert ((counts / 400 - p).abs() <= 4 * error + 1e-6).all()


def collected(steps, seed):
    """Transitions of random actions in the environment."""
    env, draw = WindyGrid(), np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    rows = []
    for _ in range(steps):
        action = draw.uniform(-1, 1, ACTION).astype(np.float32)
        following = env.step(action)[0]
        rows.append((observation, action, following))
        observation = following
    before, action, after = (
        torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
    )
    return TensorDict(
        {"observation": before, "action": action, ("next", "observation"): after}, [steps]
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_the_optimal_policy_in_a_learned_model(seed):
    """3,000 random transitions, then MAGE in the model alone: 95 % of the optimal return."""
    torch.manual_seed(seed)
    loss, dynamics, targets = make_loss(cells=64)
    likelihood = CategoricalEnsembleLoss(dynamics)

    def minimizer(parameters, lr, steps):
        optimizer = torch.optim.Adam(parameters, lr=lr)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)

        def step(value):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step()

        return step

    fit_step = minimizer(likelihood.world_model_params.parameters(), 5e-3, 400)
    fit(
        dynamics,
        lambda batch: fit_step(likelihood(batch)["loss_world_model"]),
        collected(3000, seed),
        new=3000,
        batch_size=256,
        min_batches=400,
    )
    steps = 1000
    critic_step = minimizer(loss.qvalue_network_params.parameters(), 3e-3, steps)
    actor_step = minimizer(loss.actor_network_params.parameters(), 3e-3, steps // 2)
    everywhere = TensorDict(observation=states(), batch_size=[12])
    for step in range(steps):
        batch = everywhere[torch.randint(12, (96,))]
        critic_step(loss.value_loss(batch)[0])
        if step % 2 == 0:
            actor_step(loss.actor_loss(batch)[0])
        targets.step()
    with torch.no_grad():
        policy = loss.actor_network(everywhere.clone())["action"]
    share = windy_grid.values(policy).mean() / windy_grid.best_values().mean()
    assert share > 0.95, share
