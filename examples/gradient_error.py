"""How far a critic's action-gradient is from the true one (arXiv:2004.14309, Eq. 14, appendix D.2).

200 random transitions of Pendulum, then MAGE's critics are trained as in ``mage_td3.py`` while the
actor, and what normalises its input, stay as they are. Every 10 steps, along 10 trajectories, the
action-gradient of the first critic is compared with that of the empirical return, differentiated
through the true dynamics.

python examples/gradient_error.py                           # MAGE
python examples/gradient_error.py loss.gradient_coeff=0     # Dyna
python examples/gradient_error.py -m +experiment=gradients  # both, five seeds each
"""

from __future__ import annotations

from functools import partial

from run import critic_clip, fixed_actor, replay_buffer, script

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from world_model import LearnedWorldModel

from torchrl_mage import MAGELoss, NetworkSoftUpdate, Normalizer, OraclePendulum
from torchrl_mage.diagnostics import oracle_gradient_error
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
    "Gradient error",
    config_name="gradient_error",
    show=("gradient_error", "loss_world_model", "loss_qvalue"),
    check=fixed_actor,
)
def main(cfg: DictConfig, run: Run, task: Task, device: torch.device) -> float:
    """Trains critics of a fixed actor; returns the final evaluation return."""
    # ---------------------------------------------------------------- environment and networks
    env, eval_env, start_env = (
        task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(3)
    )
    obs_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    normalizer = Normalizer(obs_dim, device=device)
    actor = deterministic_actor(
        obs_dim,
        env.action_spec,
        cfg.actor.num_cells,
        soft_bounds=cfg.actor.soft_bounds,
        device=device,
    )
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device) for _ in range(2)]
    model = LearnedWorldModel(cfg, task, normalizer, action_dim, device)
    oracle = TensorDictSequential(
        OraclePendulum(),
        normalizer.on(("next", "observation"), ("next", "normalized_observation")),
    )

    # ---------------------------------------------------------------- loss and minimizers
    loss = MAGELoss(actor, critics, model.module, action_spec=env.action_spec, **cfg.loss)
    loss.make_value_estimator(gamma=cfg.discount)
    loss.check(normalizer(env.reset()))
    NetworkSoftUpdate(loss, "actor_network", tau=cfg.policy.tau)  # the actor stays
    in_graph = partial(compiled, enabled=cfg.compile, device=device, precision=cfg.precision)
    model.held_by(run, in_graph)
    run.holds(loss=loss, actor=actor, critics=loss.qvalue_network_params, normalizer=normalizer)
    update_critics = Minimizer(
        run,
        "loss_qvalue",
        in_graph(loss.value_loss),
        radam(loss.qvalue_network_params.parameters(), lr=cfg.critic.lr),
        clip=critic_clip(cfg),
        targets=[NetworkSoftUpdate(loss, "qvalue_network", tau=cfg.policy.tau)],
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
    buffer, _ = replay_buffer(cfg, run, task, device)

    # ---------------------------------------------------------------- Eq. 14
    def first_critic(states: TensorDict) -> TensorDict:
        with loss.qvalue_network_params.data[0].to_module(loss.qvalue_network):
            return loss.qvalue_network(states)

    def diagnose(step: int, evaluation: Evaluation) -> None:
        """Adds the error, averaged over the trajectories."""
        start_env.set_seed(cfg.seed + step)
        starts = torch.stack([start_env.reset() for _ in range(cfg.trajectories)])
        error = oracle_gradient_error(
            policy,
            first_critic,
            oracle,
            normalizer(starts.select("observation")),
            horizon=cfg.horizon,
            gamma=cfg.discount,
        )
        run.report(gradient_error=error)

    # ---------------------------------------------------------------- the experiment
    for step, transition in run.steps(
        collector, buffer, policy, eval_env, environment=task.name, diagnose=diagnose
    ):
        buffer.extend(transition)
        if step <= cfg.warmup_steps:  # as long as it moves, so does the policy
            normalizer.update(transition["observation"])
        if step % cfg.world_model.fit_interval == 0:
            model.fit(buffer[:])
        if step >= cfg.warmup_steps:
            sample = normalizer(buffer.sample().select("observation"))
            for states in sample.split(cfg.policy.batch_size):
                update_critics(states)

    return run.evaluation.mean


if __name__ == "__main__":
    main()
