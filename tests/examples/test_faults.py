"""What a user gets wrong is named before anything is trained, with what to write instead."""

from __future__ import annotations

import subprocess
import sys

from command_line import env_folder, short

import gymnasium
import pytest
import torch
from examples.conftest import EXAMPLES
from examples.test_mage_td3 import TINY
from gymnasium.envs.classic_control import PendulumEnv

from torchrl_mage import Task, register_task
from torchrl_mage.envs import reward_module, termination_module
from torchrl_mage.envs.pendulum import pendulum_reward


@pytest.fixture
def refused(launch, capfd, tmp_path):
    """Runs the main job, which must refuse; returns what it said."""

    def call(*overrides):
        with pytest.raises(SystemExit):
            launch("mage_td3", f"hydra.run.dir={tmp_path / 'run'}", *TINY, *overrides, cwd=tmp_path)
        assert not (tmp_path / "run" / "networks.pt").exists()
        return capfd.readouterr().err

    return call


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+polic.updates=3"], "polic: no such setting; did you mean policy?"),
        (["+dat=log.csv", "seed=-1"], "2 settings are out of range"),
        (["env=custom"], "env.name is missing, the environment's name, e.g. env=custom env.name="),
        (["env=dmc"], "or env=dmc env.name=cartpole-balance"),
    ],
)
def test_settings_that_are_none_are_named(refused, overrides, message):
    assert message in refused(*overrides)


@pytest.fixture(scope="module")
def tasks():
    """A pendulum with a torque cost of 0.5 for 0.01, and one whose reward expects raw actions."""
    for name in ("Cost", "Raw", "Ends", "Blind"):
        gymnasium.register(f"faults/{name}-v0", PendulumEnv, max_episode_steps=50)
    register_task(
        Task("faults/Cost-v0", reward_module(lambda s, a, n: pendulum_reward(s, a, n) - a.square()))
    )
    register_task(
        Task("faults/Raw-v0", reward_module(lambda s, a, n: pendulum_reward(s, a / 2, n) - 0.1 * a))
    )
    register_task(
        Task(
            "faults/Ends-v0",
            reward_module(pendulum_reward),
            termination_module(lambda n: n[..., :1] < 2),
        )
    )


@pytest.mark.parametrize("name", ["Cost", "Raw", "Ends"])
def test_a_known_function_that_is_wrong_stops_the_run_in_its_warm_up(refused, tasks, name):
    quantity = "terminated" if name == "Ends" else "reward"
    said = refused(f"env.name=faults/{name}-v0", "env.id=${env.name}")
    assert f"step 1: the {quantity} that is known of faults/{name}-v0 is" in said
    assert "learn it: reward=learned termination=learned" in said


def test_what_a_registered_task_knows_is_used_and_the_rest_is_said(launch, tmp_path):
    """env=custom takes a Task's own functions; of an environment of no Task both are learned."""
    own = launch(
        "mage_td3",
        f"hydra.run.dir={tmp_path / 'own'}",
        *TINY,
        "policy.imagination_steps=2",  # so small a model goes astray
        "env=custom",
        "env.name=Pendulum-v1",
        cwd=tmp_path,
    )
    assert "learned beside the dynamics" not in own.out
    assert set(torch.load(tmp_path / "own" / "networks.pt")) == {
        "actor",
        "reward_scaler",
        "critics",
        "world_model",
        "normalizer",
    }
    other = launch(
        "mage_td3",
        f"hydra.run.dir={tmp_path / 'other'}",
        *TINY,
        "env=custom",
        "env.name=InvertedPendulum-v5",
        cwd=tmp_path,
    )
    assert "learned beside the dynamics: reward, termination" in other.out


class Blind(PendulumEnv):
    """Renders nothing."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def render(self):
        return None


def test_a_video_of_what_cannot_be_rendered_is_refused_at_the_start(refused, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    gymnasium.register("faults/Unseen-v0", Blind, max_episode_steps=50)
    said = refused("env=custom", "env.name=faults/Unseen-v0", "video=true")
    assert "video=true: faults/Unseen-v0" in said


def test_folders_names_are_short_and_each_settings_own():
    assert env_folder("hopper", "Hopper-v5") == "hopper"
    names = {env_folder("custom", name) for name in ("a:b/C-v0", "a:b/D-v0")}
    assert names == {"custom/a_b_C-v0", "custom/a_b_D-v0"}
    long = [f"seed={seed}," + "world_model.lr=0.001," * 30 for seed in (0, 1)]
    assert len({short(name) for name in long}) == 2
    assert all(len(short(name)) == 100 for name in long)
    assert short("env=hopper,seed=0") == "env=hopper,seed=0", "as in the sweeps of before"


def test_threads_wait_passively_unless_the_user_chose():
    """The scripts say so before torch is loaded: one that spins starves a shared machine."""
    code = "import run, os; print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent}",
            **given,
        }
        out = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == expected
    for script in ("mage_td3", "mage_sac", "td3", "mage_ddpg", "gradient_error"):
        lines = (EXAMPLES / f"{script}.py").read_text().splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        third = next(line for line in imports if line.split()[1] in ("run", "torch", "omegaconf"))
        assert third.startswith("from run import"), script


def test_select_out_keys_in_a_process_of_its_own():
    """Whatever was built before: tensordict moves a class's list at its first instance."""
    test = EXAMPLES.parent / "tests" / "objectives" / "test_contract.py"
    command = [sys.executable, "-m", "pytest", "-q", "-k", "keyword_call and Taylor", str(test)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert out.returncode == 0, out.stdout
