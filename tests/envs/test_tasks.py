"""Rewards, terminations and dynamics against gymnasium's own, on real transitions."""

from __future__ import annotations

import re
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from tensordict import TensorDict
from torchrl.envs import check_env_specs

from torchrl_mage import OraclePendulum, Task, get_task, register_task
from torchrl_mage.envs import ContinuousCartPoleEnv, find_task, reward_module, termination_module
from torchrl_mage.envs.pendulum import pendulum_dynamics

DOUBLE = "InvertedDoublePendulum-v5"
CARTPOLE = "torchrl_mage/ContinuousCartPole-v1"
ENDING = [CARTPOLE, "Hopper-v5", "Walker2d-v5", "Ant-v5", DOUBLE]
ENDLESS = ["Pendulum-v1", "HalfCheetah-v5", "Swimmer-v5", "Pusher-v5"]
FORWARD = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Ant-v5"]


@pytest.fixture(scope="module")
def random_transitions():
    """2,000 random steps of each task, episode after episode."""
    cache = {}

    def collect(name):
        if name not in cache:
            torch.manual_seed(0)
            env = get_task(name).make_env()
            env.set_seed(0)
            cache[name] = env.rollout(2000, break_when_any_done=False)
        return cache[name]

    return collect


@pytest.mark.parametrize("name", ENDING + ENDLESS)
def test_reward_equals_gymnasiums(name, random_transitions):
    data = random_transitions(name)
    transition = data.select("observation", "action", ("next", "observation"))
    reward = get_task(name).reward(transition)["next", "reward"]
    assert reward.shape == (2000, 1)
    # The double pendulum is paid for where its tip was a stage of the integrator before.
    atol = 2e-4 if name == DOUBLE else 1e-5
    torch.testing.assert_close(reward, data["next", "reward"], atol=atol, rtol=0)


@pytest.mark.parametrize("name", [CARTPOLE, "Pendulum-v1", *FORWARD])
def test_a_posed_environment_is_in_the_observed_state(name, random_transitions):
    """What it would observe there is the observation, but for the forward velocity."""
    task = get_task(name)
    env = task.make_gymnasium()
    env.reset(seed=1)
    shown = slice(1, None) if name in FORWARD else slice(None)
    for observation in random_transitions(name)["next", "observation"][::400].numpy():
        task.pose(env, observation)
        base = env.unwrapped
        seen = base.state if name == CARTPOLE else base._get_obs()
        np.testing.assert_allclose(seen, observation[shown], atol=1e-5)


@pytest.mark.parametrize("name", ENDING)
def test_termination_equals_gymnasiums(name, random_transitions):
    data = random_transitions(name)
    transition = data.select("observation", "action", ("next", "observation"))
    terminated = get_task(name).termination(transition)["next", "terminated"]
    assert terminated.dtype == torch.bool
    assert data["next", "terminated"].sum() >= 10, "the case needs falls"
    assert torch.equal(terminated, data["next", "terminated"])


@pytest.mark.parametrize("name", ENDLESS)
def test_tasks_without_termination_never_terminate(name, random_transitions):
    assert get_task(name).termination is None
    data = random_transitions(name)
    assert not data["next", "terminated"].any()
    if name != "HalfCheetah-v5" and name != "Swimmer-v5":  # 1,000 steps an episode
        assert data["next", "truncated"].any(), "a time limit is no termination"


@pytest.mark.parametrize("name", ENDING + ENDLESS)
def test_environment_contract(name, random_transitions):
    env = get_task(name).make_env()
    check_env_specs(env)
    assert env.observation_spec["observation"].dtype == torch.float32
    assert (env.action_spec.space.low == -1).all()
    assert (env.action_spec.space.high == 1).all()
    assert random_transitions(name)["action"].abs().max() <= 1


