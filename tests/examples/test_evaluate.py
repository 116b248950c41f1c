"""The script that judges, shows and ships what a run has trained."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from examples.test_mage_td3 import TINY
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_mage import LoadError, OraclePendulum, load_run, ship_run
from torchrl_mage.trainers import evaluate, write_film

AGENTS = sorted(
    file.parent for file in (Path(__file__).parents[2] / "examples/results/agents").rglob("*.yaml")
)
TRAINED = {
    "mage_td3": ("mage_td3", ("critic.units=range",)),
    "mage_sac": ("mage_sac", ("env=cartpole",)),
    "td3": ("td3", ("env=cartpole",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluating")


@pytest.fixture
def trained(launch, folder):
    """A tiny run, trained once."""

    def call(name):
        script, overrides = TRAINED[name]
        if not (folder / name).exists():
            tiny = [x for x in TINY if script != "td3" or "world_model" not in x]
            launch(script, f"hydra.run.dir={folder / name}", *tiny, *overrides, cwd=folder)
        return folder / name

    return call


@pytest.fixture
def judge(launch, tmp_path):
    """Runs the script; returns what it printed, or refused to do."""

    def call(*arguments, refused=False):
        arguments = ["--episodes", "2", *map(str, arguments)]
        if not refused:
            return launch("evaluate", *arguments, cwd=tmp_path).out
        with pytest.raises(SystemExit) as error:
            launch("evaluate", *arguments, cwd=tmp_path)
        return error.value.code

    return call


def returns(run, seeds, exploration=ExplorationType.DETERMINISTIC):
    """The sum of the rewards of an episode from each seed."""
    env, found = run.task.make_env(), []
    torch.manual_seed(seeds[0])
    for seed in seeds:
        env.set_seed(seed)
        with set_exploration_type(exploration), torch.no_grad():
            found.append(env.rollout(1000, run.policy)["next", "reward"].sum().item())
    return np.array(found)


def test_it_prints_what_the_episodes_return(trained, judge):
    paths = [trained("mage_sac"), trained("td3")]
    lines = judge(*paths, "--seed", 5).splitlines()
    for path, line in zip(paths, lines, strict=True):
        found = returns(load_run(path), [5, 6])
        low, high = sorted(found)  # of two episodes a bootstrap's extremes are they
        assert line == (
            f"{path}: torchrl_mage/ContinuousCartPole-v1, {path.name}, 2 episodes: mean "
            f"{found.mean():.2f} [{low:.2f}, {high:.2f}], std {found.std():.2f}, minimum {low:.2f}"
        )


def test_drawn_actions_and_the_best_networks(trained, judge):
    path = trained("mage_sac")
    out = judge(path, "--stochastic", "--best")
    run = load_run(path, best=True)
    found = returns(run, [0, 1], ExplorationType.RANDOM)
    assert f"mean {found.mean():.2f} [" in out
    assert not np.array_equal(found, returns(run, [0, 1]))
    refused = judge(trained("td3"), "--stochastic", refused=True)
    assert refused.endswith("its policy is deterministic; leave --stochastic out.")


def test_pictures(trained, judge, tmp_path):
    """Each option writes its figure; the steps are cut to the episode's."""
    path = trained("mage_sac")
    judge(path, "--imagine", "i.png", "--steps", 1000, "--critic", "c.png", "--features", 2, 3)
    for file in ("i.png", "c.png"):
        assert (tmp_path / file).read_bytes()[1:4] == b"PNG"
    refused = judge(trained("td3"), "--imagine", "j.png", refused=True)
    assert "has no learned world model to imagine with" in refused
    refused = judge(path, "--critic", "j.png", "--features", 2, 4, refused=True)
    assert refused == (
        "--features 2 4: torchrl_mage/ContinuousCartPole-v1 has the features 0 to 3; choose two."
    )
    assert not (tmp_path / "j.png").exists()


def test_the_imagined_lines_are_the_models(trained):
    import pictures

    run = load_run(trained("mage_td3"))
    episode = evaluate(run.task.make_env(), run.policy, episodes=1, seed=0).episodes[0]
    figure = pictures.imagination(run, episode, 7)
    for feature, axes in enumerate(figure.axes[:3]):
        real = axes.lines[-1].get_ydata()
        np.testing.assert_array_equal(real, episode["next", "observation"][:7, feature])
        first = [line.get_ydata()[0] for line in axes.lines[:3]]
        mean, _ = run.world_model[0].predict(episode["observation"][0], episode["action"][0])
        np.testing.assert_allclose(first, mean[:, feature], rtol=1e-5)


