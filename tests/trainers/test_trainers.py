"""Evaluation, minibatches, metrics, guards and the run folder."""

from __future__ import annotations

import csv
import re
import time

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import AdditiveGaussianModule
from torchrl.record.loggers import CSVLogger

from torchrl_mage import Task, get_task
from torchrl_mage.objectives import member_minibatches, radam
from torchrl_mage.trainers import (
    DivergenceError,
    DivergenceGuard,
    Evaluation,
    Metrics,
    RunningMeans,
    check_finite,
    clipped_step,
    compiled,
    evaluate,
)

# ---------------------------------------------------------------- evaluation


def push(value):
    return TensorDictModule(
        lambda s: torch.full_like(s[..., :1], value), ["observation"], ["action"]
    )


def test_evaluation_equals_a_plain_gymnasium_loop():
    env = get_task("torchrl_mage/ContinuousCartPole-v1").make_env()
    evaluation = evaluate(env, push(0.3), episodes=4, seed=5)
    plain = gymnasium.make("torchrl_mage/ContinuousCartPole-v1")
    plain.reset(seed=5)  # set_seed resets once, and so does each episode
    lengths = []
    for _ in range(4):
        plain.reset()
        done, length = False, 0
        while not done:
            _, _, terminated, truncated, _ = plain.step(np.array([0.3], dtype=np.float32))
            done, length = terminated or truncated, length + 1
        lengths.append(float(length))
    assert evaluation.lengths.tolist() == lengths
    assert evaluation.returns.tolist() == lengths
    assert evaluation.mean == pytest.approx(np.mean(lengths))
    assert evaluation.std == pytest.approx(np.std(lengths))
    assert str(evaluation) == f"{np.mean(lengths):.2f} +- {np.std(lengths):.2f} over 4 episodes"


