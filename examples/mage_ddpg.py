"""MAGE-DDPG on Pendulum's true dynamics (arXiv:2004.14309, Algorithm 1 and appendix B.1).

One critic, no target noise, and the real, differentiable environment in place of a learned model:
what error remains is not the model's. With ``loss.lmbda=0`` the critic is trained on its
action-gradient alone, and collapses to one that does not depend on the action (Fig. 5).

python examples/mage_ddpg.py                          # the full version
python examples/mage_ddpg.py loss.lmbda=0             # the degenerate one
python examples/mage_ddpg.py -m +experiment=collapse  # both, five seeds each
"""

from __future__ import annotations

from functools import partial

from run import critic_clip, film, only_pendulum, replay_buffer, script

import torch
from omegaconf import DictConfig
from tensordict.nn import TensorDictSequential

from torchrl_mage import MAGELoss, NetworkSoftUpdate, Normalizer, OraclePendulum
from torchrl_mage.envs import Task
from torchrl_mage.modules import critic, deterministic_actor
from torchrl_mage.objectives import radam
from torchrl_mage.trainers import Minimizer, Run, compiled, exploring, exploring_collector


@script(
    "MAGE-DDPG",
    config_name="mage_ddpg",
    show=("episode_return", "loss_qvalue", "action_gradient"),
    check=only_pendulum,
)
def main(cfg: DictConfig, run: Run, task: Task, device: torch.device) -> float:
    """Trains an agent; returns the final evaluation return."""
    # ---------------------------------------------------------------- environment and networks
    env, eval_env = (task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(2))
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    normalizer = Normalizer(obs_dim, device=device)
    actor = deterministic_actor(
        obs_dim,
        env.action_spec,
        cfg.actor.num_cells,
        soft_bounds=cfg.actor.soft_bounds,
        device=device,
    )
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device)]
    world_model = TensorDictSequential(
        OraclePendulum(),
        normalizer.on(("next", "observation"), ("next", "normalized_observation")),
    )

    # ---------------------------------------------------------------- loss and minimizers
    loss = MAGELoss(
        actor,
        critics,
        world_model,
        action_spec=env.action_spec,
        num_qvalue_nets=1,
        policy_noise=0.0,
        **cfg.loss,
    )
    loss.make_value_estimator(gamma=cfg.discount)
    loss.check(normalizer(env.reset()))
    in_graph = partial(compiled, enabled=cfg.compile, device=device, precision=cfg.precision)
    run.holds(loss=loss, actor=actor, critic=loss.qvalue_network_params, normalizer=normalizer)
    update_critic = Minimizer(
        run,
        "loss_qvalue",
        in_graph(loss.value_loss),
        radam(loss.qvalue_network_params.parameters(), lr=cfg.critic.lr),
        clip=critic_clip(cfg),
        targets=[NetworkSoftUpdate(loss, "qvalue_network", tau=cfg.policy.tau)],
    )
    update_actor = Minimizer(
        run,
        "loss_actor",
        in_graph(loss.actor_loss),
        radam(loss.actor_network_params.parameters(), lr=cfg.actor.lr),
        clip=cfg.actor.grad_clip,
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

    # ---------------------------------------------------------------- Algorithm 1
    for step, transition in run.steps(
        collector, buffer, policy, eval_env, environment=task.name, data=data
    ):
        if len(transition):  # none at an offline step
            buffer.extend(transition)
            normalizer.update(transition["observation"])
        if step >= cfg.warmup_steps:
            sample = normalizer(buffer.sample().select("observation"))
            for states in sample.split(cfg.policy.batch_size):
                update_critic(states)
                update_actor(states)

    film(cfg, run, task, policy)
    return run.evaluation.mean


if __name__ == "__main__":
    main()