@pytest.mark.parametrize("name", FORWARD)
def test_forward_velocity_leads_the_observation(name):
    """Beside the plain environment, stepped with the same actions."""
    task = get_task(name)
    env, plain = task.make_env(), gymnasium.make(name, **task.kwargs)
    env.set_seed(3)
    plain.reset(seed=3)
    td = env.reset()
    own, _ = plain.reset()
    assert td["observation"][0] == 0
    np.testing.assert_allclose(td["observation"][1:], own, rtol=1e-6, atol=1e-6)
    for _ in range(5):
        td = env.rand_step(td)
        own, _, _, _, info = plain.step(td["action"].numpy())
        observation = td["next", "observation"].numpy()
        np.testing.assert_allclose(observation[0], info["x_velocity"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(observation[1:], own, rtol=1e-5, atol=1e-5)
        td = td["next"]


def test_hoppers_hidden_velocities():
    """Gymnasium clips what it shows at +-10: its test of +-100 cannot be seen."""
    observation = torch.zeros(1, 12)
    observation[:, 1] = 1.2  # height
    task = get_task("Hopper-v5")

    def terminated(x):
        td = TensorDict({("next", "observation"): x}, [1])
        return task.termination(td)["next", "terminated"].item()

    assert not terminated(observation)
    observation[:, 8] = 10.0  # what a velocity of 150 would show
    assert not terminated(observation)
    observation[:, 4] = 101.0  # joint angles are not clipped
    assert terminated(observation)


def known(name, action, next_observation):
    """Reward and termination of one transition, as numbers."""
    transition = TensorDict(
        {
            "observation": torch.zeros_like(next_observation),
            "action": torch.as_tensor(action),
            ("next", "observation"): next_observation,
        }
    )
    task = get_task(name)
    reward = task.reward(transition.clone())["next", "reward"]
    return reward.item(), task.termination(transition)["next", "terminated"].item()


@pytest.mark.parametrize(
    ("height", "healthy"), [(0.5, 1), (0.2, 1), (1.0, 1), (0.19, 0), (1.01, 0), (float("nan"), 0)]
)
def test_ants_healthy_range(height, healthy):
    observation = torch.zeros(28)
    observation[:2] = torch.tensor([2.0, height])
    # Velocity 2, control cost 0.5 * 8 * 0.25.
    reward, terminated = known("Ant-v5", [0.5] * 8, observation)
    assert (reward, terminated) == (2 + healthy - 1, not healthy)


def test_an_ant_that_is_not_finite_has_ended():
    observation = torch.zeros(28)
    observation[1], observation[27] = 0.5, torch.inf
    assert known("Ant-v5", [0.0] * 8, observation) == (0, True)


def test_ant_neither_shows_nor_is_charged_contact_forces():
    """Unless it is made otherwise: what is passed goes over the task's own."""
    task = get_task("Ant-v5")
    assert task.make_env().observation_spec["observation"].shape == (1 + 27,)
    env = task.make_env(include_cfrc_ext_in_observation=True)
    assert env.observation_spec["observation"].shape == (1 + 27 + 13 * 6,)
    assert env.unwrapped.spec.kwargs["contact_cost_weight"] == 0
    assert hash(task) == hash(get_task("Ant-v5"))


@pytest.mark.parametrize(
    ("observation", "reward", "terminated"),
    [
        # x, sines, cosines, speeds, force on the cart: upright, the tip at (0, 1.2)
        ([0, 0, 0, 1, 1, 0, 0, 0, 0], 10 - 0.8**2, False),
        ([0.5, 0, 0, 1, 1, 9, 2, -1, 9], 10 - 0.8**2 - 0.01 * 0.25 - 0.004 - 0.005, False),
        # the first pole on its side, the second upright: the tip at (0.6, 0.6)
        ([0, 1, -1, 0, 0, 0, 0, 0, 0], -(1.4**2) - 0.01 * 0.36, True),
        # both on their side: the tip at (1.2 - 0.2, 0)
        ([-0.2, 1, 0, 0, 1, 0, 0, 0, 0], -4 - 0.01, True),
    ],
)
def test_double_pendulums_tip(observation, reward, terminated):
    found = known(DOUBLE, [0.3], torch.tensor(observation, dtype=torch.float64))
    assert found == (pytest.approx(reward, abs=1e-12), terminated)


def test_double_pendulum_is_gymnasiums_at_the_state_that_is_observed():
    """What gymnasium's own function pays when MuJoCo has computed the tip's position there."""
    env = gymnasium.make(DOUBLE)
    inner, generator, falls = env.unwrapped, np.random.default_rng(0), 0
    env.reset(seed=0)
    for _ in range(500):
        observation, _, terminated, _, _ = env.step(generator.choice([-1.0, 1.0], 1))
        mujoco.mj_forward(inner.model, inner.data)
        x, _, height = inner.data.site_xpos[0]
        expected, _ = inner._get_rew(x, height, height <= 1)
        reward, ended = known(DOUBLE, [0.0], torch.from_numpy(observation))
        if np.abs(inner.data.qvel).max() < 10:
            assert reward == pytest.approx(expected, abs=1e-9)
        assert ended == (height <= 1)
        falls += terminated
        if terminated:
            env.reset()
    assert falls >= 50


def test_double_pendulums_hidden_speeds():
    """Gymnasium charges for raw speeds and shows them clipped at +-10."""
    env = gymnasium.make(DOUBLE).unwrapped
    env.reset(seed=0)
    env.set_state(np.zeros(3), np.array([0.0, 20.0, 0.0]))
    observation, height = env._get_obs(), env.data.site_xpos[0][2]
    paid, _ = env._get_rew(0.0, height, False)
    reward, _ = known(DOUBLE, [0.0], torch.from_numpy(observation))
    assert observation[6] == 10
    assert reward - paid == pytest.approx(1e-3 * (400 - 100))


@pytest.mark.parametrize("name", ENDING + ENDLESS)
def test_rewards_are_differentiable(name):
    env = get_task(name).make_env()
    td = env.rollout(3).select("observation", "action", ("next", "observation")).double()
    s, a, n = (td[k].requires_grad_() for k in ("observation", "action", ("next", "observation")))
    reward = get_task(name).reward.module
    assert torch.autograd.gradcheck(reward, (s, a * 0.99, n))


# ---------------------------------------------------------------- keys


def test_reward_and_termination_on_other_keys():
    state, push, then = ("agent", "s"), ("agent", "a"), ("agent", "then")
    td = TensorDict(
        {
            state: torch.tensor([[1.0, 2.0]]),
            push: torch.tensor([[3.0]]),
            then: torch.tensor([[7.0, 8.0]]),
        },
        [1],
    )
    reward = reward_module(
        lambda s, a, n: n[..., :1] - s[..., :1] * a,
        in_keys=[state, push, then],
        out_keys=[("agent", "pay")],
    )
    assert reward(td)["agent", "pay"].tolist() == [[4.0]]
    ends = termination_module(lambda n: n[..., 1:] > 7, in_keys=[then], out_keys=["over"])
    assert ends(td)["over"].tolist() == [[True]]


def test_oracle_pendulum_on_other_keys():
    state, then = ("agent", "s"), ("next", "agent", "s")
    oracle = OraclePendulum(in_keys=[state, "push"], out_keys=[then, ("next", "pay")])
    assert oracle.in_keys == [state, "push"]
    observation, action = torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[0.3]])
    plain = OraclePendulum()(TensorDict(observation=observation, action=action))
    out = oracle(TensorDict({state: observation, "push": action}))
    torch.testing.assert_close(out[then], plain["next", "observation"])
    torch.testing.assert_close(out["next", "pay"], plain["next", "reward"])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (get_task("Hopper-v5").reward, "the reward module"),
        (get_task("Hopper-v5").termination, "the termination module"),
        (OraclePendulum(), "the oracle pendulum"),
    ],
)
def test_an_input_that_is_missing_is_named(module, name):
    """A function that never looks at it would otherwise go on with ``None``."""
    key = module.in_keys[0]
    td = TensorDict({"state": torch.zeros(3), "action": torch.zeros(1)})
    key = re.escape(repr(key))
    with pytest.raises(
        ValueError, match=rf"{name} reads {key}, which .*its keys are \['action', 'state'\]"
    ):
        module(td)