def test_the_maps_are_the_critics_and_pendulums(trained):
    """At one point of the map: Q and its finite difference; the truth in the critics' unit."""
    import pictures

    run = load_run(trained("mage_td3"))
    figure = pictures.critic_map(run, torch.zeros(1, 3), points=5)
    found = [axes.collections[0].get_array().reshape(5, 5)[2, 1] for axes in figure.axes[:4]]
    state = torch.tensor([0.0, -1.0, 0.0])  # angle -pi / 2, speed 0
    action = run.policy(TensorDict(observation=state))["action"]

    def lowest(action):
        td = TensorDict(observation=state, action=action)
        return min(critic(td.clone())["state_action_value"].item() for critic in run.critics)

    assert found[0] == pytest.approx(lowest(action), rel=1e-4, abs=1e-6)
    slope = (lowest(action + 0.01) - lowest(action - 0.01)) / 0.02
    assert found[1] == pytest.approx(slope, rel=0.05, abs=1e-4)
    (scaler,) = (part for part in run.world_model if hasattr(part, "value_range"))
    total, td = 0.0, TensorDict(observation=state)
    for t in range(pictures.HORIZON):
        td = OraclePendulum()(run.policy(td))
        total += 0.99**t * ((td["next", "reward"] - scaler.center) / scaler.value_range).item()
        td = td["next"].select("observation")
    assert found[2] == pytest.approx(total, rel=1e-2)


needs_video = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pygame", "imageio_ffmpeg"))), reason="extra video"
)


