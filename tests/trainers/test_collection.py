"""How transitions are collected."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule

from torchrl_mage.envs import get_task
from torchrl_mage.trainers import exploring, exploring_collector


@pytest.mark.parametrize("every", [2, 3])
def test_every_so_many_th_episode_goes_without_exploration(every):
    """Episodes of five steps, the first one random: which are those of the policy alone?"""
    env = get_task("Pendulum-v1").make_env(max_episode_steps=5)
    policy = TensorDictModule(lambda s: s[..., :1].sin(), ["observation"], ["action"])
    collector = exploring_collector(
        env,
        exploring(policy, env, noise=0.3),
        random_steps=5,
        total_steps=35,
        seed=0,
        greedy_every=every,
    )
    data = torch.cat([batch.clone() for batch in collector])
    collector.shutdown()
    alone = (data["action"] == policy(data.select("observation"))["action"]).squeeze(-1)
    episodes = [alone[data["collector", "traj_ids"] == k] for k in range(7)]
    assert [len(episode) for episode in episodes] == [5] * 7
    greedy = [k for k, episode in enumerate(episodes) if episode.all()]
    assert greedy == list(range(every - 1, 7, every))
    assert not torch.cat([episodes[k] for k in range(7) if k not in greedy]).any()


def test_that_none_would_explore_is_named():
    env = get_task("Pendulum-v1").make_env()
    policy = TensorDictModule(lambda s: s[..., :1], ["observation"], ["action"])
    with pytest.raises(ValueError, match="every must be at least 2, as the others explore, got 1"):
        exploring_collector(env, policy, random_steps=1, total_steps=1, seed=0, greedy_every=1)
