"""Model-free TD3, the baseline: TorchRL's loss with MAGE's networks, data and evaluation.

python examples/td3.py                  # Pendulum-v1
python examples/td3.py env=halfcheetah  # another task, with its sizes
python examples/td3.py --cfg job        # every setting
"""

from __future__ import annotations

from functools import partial

from run import film, replay_buffer, script

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torchrl.objectives import TD3Loss

from torchrl_mage import NetworkSoftUpdate, Normalizer
from torchrl_mage.envs import Task
from torchrl_mage.modules import critic, deterministic_actor
from torchrl_mage.trainers import Minimizer, Run, compiled, exploring, exploring_collector


@script(
    "TD3",
    config_name="td3",
    show=("episode_return", "loss_qvalue", "loss_actor"),
)
def main(cfg: DictConfig, run: Run, task: Task, device: torch.device) -> float:
    """Trains an agent; returns the final evaluation return."""
    # ---------------------------------------------------------------- environment and networks
    env, eval_env = (task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(2))
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    normalizer = Normalizer(obs_dim, device=device)
    normalize = TensorDictSequential(
        normalizer, normalizer.on(("next", "observation"), ("next", "normalized_observation"))
    )
    actor = deterministic_actor(
        obs_dim,
        env.action_spec,
        cfg.actor.num_cells,
        soft_bounds=cfg.actor.soft_bounds,
        device=device,
    )
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device) for _ in range(2)]

    # ---------------------------------------------------------------- loss and minimizers
    loss = TD3Loss(actor, critics, action_spec=env.action_spec, **cfg.loss)
    loss.make_value_estimator(gamma=cfg.discount)

    def value_loss(batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        """TorchRL's, with the TD error itself."""
        value, found = loss.value_loss(batch)
        kept = {name: found[name] for name in ("pred_value", "target_value")}
        return value, kept | {"td_error": (kept["target_value"] - kept["pred_value"]).abs()}

    in_graph = partial(compiled, enabled=cfg.compile, device=device, precision=cfg.precision)
    run.holds(loss=loss, actor=actor, critics=loss.qvalue_network_params, normalizer=normalizer)
    update_critics = Minimizer(
        run,
        "loss_qvalue",
        in_graph(value_loss),
        torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.critic.lr),
        targets=[NetworkSoftUpdate(loss, "qvalue_network", tau=cfg.policy.tau)],
    )
    update_actor = Minimizer(
        run,
        "loss_actor",
        in_graph(loss.actor_loss),
        torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.actor.lr),
        targets=[NetworkSoftUpdate(loss, "actor_network", tau=cfg.policy.tau)],
    )

    # ---------------------------------------------------------------- data
    policy = TensorDictSequential(normalizer, actor)
    collector = exploring_collector(
        env,
        exploring(policy, env, noise=cfg.exploration_noise),
        random_steps=cfg.warmup_steps,
        total_steps=cfg.total_steps,
        seed=cfg.seed,
    )
    buffer, data = replay_buffer(cfg, run, task, device)

    # ---------------------------------------------------------------- TD3
    for step, transition in run.steps(
        collector, buffer, policy, eval_env, environment=task.name, data=data
    ):
        if len(transition):  # none at an offline step
            buffer.extend(transition)
            normalizer.update(transition["observation"])
        if step >= cfg.warmup_steps:
            for batch in normalize(buffer.sample()).split(cfg.policy.batch_size):
                update_critics(batch)
                if update_critics.count % cfg.policy.actor_delay == 0:
                    update_actor(batch)

    film(cfg, run, task, policy)
    return run.evaluation.mean


if __name__ == "__main__":
    main()
