"""ModelBasedEnv: TorchRL's contract for environments, derivatives, both propagations."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import (
    RenameTransform,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
)

from torchrl_mage import (
    GaussianEnsembleWorldModel,
    ModelBasedEnv,
    OraclePendulum,
    get_task,
)


def make_env(name="Hopper-v5", propagation="step", ensemble_size=3, **kwargs):
    task = get_task(name)
    base = task.make_env()
    base.set_seed(0)
    obs_dim, action_dim = (
        base.observation_spec["observation"].shape[-1],
        base.action_spec.shape[-1],
    )
    dynamics = GaussianEnsembleWorldModel(
        obs_dim, action_dim, ensemble_size=ensemble_size, num_cells=(8,), **kwargs
    )
    parts = [m for m in (dynamics, task.reward, task.termination) if m is not None]
    return ModelBasedEnv(TensorDictSequential(*parts), base, propagation=propagation)


@pytest.mark.parametrize("propagation", ["step", "trajectory"])
@pytest.mark.parametrize("name", ["Hopper-v5", "Pendulum-v1"])
def test_specs(name, propagation):
    env = make_env(name, propagation)
    check_env_specs(env, break_when_any_done="both")
    check_env_specs(env, tensordict=env.reset(TensorDict(batch_size=[4])))


@pytest.mark.parametrize("name", ["Hopper-v5", "Pendulum-v1"])
def test_takes_the_world_models_dtype(name):
    """The base environment's observations and actions are float32."""
    env = make_env(name, dtype=torch.float64)
    check_env_specs(env, break_when_any_done="both")
    data = env.rollout(3, break_when_any_done=False)
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        assert data[key].dtype == torch.float64, key


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_resets_to_what_it_is_given_else_to_the_base_environment(batch):
    env = make_env("Pendulum-v1")
    given = torch.randn(*batch, 3)
    out = env.reset(TensorDict(observation=given, batch_size=batch))
    torch.testing.assert_close(out["observation"], given)
    fresh = env.reset(TensorDict(batch_size=batch))
    assert fresh["observation"].shape == (*batch, 3)
    radius = fresh["observation"][..., :2].norm(dim=-1)
    torch.testing.assert_close(radius, torch.ones(batch))
    if batch:
        assert len(fresh["observation"].reshape(-1, 3).unique(dim=0)) == torch.Size(batch).numel()


def test_oracle_rollout_is_the_real_environment():
    base = get_task("Pendulum-v1").make_env()
    base.set_seed(1)
    real = base.rollout(50)
    env = ModelBasedEnv(OraclePendulum(), base)
    actions = iter(real["action"])
    imagined = env.rollout(
        50, lambda td: td.set("action", next(actions)), tensordict=real[0].select("observation")
    )
    torch.testing.assert_close(
        imagined["next", "observation"], real["next", "observation"], atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        imagined["next", "reward"], real["next", "reward"], atol=1e-2, rtol=0
    )


def test_rollout_keeps_the_graph():
    """The return's gradient for the first action equals central differences."""
    env = make_env("Pendulum-v1", sampling="mean", dtype=torch.float64)
    start = TensorDict(observation=torch.randn(3, dtype=torch.float64))

    def total(push):
        actions = iter([push, *torch.full((3, 1), 0.1, dtype=torch.float64)])
        policy = lambda td: td.set("action", next(actions))  # noqa: E731
        return env.rollout(4, policy, tensordict=start.clone())["next", "reward"].sum()

    push = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total(push), push)
    h = 1e-6
    difference = (total(push.detach() + h) - total(push.detach() - h)) / (2 * h)
    assert gradient.abs() > 1e-3
    torch.testing.assert_close(gradient[0], difference, rtol=1e-6, atol=1e-8)