def test_evaluation_is_deterministic_and_leaves_the_generator_alone():
    env = get_task("Pendulum-v1").make_env()
    noisy = TensorDictSequential(push(0.1), AdditiveGaussianModule(env.action_spec, sigma_init=1.0))
    state = torch.get_rng_state()
    first = evaluate(env, noisy, episodes=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    env.rollout(3)  # whatever was done between: the seed alone counts
    assert torch.equal(first.returns, evaluate(env, noisy, episodes=2, seed=1).returns)
    assert not torch.equal(first.returns, evaluate(env, noisy, episodes=2, seed=2).returns)
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate(env, noisy, episodes=0, seed=1)


def test_an_evaluation_that_is_not_finite_is_refused():
    def unpaid(env):
        return gymnasium.wrappers.TransformReward(env, lambda reward: reward * np.nan)

    env = Task("Pendulum-v1", wrap=unpaid).make_env(disable_env_checker=True)
    with pytest.raises(FloatingPointError, match="an evaluation episode returned nan"):
        evaluate(env, push(0.0), episodes=1, seed=0)
    with pytest.raises(FloatingPointError, match=r"the policy gave the action \[nan\]"):
        evaluate(env, push(float("nan")), episodes=1, seed=0)


# ---------------------------------------------------------------- minibatches


@given(
    size=st.integers(1, 60),
    ensemble_size=st.integers(1, 4),
    batch_size=st.integers(1, 20),
    min_batches=st.integers(1, 15),
    exact=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_minibatches_are_whole_epochs_of_permutations(
    size, ensemble_size, batch_size, min_batches, exact
):
    batches = list(
        member_minibatches(
            size,
            ensemble_size=ensemble_size,
            batch_size=batch_size,
            min_batches=min_batches,
            exact=exact,
        )
    )
    width = min(size, batch_size)
    per_epoch = size // width
    if exact:
        assert len(batches) == min_batches
    else:
        assert len(batches) % per_epoch == 0
        assert min_batches <= len(batches) < min_batches + per_epoch
    for start in range(0, len(batches), per_epoch):
        epoch = torch.cat(batches[start : start + per_epoch], 1)
        for member in epoch:
            assert len(member.unique()) == len(member), "no transition twice in an epoch"
            assert 0 <= member.min() <= member.max() < size
    assert {tuple(batch.shape) for batch in batches} == {(ensemble_size, width)}


def test_members_are_permuted_on_their_own():
    (batch,) = member_minibatches(100, ensemble_size=2, batch_size=100, min_batches=1)
    assert not torch.equal(batch[0], batch[1])


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"must be at least 1, got \(0, 2, 4, 1\)"):
        next(member_minibatches(0, ensemble_size=2, batch_size=4, min_batches=1))


# ---------------------------------------------------------------- guards


class Broken(gymnasium.Env):
    """Gives NaN at its third step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        bad = np.nan if self.steps == 3 else 0.0
        return np.array([0.0, bad], np.float32), 0.0, False, False, {}


def test_nan_observations_are_named():
    gymnasium.register("torchrl_mage_test/Broken-v0", Broken)
    try:
        env = Task("torchrl_mage_test/Broken-v0").make_env(disable_env_checker=True)
        data = env.rollout(3)
    finally:
        gymnasium.registry.pop("torchrl_mage_test/Broken-v0")
    check_finite(data[:2], step=2, source="environment Broken-v0")
    message = (
        r"step 3: the environment Broken-v0 gave next.observation = nan \(1 of 2 values not finite"
    )
    with pytest.raises(FloatingPointError, match=message):
        check_finite(data[2:], step=3, source="environment Broken-v0")


# ---------------------------------------------------------------- metrics and run folder


def test_running_means_weigh_each_call_equally():
    means = RunningMeans()
    means.add(a=torch.tensor([1.0, 3.0]), b=torch.tensor(5.0, requires_grad=True))
    means.add(a=torch.tensor([[6.0]]))
    assert means.pop() == {"a": 4.0, "b": 5.0}
    assert means.pop() == {}


def test_metrics_write_rows_curve_and_scalars(tmp_path):
    logger = CSVLogger("logs", str(tmp_path))
    run = Metrics(tmp_path, total_steps=20, title="test", show=["loss"], logger=logger)
    run.report(loss=torch.tensor(1.0))
    run.log(5)
    run.report(loss=torch.tensor(3.0))
    run.log(10)
    run.evaluated(10, Evaluation(torch.tensor([1.0, 3.0]), torch.ones(2)))
    run.report(other=torch.tensor(7.0))
    run.evaluated(20, Evaluation(torch.tensor([5.0]), torch.ones(1)))
    run.close()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "step",
        "eval_return_mean",
        "eval_return_std",
        "wall_time",
        "loss",
        "wall_time_rest",
        "other",
    ]
    assert (rows[0]["step"], rows[0]["eval_return_mean"], rows[0]["eval_return_std"]) == (
        "10",
        "2.0",
        "1.0",
    )
    assert (rows[0]["loss"], rows[0]["other"], rows[1]["loss"]) == ("2.0", "", "")
    assert rows[1]["other"] == "7.0", "a column comes when its metric is first reported"
    assert 0 <= float(rows[0]["wall_time"]) <= float(rows[1]["wall_time"])
    assert (tmp_path / "learning_curve.png").read_bytes()[1:4] == b"PNG"
    points = (tmp_path / "logs" / "scalars" / "train" / "loss.csv").read_text().split()
    assert points == ["5,1.0", "10,3.0"]


def test_the_parts_of_the_time_add_up_to_it_and_go_on_after_a_resume(tmp_path):
    run = Metrics(tmp_path, total_steps=2, title="test")
    with run.timing("updates"):
        time.sleep(0.02)
        with run.timing("fit"):
            time.sleep(0.05)
    before = run.seconds()
    assert 0.02 <= before["updates"] < 0.05 <= before["fit"], "the inner part is not the outer's"
    state = run.state_dict()
    run.close()

    resumed = Metrics(tmp_path, total_steps=2, title="test")
    time.sleep(0.02)  # before the checkpoint is read: the interruption is no one's time
    resumed.load_state_dict(state)
    resumed.evaluated(1, Evaluation(torch.ones(1), torch.ones(1)))
    resumed.close()
    with (tmp_path / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    parts = {k: float(v) for k, v in row.items() if k.startswith("wall_time_")}
    assert parts["wall_time_fit"] == pytest.approx(before["fit"], abs=2e-3)
    assert sum(parts.values()) == pytest.approx(float(row["wall_time"]), abs=2e-3)
    assert parts["wall_time_rest"] < state["seconds"]["rest"] + 0.02


def test_a_metric_may_not_take_an_evaluations_column(tmp_path):
    run = Metrics(tmp_path, total_steps=1, title="test")
    with pytest.raises(ValueError, match=r"\['step'\] are columns of the evaluation"):
        run.report(step=torch.tensor(1.0))
    run.close()


# ---------------------------------------------------------------- compilation


def test_without_a_compiler_it_says_so_and_stays_eager(monkeypatch):
    module = nn.Linear(1, 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="needs a C\\+\\+ compiler.*compile=false"):
        assert compiled(module, enabled=True, device=torch.device("cpu")) is module
    assert compiled(module, enabled=False, device=torch.device("cpu")) is module


def test_compiled_says_how_long_and_gives_the_same(capfd):
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    call = compiled(lambda x: (weight * x.sin()).sum(), enabled=True, device=torch.device("cpu"))
    x = torch.tensor([0.3, 0.4])
    out = call(x)
    assert re.search(r"compiled .*lambda.* in \d+\.\d s", capfd.readouterr().err)
    torch.testing.assert_close(out, (weight * x.sin()).sum())
    out.backward()
    torch.testing.assert_close(weight.grad, x.sin())
    call(x)
    assert capfd.readouterr().err == ""


def test_clipped_step_clips_each_element():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    (weight * torch.tensor([0.5, -7.0, 3.0])).sum().backward()
    clipped_step(optimizer, 2.0)()
    torch.testing.assert_close(weight.data, torch.tensor([-0.5, 2.0, -2.0]))
    with pytest.raises(ValueError, match="clip_value must be positive, got 0"):
        clipped_step(optimizer, 0.0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_compiled_radam_equals_eager(decay):
    """Over the steps where the rectification sets in, which float32 would get wrong by 0.6 %."""
    gradients = torch.randn(12, 5)
    ends = []
    for enabled in (False, True):
        weight = nn.Parameter(torch.ones(5))
        optimizer = radam([weight], lr=0.1, weight_decay=decay, decoupled_weight_decay=True)
        step = compiled(
            clipped_step(optimizer, 1.0),
            enabled=enabled,
            device=torch.device("cpu"),
            fullgraph=False,
        )
        for gradient in gradients:
            weight.grad = gradient.clone()
            step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)


def test_radam_is_torchs():
    gradients = torch.randn(12, 5)
    ends = []
    for make in (torch.optim.RAdam, radam):
        weight = nn.Parameter(torch.ones(5))
        optimizer = make([weight], lr=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_check_finite_passes_integers_and_nested():
    td = TensorDict({"i": torch.ones(2, dtype=torch.int64), ("a", "b"): torch.ones(2)}, [2])
    check_finite(td, step=1, source="test")
    td["a", "b"][1] = float("inf")
    with pytest.raises(FloatingPointError, match="a.b = inf"):
        check_finite(td, step=1, source="test")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_divergence_is_named(bad):
    weight = nn.Parameter(torch.ones(3))
    guard = DivergenceGuard({"loss_qvalue": [weight]}, limits={"huber_td_error": 100.0})
    guard.watch(loss_actor=torch.tensor([1e30]), huber_td_error=torch.tensor(100.0))
    guard.check(4)
    guard.watch(loss_qvalue=torch.tensor([1.0, bad]))
    with pytest.raises(DivergenceError, match=f"step 5: training diverged, loss_qvalue = {bad}"):
        guard.check(5)
    guard.check(6)
    with torch.no_grad():
        weight[1] = bad
    guard.watch(loss_actor=torch.tensor(1.0))
    guard.check(7)  # no update of it since the last check
    with pytest.raises(DivergenceError, match=f"the sum of what loss_qvalue trains = {bad}"):
        guard.check(7, everything=True)
    guard.watch(loss_qvalue=torch.tensor(1.0))
    with pytest.raises(DivergenceError, match=f"the sum of what loss_qvalue trains = {bad}"):
        guard.check(8)
