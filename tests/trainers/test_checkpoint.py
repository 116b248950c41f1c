"""Checkpoints: whole or absent, no code in them, damage noticed, and a mid-episode state exact."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import signal
import stat
from contextlib import contextmanager

import pytest
import torch
import yaml
from tensordict import TensorDict
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_mage import get_task
from torchrl_mage.envs import RecordedEnv
from torchrl_mage.trainers import (
    Checkpointer,
    CheckpointError,
    CollectorState,
    RandomState,
    RunInUseError,
    RunLock,
    checkpoints,
    open_run,
)
from torchrl_mage.trainers.folder import held_folder

TASKS = [
    "Pendulum-v1",
    "torchrl_mage/ContinuousCartPole-v1",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Swimmer-v5",
    "Pusher-v5",
]


class Count:
    step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


class Run:
    """A layer, a counter and a buffer of numbered transitions."""

    def __init__(self, path, keep=2):
        self.layer = nn.Linear(2, 1)
        self.count = Count()
        self.buffer = ReplayBuffer(storage=LazyTensorStorage(100))
        self.checkpointer = Checkpointer(
            path, {"layer": self.layer, "count": self.count}, self.buffer, keep=keep
        )

    def advance(self, step):
        new = torch.arange(self.count.step, step)
        self.buffer.extend(TensorDict({"i": new, ("next", "i"): new + 1}, [len(new)]))
        nn.init.constant_(self.layer.weight, step)
        self.count.step = step
        return self

    def save(self):
        self.checkpointer.save(self.count.step)
        return self

    def at(self, step):
        """Whether all of it is as it was at ``step``."""
        assert self.count.step == step
        assert (self.layer.weight == step).all()
        assert self.buffer[:]["i"].tolist() == list(range(step))
        assert self.buffer[:]["next", "i"].tolist() == list(range(1, step + 1))
        return True


def test_round_trip_and_rotation(tmp_path):
    run = Run(tmp_path)
    for step in (3, 7, 8):
        run.advance(step).save()
    assert [c.name for c in checkpoints(tmp_path)] == ["step_000000008", "step_000000007"]
    other = Run(tmp_path)
    assert other.checkpointer.restore() == 8
    assert other.at(8)
    other.advance(12).save()
    assert Run(tmp_path).checkpointer.restore() == 12
    assert Run(tmp_path / "empty").checkpointer.restore() is None


def test_a_checkpoint_writes_only_what_is_new(tmp_path):
    run = Run(tmp_path)
    run.advance(50).save()
    pieces = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints/buffer").iterdir()}
    run.advance(53).save()
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints/buffer").iterdir()}
    assert {name: after[name] for name in pieces} == pieces
    assert set(after) - set(pieces) == {"000000050_000000053.pt"}


def test_a_checkpoint_does_not_grow_with_the_storage(tmp_path):
    buffer = ReplayBuffer(storage=LazyTensorStorage(100_000))
    checkpointer = Checkpointer(tmp_path, {"count": Count()}, buffer)
    buffer.extend(TensorDict({"observation": torch.zeros(3, 20)}, [3]))
    checkpointer.save(3)
    (piece,) = (tmp_path / "checkpoints" / "buffer").iterdir()
    assert piece.stat().st_size < 3_000, "3 x 20 floats and a file's header"


def test_what_another_device_wrote_is_read_here(tmp_path, monkeypatch):
    """As a GPU marks its tensors, on a machine without one."""
    run = Run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        run.advance(3).save()
    again = Run(tmp_path)
    assert again.checkpointer.restore() == 3
    assert again.at(3)


def test_generators_of_gpus_that_are_not_here_are_left_out_with_a_warning():
    state = RandomState().state_dict()
    drawn = torch.rand(3)
    more = torch.cuda.device_count() + 1
    saved = {**state, "torch_cuda": [torch.get_rng_state()] * more}
    with pytest.warns(UserWarning, match=f"generators of {more} GPUs, this machine has"):
        RandomState().load_state_dict(saved)
    assert torch.equal(torch.rand(3), drawn)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def replace(file):
    torch.save({"something": torch.ones(3)}, file)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, replace, lambda file: file.unlink()])
@pytest.mark.parametrize(
    "member", ["state.pt", "manifest.json", "../buffer/000000004_000000006.pt"]
)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, member, damage):
    if member == "manifest.json" and damage is flip_a_bit:
        damage = truncate  # a bit of a digest or of a step: covered by the members it describes
    Run(tmp_path).advance(4).save().advance(6).save()
    damage(tmp_path / "checkpoints" / "step_000000006" / member)
    run = Run(tmp_path)
    assert run.checkpointer.restore() == 4
    assert run.at(4)
    run.advance(6).save()  # goes on, over what was damaged
    assert Run(tmp_path).checkpointer.restore() == 6


def test_all_damaged_is_an_error(tmp_path):
    Run(tmp_path).advance(4).save().advance(6).save()
    for folder in checkpoints(tmp_path):
        truncate(folder / "state.pt")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints .* is whole"):
        Run(tmp_path).checkpointer.restore()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("member", ["state.pt", "../buffer/000000000_000000004.pt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("digest_too", [True, False])
def test_no_code_is_run(tmp_path, member, digest_too, zipped):
    """A pickle that would create a file, with its digest in the manifest as an attacker would."""
    Run(tmp_path).advance(4).save()
    folder = tmp_path / "checkpoints" / "step_000000004"
    if zipped:
        torch.save({"layer": Malicious(tmp_path / "owned")}, folder / member)
    else:
        (folder / member).write_bytes(pickle.dumps(Malicious(tmp_path / "owned"), protocol=2))
    trap = (folder / member).read_bytes()
    if digest_too:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"][member.removeprefix("../")] = hashlib.sha256(trap).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        Run(tmp_path).checkpointer.restore()
    assert not (tmp_path / "owned").exists()


@contextmanager
def files_of_at_most(size):
    """The kernel refuses to write more to a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_pieces_of_a_save_that_failed_are_removed_at_the_next(tmp_path):
    """The piece fits on the disk, the state does not; the run goes on from what is whole."""
    run = Run(tmp_path).advance(4).save().advance(6)
    run.layer.weight.data = torch.ones(2, 10_000)
    with files_of_at_most(20_000), pytest.raises(CheckpointError, match="step 6 could not be"):
        run.save()
    buffer = tmp_path / "checkpoints" / "buffer"
    (buffer / "000000006_000000009.pt.writing").touch()  # of a power cut
    assert (buffer / "000000004_000000006.pt").exists()
    run = Run(tmp_path)
    assert run.checkpointer.restore() == 4
    run.advance(7).save()
    pieces = ["000000000_000000004.pt", "000000004_000000007.pt"]
    assert sorted(piece.name for piece in buffer.iterdir()) == pieces
    assert Run(tmp_path).checkpointer.restore() == 7
    assert run.at(7)


