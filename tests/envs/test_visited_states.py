"""Where rollouts of ModelBasedEnv start and stop: slices of others, states visited on the way."""

from __future__ import annotations

import pytest
import torch
from envs.test_model_based import make_env, numbered_members
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs import StepCounter, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_mage import ModelBasedEnv, get_task
from torchrl_mage.trainers import exploring


def counting_env(end):
    """``s' = s + 1`` whatever the action, ended where ``s' > end``."""
    base = get_task("Pendulum-v1").make_env()
    observation, action, following = "observation", "action", ("next", "observation")
    world_model = TensorDictSequential(
        TensorDictModule(lambda s, a: s + 1 + 0 * a, [observation, action], [following]),
        TensorDictModule(lambda a: a, [action], [("next", "reward")]),
        TensorDictModule(lambda s: s[..., :1] > end, [following], [("next", "terminated")]),
    )
    return ModelBasedEnv(world_model, base)


def test_visited_states_are_up_to_so_many_steps_away():
    env = counting_env(end=10_000)
    start = TensorDict(observation=torch.zeros(4000, 3), batch_size=[4000])
    visited = env.visited_states(env.rand_action, start, 3)
    assert list(visited.keys()) == ["observation"]
    assert (start["observation"] == 0).all()
    assert visited["observation"][:, 0].long().bincount().tolist() == [1000] * 4
    assert (visited["observation"][:100] != visited["observation"][0]).any(), "in no order"
    start = TensorDict(observation=torch.arange(24.0).reshape(8, 3), batch_size=[8])
    none = env.visited_states(env.rand_action, start, 0)["observation"]
    torch.testing.assert_close(none.sort(dim=0).values, start["observation"])
    start["observation"] *= 100
    some = env.visited_states(env.rand_action, start, 2)["observation"][:, 0].long()
    starts = {value // 300 for value in some.tolist()}
    assert len(starts) == 3, "three rollouts"
    assert len(some.unique()) == 8, "each state of theirs once, but for one of the nine"
    drawn = [env.visited_states(env.rand_action, start, 2)["observation"] for _ in range(20)]
    assert {int(value) // 300 for value in torch.cat(drawn)[:, 0]} == set(range(8)), "from any"
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        env.visited_states(env.rand_action, start, -1)


def test_visited_states_of_a_linear_problem():
    """``s' = s A + a B`` under ``a = s K``: after ``k`` steps ``s (A + K B)^k``."""
    torch.manual_seed(0)
    drift, push, gain = torch.randn(3, 3), torch.randn(1, 3), torch.randn(3, 1)
    observation, action, following = "observation", "action", ("next", "observation")
    world_model = TensorDictSequential(
        TensorDictModule(lambda s, a: s @ drift + a @ push, [observation, action], [following]),
        TensorDictModule(lambda a: a, [action], [("next", "reward")]),
    )
    env = ModelBasedEnv(world_model, get_task("Pendulum-v1").make_env())
    start = torch.randn(200, 3)
    policy = TensorDictModule(lambda s: s @ gain, [observation], [action])
    visited = env.visited_states(policy, TensorDict(observation=start, batch_size=[200]), 3)
    closed = drift + gain @ push
    possible = torch.stack([start @ torch.linalg.matrix_power(closed, k) for k in range(4)])
    distance = (visited["observation"][:, None, None] - possible).norm(dim=-1)
    is_it = distance / (1 + possible.norm(dim=-1)) < 1e-5
    assert (is_it.sum((1, 2)) == 1).all()
    assert (is_it.sum((0, 2)) == 50).all(), "of 50 rollouts each step"


def test_the_exploration_type_says_whether_the_policy_explores_on_the_way():
    observation, action, following = "observation", "action", ("next", "observation")
    world_model = TensorDictSequential(
        TensorDictModule(lambda s, a: s + a, [observation, action], [following]),
        TensorDictModule(lambda a: a, [action], [("next", "reward")]),
    )
    env = ModelBasedEnv(world_model, get_task("Pendulum-v1").make_env())
    still = TensorDictModule(lambda s: 0 * s[..., :1], [observation], [action])
    policy = exploring(still, env, noise=0.1)
    start = TensorDict(observation=torch.zeros(4000, 3), batch_size=[4000])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert (env.visited_states(policy, start, 1)["observation"] == 0).all()
    with set_exploration_type(ExplorationType.RANDOM):
        visited = env.visited_states(policy, start, 1)["observation"][:, 0]
    moved = visited != 0
    assert moved.float().mean() == 0.5, "half of them have taken the step"
    assert (visited[moved].std() - 0.1).abs() < 0.01


def test_visited_states_stay_before_the_end():
    env = counting_env(end=2)
    start = TensorDict(observation=torch.zeros(10, 100, 3), batch_size=[10, 100])
    visited = env.visited_states(env.rand_action, start, 6)["observation"]
    assert visited.shape == (10, 100, 3)
    assert visited.unique().tolist() == [0.0, 1.0, 2.0]


def test_visited_states_keep_their_member():
    """Member ``m`` goes ``m`` a step: five steps of one of four never make 7, 11, 13 or 14."""
    env = numbered_members(make_env("Pendulum-v1", "trajectory", ensemble_size=4))
    start = TensorDict(observation=torch.zeros(500, 3), batch_size=[500])
    reached = env.visited_states(env.rand_action, start, 5)["observation"].mean(-1).round()
    possible = {float(member * steps) for member in range(4) for steps in range(6)}
    assert set(reached.tolist()) == possible


@pytest.mark.parametrize("auto_reset", [True, False])
def test_rollouts_start_from_a_slice_of_a_rollout(auto_reset):
    """``s' = s + 1`` from 0: at times 1 and 2 are 1 and 2, and from there it counts on."""
    env = counting_env(end=100)
    first = env.rollout(3, tensordict=TensorDict(observation=torch.zeros(2, 3), batch_size=[2]))
    part = first[:, 1:]
    data = env.rollout(4, tensordict=part, auto_reset=auto_reset)
    counted = data["next", "observation"][..., 0]
    assert counted.tolist() == [[[2, 3, 4, 5], [3, 4, 5, 6]]] * 2
    assert data.names[-1] == "time"
    assert part.names == [None, "time"], "the caller's stays as it is"
    assert part["observation"][..., 0].tolist() == [[1, 2]] * 2


def test_in_a_transformed_environment_the_slice_gives_its_name_up():
    """As ``rollout`` says; the transformed environment's rollout is TorchRL's own."""
    env = counting_env(end=100)
    part = env.rollout(3, tensordict=TensorDict(observation=torch.zeros(2, 3), batch_size=[2]))
    part = part[:, 1:]
    part.names = [None] * part.ndim
    data = TransformedEnv(env, StepCounter()).rollout(4, tensordict=part)
    assert data["next", "observation"][..., 0].tolist() == [[[2, 3, 4, 5], [3, 4, 5, 6]]] * 2
