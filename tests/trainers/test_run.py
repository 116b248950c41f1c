"""The owner of a run: what it holds, when it stops, what it says."""

from __future__ import annotations

import shlex
import signal

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_mage import MAGELoss, Normalizer, OraclePendulum, get_task
from torchrl_mage.modules import critic, deterministic_actor
from torchrl_mage.trainers import (
    TRANSITION,
    CheckpointError,
    DivergenceError,
    Interrupted,
    Minimizer,
    Run,
    RunInUseError,
    checkpoints,
    exploring,
    exploring_collector,
    held_transitions,
    resuming,
)

TASK = get_task("Pendulum-v1")


def make_run(path, **settings):
    defaults = {
        "title": "test",
        "total_steps": 12,
        "log_interval": 4,
        "eval_interval": 6,
        "eval_episodes": 1,
        "checkpoint_interval": 5,
        "seed": 0,
        "discount": 0.99,
    }
    return Run(path, **defaults | settings)


class Agent:
    """A tiny MAGE-TD3 on Pendulum's true dynamics, all of it held but what a test leaves out."""

    def __init__(self, run, leave_out=(), critic_lr=1e-3):
        self.run = run
        torch.manual_seed(0)
        self.env, self.eval_env = TASK.make_env(), TASK.make_env()
        self.normalizer = Normalizer(3)
        self.actor = deterministic_actor(3, self.env.action_spec, [8])
        critics = [critic(3, 1, [8]) for _ in range(2)]
        following = self.normalizer.on(("next", "observation"), ("next", "normalized_observation"))
        world_model = TensorDictSequential(OraclePendulum(), following)
        self.loss = MAGELoss(
            self.actor,
            critics,
            world_model,
            bounds=(-1.0, 1.0),
            delay_actor=False,
            delay_qvalue=False,
        )
        self.loss.make_value_estimator(gamma=0.99)
        self.policy = TensorDictSequential(self.normalizer, self.actor)
        self.buffer = ReplayBuffer(storage=LazyTensorStorage(100), batch_size=4)
        parts = {
            "loss": self.loss,
            "actor": self.actor,
            "critics": self.loss.qvalue_network_params,
            "normalizer": self.normalizer,
        }
        run.holds(**{name: part for name, part in parts.items() if name not in leave_out})
        self.descend = Minimizer(
            run,
            "loss_qvalue",
            self.loss.value_loss,
            torch.optim.SGD(self.loss.qvalue_network_params.parameters(), lr=critic_lr),
        )

    def steps(self, signal_at=None, data=None):
        explorer = exploring(self.policy, self.env, noise=0.1)
        collector = exploring_collector(self.env, explorer, random_steps=3, total_steps=12, seed=0)
        for step, transition in self.run.steps(
            collector, self.buffer, self.policy, self.eval_env, environment="Pendulum-v1", data=data
        ):
            if len(transition):
                self.buffer.extend(transition)
                self.normalizer.update(transition["observation"])
            self.descend(self.normalizer(self.buffer.sample().select("observation")))
            if step == signal_at:
                signal.raise_signal(signal.SIGTERM)
            yield step


def test_a_run_writes_what_it_is_for(tmp_path):
    with make_run(tmp_path) as run:
        assert list(Agent(run).steps()) == list(range(1, 13))
    assert run.evaluation.mean < 0
    networks = torch.load(tmp_path / "networks.pt", weights_only=True)
    assert set(networks) == {"actor", "critics", "normalizer"}
    assert (tmp_path / "best_networks.pt").exists()
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"step", "wall_time", "loss_qvalue", "td_error"} <= set(header)
    assert "loss_actor" not in header, "what was not reported is no column"


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ({"normalizer"}, "the policy's module.0.statistics.count is in no part that the run holds"),
        ({"loss", "actor"}, "the policy's module.1.* is in no part that the run holds"),
    ],
)
def test_a_part_that_is_forgotten_is_named(tmp_path, left_out, message):
    with make_run(tmp_path) as run, pytest.raises(ValueError, match=message):
        next(Agent(run, left_out).steps())


def test_a_world_model_that_is_forgotten_is_named(tmp_path):
    with make_run(tmp_path) as run:
        agent = Agent(run)
        layer = nn.Linear(3, 3)
        agent.loss.world_model.append(
            TensorDictModule(layer, [("next", "observation")], [("next", "extra")])
        )
        with pytest.raises(ValueError, match=r"the world model's module.2.module.weight is in no"):
            next(agent.steps())


def test_a_name_is_held_once_and_in_time(tmp_path):
    with make_run(tmp_path) as run:
        agent = Agent(run)
        with pytest.raises(ValueError, match=r"holds \['actor'\] already"):
            run.holds(actor=agent.actor)
        with pytest.raises(ValueError, match=r"holds \['loss_qvalue'\] already"):
            Minimizer(run, "loss_qvalue", agent.loss.value_loss, agent.descend._optimizer)
        with pytest.raises(ValueError, match=r"holds \['metrics'\] already"):
            run.holds(metrics=nn.Linear(1, 1))
        next(agent.steps())
        with pytest.raises(
            ValueError, match=r"the run has begun: hold \['late'\] before its first"
        ):
            run.holds(late=nn.Linear(1, 1))