def test_a_piece_that_an_older_or_a_damaged_checkpoint_lists_stays(tmp_path):
    run = Run(tmp_path).advance(4).save().advance(6).save()
    truncate(tmp_path / "checkpoints" / "step_000000006" / "state.pt")
    run = Run(tmp_path)
    assert run.checkpointer.restore() == 4
    run.advance(7).save()
    assert (tmp_path / "checkpoints" / "damaged_step_000000006").exists()
    buffer = tmp_path / "checkpoints" / "buffer"
    assert sorted(piece.name for piece in buffer.iterdir()) == [
        "000000000_000000004.pt",
        "000000004_000000006.pt",
        "000000004_000000007.pt",
    ]


def test_a_piece_that_was_not_flushed_is_not_repeated(tmp_path, monkeypatch):
    """The disk fails between a piece and its folder's entry; the same process saves again."""
    run = Run(tmp_path).advance(4).save().advance(6)
    fsync = os.fsync

    def fail_on_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("input/output error")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_on_folders)
        with pytest.raises(CheckpointError, match="input/output error"):
            run.save()
    run.advance(8).save()
    other = Run(tmp_path)
    assert other.checkpointer.restore() == 8
    assert other.at(8)


def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path):
    run = Run(tmp_path).advance(4).save().advance(6)
    message = r"step 6 could not be written.*resume="
    with files_of_at_most(100), pytest.raises(CheckpointError, match=message):
        run.save()
    other = Run(tmp_path)
    assert other.checkpointer.restore() == 4
    assert other.at(4)
    run.save()
    assert Run(tmp_path).checkpointer.restore() == 6