def test_stops_on_termination_and_resets_what_ended():
    env = make_env("Hopper-v5", sampling="mean")
    with torch.no_grad():  # nothing moves
        for parameter in env.world_model.parameters():
            parameter.zero_()
    lying = env.reset()["observation"].clone()
    lying[1] = 0.5  # below the healthy height
    data = env.rollout(20, tensordict=TensorDict(observation=lying), auto_reset=False)
    assert len(data) < 20
    assert data["next", "terminated"][-1]
    both = torch.stack([lying, env.reset()["observation"]])
    going_on = env.rollout(
        3, tensordict=TensorDict(observation=both, batch_size=[2]), break_when_any_done=False
    )
    assert going_on["next", "terminated"][0, 0]
    assert going_on["observation"][0, 1, 1] > 1.1, "a fresh start of the real environment"
    torch.testing.assert_close(going_on["observation"][1, 1], going_on["next", "observation"][1, 0])


def test_composes_with_transforms_and_collector():
    env = TransformedEnv(make_env("Pendulum-v1"), StepCounter(6))
    assert env.rollout(20).shape == (6,)
    collector = Collector(env, None, frames_per_batch=8, total_frames=16)
    frames = list(collector)
    assert [len(batch) for batch in frames] == [8, 8]
    assert frames[0]["next", "done"].sum() == 1
    collector.shutdown()


def test_deepcopy_is_independent():
    env = make_env("Pendulum-v1", sampling="mean")
    twin = copy.deepcopy(env)
    start = TensorDict(observation=torch.randn(3), action=torch.zeros(1))
    before = env.step(start.clone())["next", "observation"]
    torch.testing.assert_close(twin.step(start.clone())["next", "observation"], before)
    with torch.no_grad():
        for parameter in twin.world_model.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(env.step(start.clone())["next", "observation"], before)


def test_training_the_model_in_place_is_seen():
    env = make_env("Pendulum-v1", sampling="mean")
    start = TensorDict(observation=torch.randn(3), action=torch.zeros(1))
    before = env.step(start.clone())["next", "observation"]
    env.world_model[0].update_normalizer(
        TensorDict(
            {
                "observation": torch.randn(9, 3),
                "action": torch.randn(9, 1),
                ("next", "observation"): torch.randn(9, 3),
            },
            [9],
        )
    )
    assert not torch.allclose(env.step(start.clone())["next", "observation"], before)


def member_of(env, data):
    """The member that made each step, told by members whose mean difference is their number."""
    return (data["next", "observation"] - data["observation"]).mean(-1).round().long()


def numbered_members(env):
    model = env.world_model[0]
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
        size = model.difference_statistics.mean.shape[0]
        model.network[-1].bias[:, 0, :size] = torch.arange(model.ensemble_size)[:, None].float()
        model.network[-1].bias[:, 0, size:] = -50
    return env


def test_trajectory_propagation_keeps_each_elements_member():
    env = numbered_members(make_env("Pendulum-v1", "trajectory", ensemble_size=5))
    data = env.rollout(6, tensordict=env.reset(TensorDict(batch_size=[64])), auto_reset=False)
    members = member_of(env, data)
    assert torch.equal(members, data["ensemble_member"].squeeze(-1))
    assert (members == members[:, :1]).all()
    assert len(members[:, 0].unique()) == 5  # false alarms: 5 * 0.8^64


def test_trajectories_may_start_without_a_reset():
    """As planners do, from the real environment's states."""
    env = numbered_members(make_env("Pendulum-v1", "trajectory", ensemble_size=5))
    start = TensorDict(observation=torch.zeros(64, 3), batch_size=[64])
    data = env.rollout(4, tensordict=start, auto_reset=False)
    assert (member_of(env, data) == data["ensemble_member"].squeeze(-1)).all()
    assert (data["ensemble_member"] == data["ensemble_member"][:, :1]).all()


def test_step_propagation_draws_anew():
    env = numbered_members(make_env("Pendulum-v1", "step", ensemble_size=5))
    data = env.rollout(6, tensordict=env.reset(TensorDict(batch_size=[64])), auto_reset=False)
    members = member_of(env, data)
    assert (members != members[:, :1]).any()
    assert "ensemble_member" not in data


