"""What export.py writes acts as the run's policy does, without this package."""

from __future__ import annotations

import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from examples.conftest import EXAMPLES
from examples.test_mage_td3 import TINY

from torchrl_mage import load_run

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ALONE = """
import sys
import gymnasium
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("policy.onnx")
env = gymnasium.make("Pendulum-v1")
observation, _ = env.reset(seed=7)
observations, actions = [], []
for _ in range(50):
    (action,) = session.run(None, {"observation": observation[None]})
    observations.append(observation)
    actions.append(action[0])
    observation = env.step(action[0])[0]
assert not {"torch", "tensordict", "torchrl", "torchrl_mage"} & set(sys.modules)
np.savez("episode.npz", observations=observations, actions=actions)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def trained(launch, folder):
    """A tiny run of a script, trained and exported once; what export.py says of it."""

    def call(script, task):
        path = folder / f"{script}_{task}"
        if not path.exists():
            launch(script, f"hydra.run.dir={path}", f"env={task}", *TINY, cwd=folder)
            (path / "said").write_text(launch("export", str(path), cwd=folder).out)
        return path, (path / "said").read_text()

    return call


def test_onnxruntime_alone_steps_gymnasium(trained):
    path, said = trained("mage_td3", "pendulum")
    assert "Pendulum-v1: float32[batch, 3] in, float32[batch, 1] out" in said
    out = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=path, capture_output=True, text=True, env={}
    )
    assert out.returncode == 0, out.stderr
    episode = np.load(path / "episode.npz")
    run = load_run(path)
    assert np.ptp(episode["actions"]) > 1e-3
    np.testing.assert_allclose(run.act(episode["observations"]), episode["actions"], atol=1e-5)


def test_the_program_is_torch_alone(trained):
    """Of a stochastic actor in a wrapped environment: its operators are torch's, for any batch."""
    path, _ = trained("mage_sac", "hopper")
    run = load_run(path)
    program = torch.export.load(path / "policy.pt2")
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    operators = [target for target in calls if hasattr(target, "namespace")]
    assert {target.namespace for target in operators} == {"aten"}
    assert {target.__name__ for target in set(calls) - set(operators)} == {"getitem"}
    env = run.task.make_gymnasium()
    observation, _ = env.reset(seed=0)
    for size in (1, 5):
        batch = np.repeat(observation[None].astype(np.float32), size, 0)
        answer = program.module()(torch.as_tensor(batch)).numpy()
        np.testing.assert_allclose(answer, run.act(batch), atol=1e-6)
    assert env.action_space.contains(answer[0])


def test_the_best_networks_under_another_name(trained, launch, tmp_path):
    path, _ = trained("mage_td3", "pendulum")
    said = launch("export", str(path), "--best", "--out", "agents/swing.up", cwd=tmp_path).out
    files = sorted((tmp_path / "agents").iterdir())
    assert [file.name for file in files] == ["swing.up.onnx", "swing.up.pt2"]
    assert "wrote agents/swing.up.onnx, within" in said
    states = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    actions = runpy.run_path(str(EXAMPLES / "export.py"))["actions"]
    for file in files:
        expected = load_run(path, best=True).act(states)
        np.testing.assert_allclose(actions(file, states), expected, atol=1e-5)


def test_a_file_that_acts_otherwise_is_refused(trained):
    path, _ = trained("mage_td3", "pendulum")
    run = load_run(path)
    statistics = run.policy[0].statistics
    usual = statistics.mean.expand(2, -1).numpy().copy()
    statistics.mean.add_(statistics.std)
    check = runpy.run_path(str(EXAMPLES / "export.py"))["check"]
    with pytest.raises(SystemExit, match=r"the exported .onnx differs from the run's policy by"):
        check(path / "policy.onnx", run, usual)


def test_what_cannot_be_exported_is_named(trained, launch, tmp_path):
    with pytest.raises(SystemExit, match=r"holds no run: it has no config\.yaml"):
        launch("export", str(tmp_path), cwd=tmp_path)
    path, _ = trained("mage_td3", "pendulum")
    for name, message in (
        ("Nowhere-v0", "'Nowhere-v0' is neither a task"),
        ("CartPole-v1", r"CartPole-v1 has the action space Discrete\(2\)"),
    ):
        text = (path / "config.yaml").read_text().replace("Pendulum-v1", name)
        (tmp_path / "config.yaml").write_text(text)
        (tmp_path / "networks.pt").write_bytes((path / "networks.pt").read_bytes())
        with pytest.raises(SystemExit, match=message):
            launch("export", str(tmp_path), cwd=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "networks.pt"]
