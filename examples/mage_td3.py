"""MAGE-TD3 (arXiv:2004.14309, Algorithm 2): learn a world model and act on its action-gradients.

python examples/mage_td3.py                      # Pendulum-v1, solved in minutes
python examples/mage_td3.py recipe=paper         # with the paper's settings
python examples/mage_td3.py env=halfcheetah      # another task, with its sizes
python examples/mage_td3.py loss.gradient_coeff=0  # Dyna-TD3
python examples/mage_td3.py --cfg job            # every setting
"""

from __future__ import annotations

from functools import partial

from run import critic_clip, film, replay_buffer, report_model, script

import torch
from losses import chosen_loss
from omegaconf import DictConfig
from real import RealTransitions
from states import TrainingStates
from tensordict.nn import TensorDictSequential
from world_model import LearnedWorldModel

from torchrl_mage import MAGELoss, ModelBasedEnv, NetworkSoftUpdate, Normalizer, TaylorTDLoss
from torchrl_mage.envs import Task
from torchrl_mage.modules import critic, deterministic_actor
from torchrl_mage.objectives import radam
from torchrl_mage.trainers import (
    Evaluation,
    Minimizer,
    Run,
    compiled,
    exploring,
    exploring_collector,
)


@script(
    "MAGE-TD3",
    config_name="mage_td3",
    show=("episode_return", "loss_world_model", "loss_qvalue", "loss_actor"),
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
    kind = {"layer_norm": cfg.critic.layer_norm, "zero_head": cfg.critic.units == "range"}
    critics = [
        critic(obs_dim, action_dim, cfg.critic.num_cells, **kind, device=device) for _ in range(2)
    ]
    model = LearnedWorldModel(cfg, task, normalizer, action_dim, device)
    imagination = ModelBasedEnv(model.module, task.make_env(device=device))

    # ---------------------------------------------------------------- loss and minimizers
    make_loss = chosen_loss(cfg, run, mage=MAGELoss, taylor=TaylorTDLoss)
    loss = make_loss(actor, critics, model.module, action_spec=env.action_spec)
    loss.make_value_estimator(**model.value_estimator())
    loss.check(normalizer(env.reset()))
    in_graph = partial(compiled, enabled=cfg.compile, device=device, precision=cfg.precision)
    model.held_by(run, in_graph)
    run.holds(loss=loss, actor=actor, critics=loss.qvalue_network_params, normalizer=normalizer)
    buffer, data = replay_buffer(cfg, run, task, device)
    real = RealTransitions(cfg, loss, buffer, model)
    update_critics = Minimizer(
        run,
        "loss_qvalue",
        in_graph(real.value_loss),
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
    explorer = exploring(policy, env, noise=cfg.exploration_noise)
    collector = exploring_collector(
        env,
        explorer,
        random_steps=cfg.warmup_steps,
        total_steps=cfg.total_steps,
        seed=cfg.seed,
        greedy_every=cfg.greedy_every,
    )
    training_states = TrainingStates(cfg, run, buffer, imagination, explorer)

    def diagnose(step: int, evaluation: Evaluation) -> None:
        """What model and target make of the states that the policy visits."""
        report_model(run, model.dynamics, loss, normalizer, evaluation)

    # ---------------------------------------------------------------- Algorithm 2
    for step, transition in run.steps(
        collector, buffer, policy, eval_env, environment=task.name, data=data, diagnose=diagnose
    ):
        if len(transition):  # none at an offline step
            buffer.extend(transition)
            normalizer.update(transition["observation"])
            model.observe(transition)
        if step % cfg.world_model.fit_interval == 0:
            model.fit(buffer[:])
            training_states.renew()
        if step >= cfg.warmup_steps:
            for states in normalizer(training_states.sample()).split(cfg.policy.batch_size):
                update_critics(real.beside(states))
                if update_critics.count % cfg.policy.actor_delay == 0:
                    update_actor(states)

    film(cfg, run, task, policy)
    return run.evaluation.mean


if __name__ == "__main__":
    main()
