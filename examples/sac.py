"""Model-free SAC, the baseline: TorchRL's loss at MAGE-SAC's data and evaluation.

python examples/sac.py                  # Pendulum-v1
python examples/sac.py env=halfcheetah  # another task, with its sizes
python examples/sac.py --cfg job        # every setting
"""

from __future__ import annotations

from functools import partial

from run import film, replay_buffer, script

import torch
from omegaconf import DictConfig
from tensordict.nn import TensorDictSequential
from torchrl.objectives import SACLoss

from torchrl_mage import NetworkSoftUpdate, Normalizer
from torchrl_mage.envs import Task
from torchrl_mage.modules import critic, stochastic_actor
from torchrl_mage.trainers import Minimizer, Run, compiled, exploring, exploring_collector


@script("SAC", config_name="sac", show=("episode_return", "loss_qvalue", "alpha"))
def main(cfg: DictConfig, run: Run, task: Task, device: torch.device) -> float:
    """Trains an agent; returns the final evaluation return."""
    # ---------------------------------------------------------------- environment and networks
    env, eval_env = (task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(2))
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    normalizer = Normalizer(obs_dim, device=device)
    normalize = TensorDictSequential(
        normalizer, normalizer.on(("next", "observation"), ("next", "normalized_observation"))
    )
    actor = stochastic_actor(obs_dim, env.action_spec, cfg.actor.num_cells, device=device)
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device) for _ in range(2)]

    # ---------------------------------------------------------------- loss and minimizers
    loss = SACLoss(actor, critics, action_spec=env.action_spec, **cfg.loss)
    loss.make_value_estimator(gamma=cfg.discount)

    in_graph = partial(compiled, enabled=cfg.compile, device=device, precision=cfg.precision)
    run.holds(loss=loss, actor=actor, critics=loss.qvalue_network_params, normalizer=normalizer)
    update_critics = Minimizer(
        run,
        "loss_qvalue",
        in_graph(loss.qvalue_v2_loss),
        torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.critic.lr),
        targets=[NetworkSoftUpdate(loss, "qvalue_network", tau=cfg.policy.tau)],
    )
    update_actor = Minimizer(
        run,
        "loss_actor",
        in_graph(loss.actor_loss),
        torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.actor.lr),
    )
    update_temperature = Minimizer(
        run,
        "loss_alpha",
        lambda batch: (loss.alpha_loss(batch["log_prob"]).mean(), {}),
        torch.optim.Adam([loss.log_alpha], lr=cfg.alpha.lr),
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

    # ---------------------------------------------------------------- SAC
    for step, transition in run.steps(
        collector, buffer, policy, eval_env, environment=task.name, data=data
    ):
        if len(transition):  # none at an offline step
            buffer.extend(transition)
            normalizer.update(transition["observation"])
        if step >= cfg.warmup_steps:
            for batch in normalize(buffer.sample()).split(cfg.policy.batch_size):
                update_critics(batch)
                log_prob = update_actor(batch)["log_prob"]
                update_temperature(batch.clone(False).set("log_prob", log_prob))
                run.report(alpha=loss.log_alpha.exp())

    film(cfg, run, task, policy)
    return run.evaluation.mean


if __name__ == "__main__":
    main()