def test_the_lock_comes_before_anything_is_written(tmp_path):
    with make_run(tmp_path):
        (tmp_path / "metrics.csv").write_text("precious\n")
        with pytest.raises(RunInUseError, match="another process trains in"):
            make_run(tmp_path).__enter__()
    assert (tmp_path / "metrics.csv").read_text() == "precious\n"
    with make_run(tmp_path):
        pass


def test_a_signal_stops_at_a_whole_step_with_a_checkpoint_and_the_run_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    message = rf"stopped at step 4; continue with resume={tmp_path}"
    with pytest.raises(Interrupted, match=message), make_run(tmp_path) as run:
        list(Agent(run).steps(signal_at=4))
    assert signal.getsignal(signal.SIGTERM) is before
    assert [c.name for c in checkpoints(tmp_path)] == ["step_000000004", "step_000000000"]
    with make_run(tmp_path) as run:
        assert list(Agent(run).steps()) == list(range(5, 13))
    with make_run(tmp_path / "whole") as run:
        list(Agent(run).steps())
    torch.testing.assert_close(
        torch.load(tmp_path / "networks.pt"),
        torch.load(tmp_path / "whole" / "networks.pt"),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("stop", [0, 3, 8])
def test_a_run_with_data_goes_on_from_what_it_holds(tmp_path, stop):
    """Stopped as it takes the data in, at a step on them alone, and in the environment."""
    data = TASK.make_env().rollout(20).select(*TRANSITION)
    settings = {"offline_steps": 6, "total_steps": 6 + 12, "eval_interval": 18}
    with make_run(tmp_path / "whole", **settings) as run:
        assert list(Agent(run).steps(data=data)) == list(range(19))
    with pytest.raises(Interrupted), make_run(tmp_path, **settings) as run:
        list(Agent(run).steps(signal_at=stop, data=data))
    at = max(stop, 1)  # a whole step
    assert held_transitions(tmp_path) == 20 + max(0, at - 6)
    with make_run(tmp_path, **settings) as run:
        agent = Agent(run)
        assert list(agent.steps()) == list(range(at + 1, 19)), "the data are not asked for again"
    assert len(agent.buffer) == 20 + 12
    assert torch.equal(agent.buffer[:20]["observation"], data["observation"])
    torch.testing.assert_close(
        torch.load(tmp_path / "networks.pt"),
        torch.load(tmp_path / "whole" / "networks.pt"),
        rtol=0,
        atol=0,
    )


def test_divergence_names_the_limits_unit_and_a_failed_run_how_it_goes_on(tmp_path, capsys):
    message = r"huber_td_error = .*limit 0.01.*divergence_limit \(in units of the value range\)"
    with (
        pytest.raises(DivergenceError, match=message),
        make_run(tmp_path, divergence_limit=1e-2, scaled=True) as run,
    ):
        list(Agent(run).steps())
    said = capsys.readouterr().out
    assert f"resume={tmp_path} continues from its newest checkpoint" in said
    assert len(list(tmp_path.glob("diverged_step_*.pt"))) == 1


def test_rewards_of_any_size_are_within_the_limit(tmp_path):
    """The limit is the value range: 300 a step may be off by 30,000, a CartPole's 1 by 100."""
    with make_run(tmp_path) as run:
        assert run._largest_td_error() == 100
        run._largest_reward = 300.0
        assert run._largest_td_error() == pytest.approx(30_000)
    with make_run(tmp_path / "scaled", scaled=True, divergence_limit=2.0) as run:
        run._largest_reward = 300.0
        assert run._largest_td_error() == 2


def test_resets_that_repeat_step_after_step_stop_the_run(tmp_path):
    settings = {"on_divergence": "reset_agent", "divergence_limit": 1e-9, "scaled": True}
    with (
        pytest.raises(DivergenceError, match="as did each of the 10 agents before it"),
        make_run(tmp_path, **settings) as run,
    ):
        list(Agent(run).steps())
    assert run.step == 11


@pytest.mark.parametrize(
    "name",
    ["plain", "a b", "ünï", "it's", "x=1,y", 'quo"te', "back\\slash", "end\\", "1e3", "(a)"],
)
def test_a_printed_hint_may_be_pasted(name):
    """Through a shell and Hydra's parser it is the folder again."""
    for path in (f"runs/{name}", name):
        (argument,) = shlex.split(resuming(path))
        override = OverridesParser.create().parse_override(argument)
        assert override.key_or_group == "resume"
        assert override.value() == path


def test_checkpoints_of_another_trainer_are_refused(tmp_path):
    with make_run(tmp_path) as run:
        list(Agent(run).steps())
    with make_run(tmp_path) as run:
        agent = Agent(run)
        run.holds(more=nn.Linear(1, 1))
        with pytest.raises(CheckpointError, match=r"of another trainer: \['more'\]"):
            list(agent.steps())