@needs_video
def test_shown_episodes_are_the_same(trained, judge, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    path = trained("mage_sac")
    assert judge(path, "--render") == judge(path)


def test_a_video_without_its_extra_is_refused(trained, judge, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    refused = judge(trained("td3"), "--video", "film.mp4", refused=True)
    assert refused.startswith("a video needs imageio.v2: pip install")


@needs_video
def test_a_video(trained, judge, tmp_path):
    import imageio.v2 as imageio

    path = trained("mage_sac")
    judge(path, "--video", "film.mp4")
    run = load_run(path)
    length = evaluate(run.task.make_env(), run.policy, episodes=1, seed=0).lengths[0]
    assert imageio.get_reader(tmp_path / "film.mp4").count_frames() == length


@needs_video
def test_an_imagined_film(trained, judge, tmp_path):
    """Both halves begin alike, and the left one is the real episode's."""
    import imageio.v2 as imageio

    path = trained("mage_td3")
    judge(path, "--imagine", "film.gif", "--steps", 7)
    frames = [np.asarray(frame)[..., :3] for frame in imageio.get_reader(tmp_path / "film.gif")]
    assert len(frames) == 4  # of 7 at 30 a second, every other
    run = load_run(path)
    env = run.task.make_env(render_mode="rgb_array")
    evaluate(env, run.policy, episodes=1, seed=0, max_steps=7)
    left, right = np.split(frames[-1].astype(float), 2, axis=1)
    # A GIF is made small: each pixel is one of the film's.
    env._env.unwrapped.last_u = None  # the arrow of the torque, which an observation has not
    assert np.abs(left - env._env.render()[::3, ::3]).mean() < 3
    assert np.abs(left - right).mean() > 0


@needs_video
def test_a_film_of_what_cannot_be_drawn_is_refused(trained, monkeypatch, tmp_path):
    import pictures

    run = load_run(trained("mage_td3"))
    run = dataclasses.replace(run, task=dataclasses.replace(run.task, pose=None))
    with pytest.raises(LoadError, match="does not tell how to draw it: --imagine FILE.png plots"):
        pictures.imagined_film(run, TensorDict(), 5, tmp_path / "film.mp4")


@needs_video
@pytest.mark.parametrize(("fps", "frames"), [(10, 20), (20, 20), (25, 10), (50, 7), (125, 3)])
def test_a_gif_is_small(tmp_path, fps, frames):
    """At most 20 frames a second, of the length of the film."""
    import imageio.v2 as imageio

    film = [np.full((300, 500, 3), 10 * i, np.uint8) for i in range(20)]
    write_film(tmp_path / "film.gif", film, fps=fps)
    shown = list(imageio.get_reader(tmp_path / "film.gif"))
    assert len(shown) == frames
    assert shown[0].shape[:2] == (150, 250)


@pytest.mark.parametrize("best", [False, True])
def test_what_is_shipped_scores_what_it_says(trained, judge, tmp_path, best):
    judge(trained("mage_sac"), "--ship", tmp_path / "agent", *(["--best"] if best else []))
    agent = tmp_path / "agent"
    assert sorted(f.name for f in agent.iterdir()) == ["config.yaml", "networks.pt", "scores.json"]
    scores = json.loads((agent / "scores.json").read_text())
    assert (scores["best"], scores["stochastic"], scores["seed"]) == (best, False, 0)
    assert returns(load_run(agent), [0, 1]).tolist() == scores["returns"]
    saved, shipped = (load_run(p, best=b) for p, b in ((trained("mage_sac"), best), (agent, False)))
    for part in ("policy", "world_model"):
        states = [getattr(run, part).state_dict() for run in (saved, shipped)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    assert "holds a run already" in judge(trained("td3"), "--ship", agent, refused=True)


def test_what_is_too_large_goes_without_its_world_model(trained, tmp_path):
    path = trained("mage_td3")
    size = (path / "networks.pt").stat().st_size
    assert not ship_run(path, tmp_path / "agent", limit=size - 3000)
    agent = load_run(tmp_path / "agent")
    torch.testing.assert_close(agent.policy.state_dict(), load_run(path).policy.state_dict())
    assert hasattr(agent.world_model[1], "value_range"), "the critics' unit stays known"
    with pytest.raises(LoadError, match="was shipped so: it has no world model"):
        agent.world_model(TensorDict(observation=torch.zeros(3)))
    with pytest.raises(LoadError, match=r"policy and critics .* take \d+ bytes; 10 are allowed"):
        ship_run(path, tmp_path / "other", limit=10)
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_stopped_is_shipped_from_its_checkpoint(trained, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(trained("mage_td3"), path)
    (path / "networks.pt").unlink()
    assert ship_run(path, tmp_path / "agent")
    networks = torch.load(tmp_path / "agent" / "networks.pt", weights_only=True)
    assert set(networks) == {"actor", "critics", "world_model", "normalizer", "reward_scaler"}


def test_what_cannot_be_evaluated_is_one_line(trained, judge, tmp_path):
    """The good run before it is not evaluated first."""
    good, bad = trained("td3"), tmp_path / "bad"
    refused = judge(good, bad, refused=True)
    assert refused.startswith(f"{bad} holds no run: it has no config.yaml. Name the folder")
    shutil.copytree(good, bad)
    settings = yaml.safe_load((bad / "config.yaml").read_text())
    (bad / "config.yaml").write_text(yaml.safe_dump({**settings, "env": {"id": "No-v0"}}))
    assert f"{bad} cannot be loaded here: 'No-v0' is neither a task" in judge(bad, refused=True)
    for text in ("a: [", b"\xff\xfe\x00\xff"):
        (bad / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        assert judge(bad, refused=True).startswith(f"{bad / 'config.yaml'} is damaged")
    (bad / "config.yaml").write_text("just words")
    assert f"{bad} is the run of another version" in judge(bad, refused=True)


WRONG = {
    "--critic takes one DIR, got 2": ("b", "--critic", "c.png"),
    "--render needs a screen": ("--render",),
    "must be at least 1, got 0": ("--steps", "0"),
    "x.txt must end in .mp4": ("--video", "x.txt"),
    "there is no folder nowhere": ("--imagine", "nowhere/x.png"),
}


@pytest.mark.parametrize(("said", "arguments"), WRONG.items())
def test_wrong_options_are_named(judge, capfd, monkeypatch, said, arguments):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert judge("a", *arguments, refused=True) == 2
    assert said in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS, ids=lambda path: path.name)
def test_shipped_agents_score_what_they_say(agent):
    """Other episodes: the means differ by no more than three standard errors of the difference."""
    scores = json.loads((agent / "scores.json").read_text())
    assert (agent / "networks.pt").stat().st_size < 10**6
    count = scores["episodes"]
    kind = ExplorationType.RANDOM if scores["stochastic"] else ExplorationType.DETERMINISTIC
    first = scores["seed"] + count
    found = returns(load_run(agent), range(first, first + count), kind)
    error = np.sqrt((found.var(ddof=1) + np.var(scores["returns"], ddof=1)) / count)
    assert abs(found.mean() - scores["mean"]) <= 3 * error