def test_a_folder_that_cannot_be_written_is_noticed_at_the_start(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written.*Free space"):
        Run(tmp_path / "file").checkpointer.restore_or_start()
    with pytest.raises(CheckpointError, match="run folder .* cannot be written: .*hydra.run.dir"):
        held_folder(tmp_path / "file" / "run").__enter__()


def test_what_cannot_be_removed_is_said_and_the_checkpoint_is_whole(tmp_path, monkeypatch):
    """A file that another user holds, say, on a network disk."""
    run = Run(tmp_path).advance(4).save().advance(6).save()

    def busy(path, *args, **kwargs):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        with pytest.warns(UserWarning, match="step 8 is whole, but what it replaces stays"):
            run.advance(8).save()
    assert Run(tmp_path).checkpointer.restore() == 8
    run.advance(10).save()
    assert [c.name for c in checkpoints(tmp_path)] == ["step_000000010", "step_000000008"]


def test_a_run_starts_with_a_checkpoint_and_goes_on_from_it(tmp_path):
    assert Run(tmp_path).checkpointer.restore_or_start() == 0
    run = Run(tmp_path)
    nn.init.constant_(run.layer.weight, 9)
    assert run.checkpointer.restore_or_start() == 0
    assert not (run.layer.weight == 9).any()
    run.advance(4).save()
    again = Run(tmp_path)
    assert again.checkpointer.restore_or_start() == 4
    assert again.at(4)


def test_another_trainers_checkpoint_is_refused(tmp_path):
    Run(tmp_path).advance(4).save()
    run = Run(tmp_path)
    checkpointer = Checkpointer(tmp_path, {"layer": run.layer}, run.buffer)
    with pytest.raises(CheckpointError, match=r"another trainer: \['count'\]"):
        checkpointer.restore()
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpointer(tmp_path, {}, run.buffer, keep=0)


# ---------------------------------------------------------------- environment and collector


def recorded(env):
    layer = env._env
    assert isinstance(layer, RecordedEnv)
    return layer


@pytest.mark.parametrize("name", TASKS)
def test_an_environment_goes_on_as_it_was(name):
    env = get_task(name).make_env()
    env.set_seed(3)
    start = env.rollout(17, break_when_any_done=False)[-1]["next"]
    start = env.reset() if start["done"].any() else start.select("observation", "done")
    state = recorded(env).episode()
    torch.manual_seed(1)
    kwargs = {"auto_reset": False, "break_when_any_done": False}
    expected = env.rollout(120, tensordict=start.clone(), **kwargs)
    other = get_task(name).make_env()
    other.set_seed(99)
    other.rollout(5)
    recorded(other).replay(state)
    torch.manual_seed(1)
    assert (other.rollout(120, tensordict=start.clone(), **kwargs) == expected).all()


def test_a_collector_goes_on_in_its_episode():
    def make(seed):
        env = get_task("torchrl_mage/ContinuousCartPole-v1").make_env()
        env.set_seed(seed)
        return Collector(
            env,
            None,
            frames_per_batch=1,
            total_frames=60,
            init_random_frames=25,
            auto_register_policy_transforms=False,
        )

    collector = make(0)
    batches = []
    for batch in collector:
        batches.append(batch.clone())
        if len(batches) == 20:
            state, generator = CollectorState(collector).state_dict(), torch.get_rng_state()
    assert torch.stack(batches)["next", "done"].any()
    other = make(5)
    CollectorState(other).load_state_dict(state)
    torch.set_rng_state(generator)
    rest = [batch.clone() for batch in other]
    assert len(rest) == 40
    assert (torch.stack(rest) == torch.stack(batches[20:])).all()


def test_another_environments_state_is_refused():
    state = recorded(get_task("Pendulum-v1").make_env()).episode()
    with pytest.raises(ValueError, match=r"state is that of Pendulum-v1, the environment is Hop"):
        recorded(get_task("Hopper-v5").make_env()).replay(state)


# ---------------------------------------------------------------- which run


def begun(path, settings):
    """A new run's settings and folder, which it has held for a moment."""
    settings, path = open_run(path, settings, resume=None, overridden=[])
    with held_folder(path, settings):
        pass
    return settings, path


def test_of_two_that_start_at_once_the_settings_are_those_of_the_one_that_trains(tmp_path):
    one, other = ({"seed": seed, "loss": {"lmbda": 0.2}} for seed in (1, 2))
    for settings in (one, other):  # both find the folder empty
        open_run(tmp_path, settings, resume=None, overridden=[])
    with held_folder(tmp_path, one):
        with pytest.raises(RunInUseError, match="another process trains in"):
            held_folder(tmp_path, other).__enter__()
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == one
        Run(tmp_path).advance(4).save()
    with pytest.raises(CheckpointError, match="began meanwhile: seed: 1 -> 2. Choose another"):
        held_folder(tmp_path, other).__enter__()
    with held_folder(tmp_path, one):
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == one


def test_which_run_is_continued(tmp_path):
    settings = {"seed": 1, "loss": {"lmbda": 0.2}, "resume": None}
    fresh = tmp_path / "new"
    first, path = begun(tmp_path / "old", settings)
    assert (first, path) == (settings, tmp_path / "old")
    auto = {**settings, "resume": "auto"}
    assert open_run(fresh, auto, resume="auto", overridden=[])[1] == fresh, "no checkpoint yet"
    Run(tmp_path / "old").advance(4).save()
    assert open_run(fresh, auto, resume="auto", overridden=[])[1] == tmp_path / "old"
    other = {**auto, "seed": 2}
    assert open_run(fresh, other, resume="auto", overridden=["seed"])[1] == fresh
    (tmp_path / "old" / "networks.pt").touch()
    assert open_run(fresh, auto, resume="auto", overridden=[])[1] == fresh, "it is finished"


def test_two_processes_do_not_train_one_run(tmp_path):
    settings = {"seed": 1}
    begun(tmp_path / "old", settings)
    Run(tmp_path / "old").advance(4).save()

    with RunLock(tmp_path / "old"):
        with pytest.raises(RunInUseError, match="another process trains in .*old: wait for it"):
            RunLock(tmp_path / "old").__enter__()
        new = open_run(tmp_path / "new", settings, resume="auto", overridden=[])[1]
    assert new == tmp_path / "new", "auto lets a run that is trained alone"
    assert open_run(tmp_path / "x", settings, resume="auto", overridden=[])[1] == (tmp_path / "old")


def test_a_new_run_does_not_start_over_another(tmp_path):
    Run(tmp_path).advance(4).save()
    for resume in (None, "auto"):
        with pytest.raises(CheckpointError, match="holds a run already: continue it with resume="):
            open_run(tmp_path, {"seed": 0}, resume=resume, overridden=[])


def test_a_named_run_may_be_made_longer_not_shorter(tmp_path):
    def resumed(*overridden, **settings):
        wanted = {"seed": 0, "total_steps": 9} | settings
        found, path = open_run(tmp_path, wanted, resume=str(tmp_path), overridden=overridden)
        with held_folder(path, found):
            return found

    first = {"seed": 1, "total_steps": 4}
    with held_folder(tmp_path, first):
        Run(tmp_path).advance(4).save()
    (tmp_path / "networks.pt").touch()
    assert resumed("resume") == first, "a longer default is none of its settings"
    assert (tmp_path / "networks.pt").exists()
    for wrong in ({"total_steps": 3}, {"total_steps": 6, "seed": 2}):
        with pytest.raises(CheckpointError, match=r"with other settings.*total_steps may be raise"):
            resumed(*wrong, **wrong)
    assert resumed("total_steps=6", total_steps=6) == {"seed": 1, "total_steps": 6}
    assert not (tmp_path / "networks.pt").exists(), "it has no end yet"
    assert resumed("resume") == {"seed": 1, "total_steps": 6}
    with RunLock(tmp_path), pytest.raises(RunInUseError):
        resumed("total_steps=8", total_steps=8)


def test_a_named_run_keeps_its_settings(tmp_path):
    old = tmp_path / "old"
    begun(old, {"seed": 1, "loss": {"lmbda": 0.2}})
    with pytest.raises(CheckpointError, match="no checkpoint of a run in"):
        open_run(old, {"seed": 0}, resume=str(old), overridden=[])
    Run(old).advance(4).save()
    default = {"seed": 0, "loss": {"lmbda": 0.05}}
    settings, path = open_run(old, default, resume=str(old), overridden=["resume"])
    assert (settings["seed"], path) == (1, old)
    message = r"other settings: loss.lmbda: 0.2 -> 0.05\. Leave them out"
    with pytest.raises(CheckpointError, match=message):
        open_run(old, default, resume=str(old), overridden=["resume", "loss.lmbda"])
    forced = ["resume=old", "++loss.lmbda=0.05"]
    with pytest.raises(CheckpointError, match=message):
        open_run(old, default, resume=str(old), overridden=forced)
    newer = {**default, "loss": {"lmbda": 0.05, "clip": 1.0}, "logger": "csv"}
    with pytest.raises(CheckpointError, match=r"config.yaml lacks loss.clip, logger\. Add them"):
        open_run(old, newer, resume=str(old), overridden=["resume"])
    experiment = ["resume", "capacity"]  # the name of no setting: all of them are compared
    with pytest.raises(CheckpointError, match="other settings: seed: 1 -> 0; loss.lmbda"):
        open_run(old, default, resume=str(old), overridden=experiment)
    sac = {"script": "mage_sac", "seed": 0}
    begun(tmp_path / "sac", sac)
    Run(tmp_path / "sac").advance(4).save()
    with pytest.raises(CheckpointError, match="script mage_sac, not of td3: continue it with"):
        open_run(
            tmp_path / "sac",
            {"script": "td3", "seed": 0},
            resume=str(tmp_path / "sac"),
            overridden=["resume"],
        )
