"""MAGE-SAC: a stochastic actor with an entropy bonus, its critics trained as in MAGE.

python examples/mage_sac.py                      # Pendulum-v1, solved in minutes
python examples/mage_sac.py env=halfcheetah      # another task, with its sizes
python examples/mage_sac.py loss.fixed_alpha=true loss.alpha_init=0.1
python examples/mage_sac.py --cfg job            # every setting

Soft actor-critic (arXiv:1812.05905) inside arXiv:2004.14309's Algorithm 2.
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

from torchrl_mage import MAGESACLoss, ModelBasedEnv, NetworkSoftUpdate, Normalizer
from torchrl_mage.envs import Task
from torchrl_mage.modules import critic, stochastic_actor
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
    "MAGE-SAC",
    config_name="mage_sac",
    show=("episode_return", "loss_world_model", "loss_qvalue", "alpha"),
)
def main(cfg: DictConfig, run: Run, task: Task, device: torch.device) -> float:
    """Trains an agent; returns the final evaluation return."""
    # ---------------------------------------------------------------- environment and networks
    env, eval_env = (task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(2))
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    normalizer = Normalizer(obs_dim, device=device)
    actor = stochastic_actor(obs_dim, env.action_spec, cfg.actor.num_cells, device=device)
    kind = {"layer_norm": cfg.critic.layer_norm, "zero_head": cfg.critic.units == "range"}
    critics = [
        critic(obs_dim, action_dim, cfg.critic.num_cells, **kind, device=device) for _ in range(2)
    ]
    model = LearnedWorldModel(cfg, task, normalizer, action_dim, device)
    imagination = ModelBasedEnv(model.module, task.make_env(device=device))

    # ---------------------------------------------------------------- loss and minimizers
    make_loss = chosen_loss(cfg, run, mage=MAGESACLoss)
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
    )
    if not cfg.loss.fixed_alpha:
        update_temperature = Minimizer(
            run,
            "loss_alpha",
            lambda states: (loss.alpha_loss(states["entropy"], states), {}),
            torch.optim.Adam([loss.log_alpha], lr=cfg.alpha.lr),
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

    # ---------------------------------------------------------------- Algorithm 2, with entropy
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
                    entropy = update_actor(states)["entropy"]
                    if not cfg.loss.fixed_alpha:
                        update_temperature(states.clone(False).set("entropy", entropy))
                    run.report(alpha=loss.log_alpha.exp())

    film(cfg, run, task, policy)
    return run.evaluation.mean


if __name__ == "__main__":
    main()