def test_a_reward_module_takes_keywords():
    module = get_task("HalfCheetah-v5").reward
    state, action = torch.zeros(5, 3), torch.ones(5, 1)
    reward = module(observation=state, action=action, next_observation=state + 2)
    torch.testing.assert_close(reward, torch.full((5, 1), 1.9))


# ---------------------------------------------------------------- Pendulum


def test_oracle_pendulum_is_gymnasiums_pendulum(random_transitions):
    data = random_transitions("Pendulum-v1")
    out = OraclePendulum()(data.select("observation", "action"))
    torch.testing.assert_close(
        out["next", "observation"], data["next", "observation"], atol=2e-6, rtol=0
    )
    torch.testing.assert_close(out["next", "reward"], data["next", "reward"], atol=1e-5, rtol=0)


def test_oracle_pendulum_derivatives():
    angle = torch.linspace(-2, 2, 5, dtype=torch.float64)
    observation = torch.stack([angle.cos(), angle.sin(), angle], -1).requires_grad_()
    action = (0.3 * angle[:, None]).requires_grad_()
    assert torch.autograd.gradcheck(pendulum_dynamics, (observation, action))


# ---------------------------------------------------------------- CartPole


@pytest.mark.parametrize("action", [0, 1])
def test_full_force_is_the_classic_cartpole(action):
    classic, ours = CartPoleEnv(), ContinuousCartPoleEnv()
    classic.reset(seed=7)
    ours.reset(seed=7)
    np.testing.assert_array_equal(classic.state, ours.state)
    terminated = False
    while not terminated:
        expected, reward, terminated, *_ = classic.step(action)
        state, own_reward, own_terminated, *_ = ours.step(np.array([2.0 * action - 1]))
        np.testing.assert_allclose(state, expected, rtol=1e-6, atol=1e-7)
        assert (own_reward, own_terminated) == (reward, terminated)