def test_nested_observation_key():
    base = get_task("Pendulum-v1").make_env()
    renamed = TransformedEnv(base)
    renamed.append_transform(RenameTransform(["observation"], [("agent", "state")]))
    world_model = TensorDictSequential(
        TensorDictModule(
            lambda s, a: s + 0.1 * a,
            [("agent", "state"), "action"],
            [("next", "agent", "state")],
        ),
        TensorDictModule(lambda a: -a.square(), ["action"], [("next", "reward")]),
    )
    env = ModelBasedEnv(world_model, renamed)
    check_env_specs(env)
    data = env.rollout(3, tensordict=TensorDict(batch_size=[2]))
    torch.testing.assert_close(
        data["next", "agent", "state"], data["agent", "state"] + 0.1 * data["action"]
    )


def test_nested_termination_ends_the_rollout():
    keys = ["observation", "done", "terminated", "truncated"]
    base = TransformedEnv(get_task("Hopper-v5").make_env())
    base.append_transform(RenameTransform(keys, [("agent", key) for key in keys]))
    world_model = TensorDictSequential(
        TensorDictModule(
            lambda s, a: s + 1 + 0 * a[..., :1],
            [("agent", "observation"), "action"],
            [("next", "agent", "observation")],
        ),
        TensorDictModule(lambda a: a[..., :1], ["action"], [("next", "reward")]),
        TensorDictModule(
            lambda s: s[..., :1] > 2.5,
            [("next", "agent", "observation")],
            [("next", "agent", "terminated")],
        ),
    )
    env = ModelBasedEnv(world_model, base)
    start = TensorDict({("agent", "observation"): torch.zeros(1, 11)}, [1])
    data = env.rollout(10, tensordict=start)
    assert data["next", "agent", "terminated"].squeeze().tolist() == [False, False, True]


def test_a_world_model_may_write_termination_at_the_root():
    """As the tasks' modules do, whatever the environment's own key."""
    keys = ["observation", "done", "terminated", "truncated"]
    base = TransformedEnv(get_task("Hopper-v5").make_env())
    base.append_transform(RenameTransform(keys, [("agent", key) for key in keys]))
    state = ("agent", "observation")
    world_model = TensorDictSequential(
        TensorDictModule(
            lambda s, a: s + 1 + 0 * a[..., :1], [state, "action"], [("next", *state)]
        ),
        TensorDictModule(lambda a: a[..., :1], ["action"], [("next", "reward")]),
        TensorDictModule(lambda s: s[..., :1] > 2.5, [("next", *state)], [("next", "terminated")]),
    )
    env = ModelBasedEnv(world_model, base)
    data = env.rollout(10, tensordict=TensorDict({state: torch.zeros(1, 11)}, [1]))
    assert data["next", "agent", "terminated"].squeeze().tolist() == [False, False, True]


def test_bad_input_is_named():
    base = get_task("Pendulum-v1").make_env()
    with pytest.raises(ValueError, match="propagation must be one of .* got 'ts1'"):
        ModelBasedEnv(OraclePendulum(), base, propagation="ts1")
    with pytest.raises(ValueError, match="needs one ensemble in the world model.*found 0"):
        ModelBasedEnv(OraclePendulum(), base, propagation="trajectory")
    unpaid = TensorDictModule(
        lambda s, a: s + a, ["observation", "action"], [("next", "observation")]
    )
    with pytest.raises(ValueError, match=r"writes no reward under \('next', 'reward'\)"):
        ModelBasedEnv(unpaid, base)
    blind = TensorDictModule(lambda s, a: s, ["hidden", "action"], [("next", "observation")])
    with pytest.raises(ValueError, match=r"must write \['hidden'\] too, under 'next'"):
        ModelBasedEnv(blind, base)
    batched = SerialEnv(2, get_task("Pendulum-v1").make_env)
    with pytest.raises(ValueError, match=r"base_env has batch size \[2\]; pass a single"):
        ModelBasedEnv(OraclePendulum(), batched)