def test_cartpole_is_linear_in_the_force_and_registered():
    env = gymnasium.make("torchrl_mage/ContinuousCartPole-v1")
    assert env.spec.max_episode_steps == 500
    speeds = []
    for push in (-1.0, 0.0, 0.5, 1.0):
        env.reset(seed=1)
        speeds.append(env.step(np.array([push], dtype=np.float32))[0][1])
    assert speeds[2] - speeds[1] == pytest.approx((speeds[3] - speeds[1]) / 2, rel=1e-4)
    assert speeds[3] - speeds[1] == pytest.approx(speeds[1] - speeds[0], rel=1e-4)


def test_cartpole_runs_500_steps_when_balanced():
    """A linear feedback keeps the pole up: the time limit ends the episode, not a termination."""
    env = get_task("torchrl_mage/ContinuousCartPole-v1").make_env()
    env.set_seed(0)
    gain = torch.tensor([0.1, 0.2, 2.0, 0.4])

    def balance(td):
        return td.set("action", (td["observation"] @ gain).clamp(-1, 1).unsqueeze(-1))

    data = env.rollout(1000, balance)
    assert len(data) == 500
    assert data["next", "truncated"][-1]
    assert not data["next", "terminated"].any()
    assert data["next", "reward"].sum() == 500


# ---------------------------------------------------------------- registration and bad input


def test_register_and_unknown():
    task = register_task(Task("Reacher-v5"))
    assert get_task("Reacher-v5") is task
    with pytest.raises(ValueError, match="'Reacher-v5' is registered already"):
        register_task(Task("Reacher-v5"))
    with pytest.raises(ValueError, match=r"unknown task 'Ant'; known are \['Ant-v5', .*Task\("):
        get_task("Ant")


def test_find_task_takes_what_gymnasium_knows():
    assert find_task("Pendulum-v1") is get_task("Pendulum-v1")
    task = find_task("MountainCarContinuous-v0")
    assert (task.reward, task.termination) == (None, None)
    assert task.make_env().rollout(3)["action"].shape == (3, 1)
    with pytest.raises(ValueError, match="'NoSuch-v0' is neither a task .* nor an environment"):
        find_task("NoSuch-v0")


def test_a_suite_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shimmy", None)
    with pytest.raises(ValueError, match=r"needs shimmy and dm_control .* pip install -e .*dmc"):
        find_task("dm_control/cartpole-balance-v0")


def test_a_module_may_register_task_and_environment(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(
        "from torchrl_mage import Task, get_task, register_task\n"
        "register_task(Task('MyPendulum', reward=get_task('Pendulum-v1').reward))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_task("my_tasks:MyPendulum") is get_task("MyPendulum")
    with pytest.raises(ValueError, match="cannot import 'no_such_module', which is to register"):
        find_task("no_such_module:MyPendulum")
