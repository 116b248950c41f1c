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
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch.nn.functional import smooth_l1_loss
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_mage import MAGELoss, NetworkSoftUpdate, Normalizer, OraclePendulum
from torchrl_mage.envs import get_task
from torchrl_mage.modules import critic, deterministic_actor
from torchrl_mage.trainers import (
    Checkpointer,
    CollectorState,
    Counters,
    DivergenceGuard,
    RandomState,
    RunFolder,
    SettingsError,
    TrainingLoop,
    chosen_folder,
    clipped_step,
    compiled,
    evaluate,
    exploring_collector,
    open_logger,
    open_run,
    radam,
    record_episode,
    resetter,
    set_up_torch,
    use_offscreen_rendering,
)

METRICS = (
    "episode_return",
    "loss_qvalue",
    "loss_actor",
    "td_error",
    "action_gradient_error",
    "action_gradient",
    "pred_value",
    "target_value",
    "next_terminated",
)
RANGES = Path(__file__).parent / "config" / "ranges.yaml"

OmegaConf.register_new_resolver("run_folder", chosen_folder, replace=True)


@hydra.main(config_path="config", config_name="mage_ddpg", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Trains an agent; returns the final evaluation return."""
    hydra_cfg = HydraConfig.get()
    settings, run_path = open_run(
        hydra_cfg.runtime.output_dir,
        OmegaConf.to_container(cfg, resolve=True),
        schema=RANGES,
        resume=cfg.resume,
        overridden=hydra_cfg.overrides.task,
    )
    cfg = OmegaConf.create(settings)
    device = set_up_torch(
        cfg.device, seed=cfg.seed, threads=cfg.threads, matmul_precision=cfg.matmul_precision
    )
    if cfg.video:
        use_offscreen_rendering()

    # ---------------------------------------------------------------- environment and networks
    if cfg.env.name != "Pendulum-v1":
        raise SettingsError(
            f"env.name = {cfg.env.name!r}: this script needs differentiable true dynamics and has "
            "Pendulum's alone; leave env out."
        )
    task = get_task(cfg.env.name)
    env, eval_env = (task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(2))
    obs_dim = env.observation_spec["observation"].shape[-1]
    action_dim = env.action_spec.shape[-1]

    normalizer = Normalizer(obs_dim, device=device)

    actor = deterministic_actor(obs_dim, env.action_spec, cfg.actor.num_cells, device=device)
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device)]
    world_model = TensorDictSequential(
        OraclePendulum(),
        normalizer.on(("next", "observation"), ("next", "normalized_observation")),
    )

    # ---------------------------------------------------------------- loss and optimisers
    mage_loss = MAGELoss(
        actor,
        critics,
        world_model,
        action_spec=env.action_spec,
        num_qvalue_nets=1,
        policy_noise=0.0,
        **cfg.loss,
    )
    mage_loss.make_value_estimator(gamma=cfg.discount)
    critic_targets = NetworkSoftUpdate(mage_loss, ["qvalue_network"], tau=cfg.policy.tau)
    actor_targets = NetworkSoftUpdate(mage_loss, ["actor_network"], tau=cfg.policy.tau)

    critic_optimizer = radam(mage_loss.qvalue_network_params.parameters(), lr=cfg.critic.lr)
    actor_optimizer = radam(mage_loss.actor_network_params.parameters(), lr=cfg.actor.lr)
    critic_clip = cfg.critic.grad_clip or 10 * cfg.loss.lmbda or 0.5
    critic_step = clipped_step(critic_optimizer, critic_clip)
    actor_step = clipped_step(actor_optimizer, cfg.actor.grad_clip)

    # One eager call on a real state: the loss checks that the world model fits the networks.
    mage_loss.value_loss(normalizer(env.reset()))
    in_graph = partial(compiled, enabled=cfg.compile, device=device)
    value_loss, actor_loss = in_graph(mage_loss.value_loss), in_graph(mage_loss.actor_loss)

    # ---------------------------------------------------------------- data
    policy = TensorDictSequential(normalizer, actor)
    collector = exploring_collector(
        env,
        policy,
        noise=cfg.exploration_noise,
        random_steps=cfg.warmup_steps,
        total_steps=cfg.total_steps,
        seed=cfg.seed,
    )
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(cfg.total_steps, device=device),
        batch_size=cfg.policy.updates_per_step * cfg.policy.batch_size,
    )

    run = RunFolder(
        run_path,
        columns=METRICS,
        total_steps=cfg.total_steps,
        title=f"MAGE-DDPG {task.name} seed {cfg.seed}",
        show=("episode_return", "loss_qvalue", "action_gradient"),
        logger=open_logger(cfg.logger, run_path),
    )

    # ---------------------------------------------------------------- the updates of Algorithm 1
    def update_critic(states: TensorDict) -> None:
        loss, metadata = value_loss(states)
        loss.backward()
        critic_step()
        critic_optimizer.zero_grad()
        critic_targets.step()
        run.add(loss_qvalue=loss, **metadata)
        td_error = metadata["td_error"]
        huber = smooth_l1_loss(td_error, torch.zeros_like(td_error))
        guard.watch(states, loss_qvalue=loss, huber_td_error=huber)

    def update_actor(states: TensorDict) -> None:
        loss, _ = actor_loss(states)
        loss.backward()
        actor_step()
        actor_optimizer.zero_grad()
        actor_targets.step()
        run.add(loss_actor=loss)
        guard.watch(loss_actor=loss)

    # ---------------------------------------------------------------- divergence
    guard = DivergenceGuard(
        {
            "loss_qvalue": mage_loss.qvalue_network_params.parameters(),
            "loss_actor": mage_loss.actor_network_params.parameters(),
        },
        limits={"huber_td_error": 100.0, "loss_actor": 1e5},  # the authors'
    )
    reset_optimizers = resetter(critic_optimizer, actor_optimizer)

    def reset_agent() -> None:
        """A new actor and a new critic; the data and the statistics stay."""
        mage_loss.reset_parameters_recursive()
        reset_optimizers()

    # ---------------------------------------------------------------- checkpoints
    count = Counters()
    checkpointer = Checkpointer(
        run_path,
        {
            "loss": mage_loss,
            "normalizer": normalizer,
            "critic_optimizer": critic_optimizer,
            "actor_optimizer": actor_optimizer,
            "collector": CollectorState(collector),
            "run": run,
            "count": count,
            "random": RandomState(),
        },
        buffer,
    )
    if checkpointer.restore_or_start():
        run.say(f"resumed {run_path} at step {count.step}")

    # ---------------------------------------------------------------- Algorithm 1
    with TrainingLoop(
        collector,
        environment=task.name,
        run=run,
        checkpointer=checkpointer,
        guard=guard,
        count=count,
        total_steps=cfg.total_steps,
        log_interval=cfg.log_interval,
        eval_interval=cfg.eval_interval,
        checkpoint_interval=cfg.checkpoint_interval,
        assess=lambda step: evaluate(
            eval_env, policy, episodes=cfg.eval_episodes, seed=cfg.seed + step
        ),
        reset_agent=reset_agent if cfg.on_divergence == "reset_agent" else None,
    ) as loop:
        for step, transition in loop:
            buffer.extend(transition)
            normalizer.update(transition["observation"])
            if step >= cfg.warmup_steps:
                sample = normalizer(buffer.sample().select("observation"))
                for states in sample.split(cfg.policy.batch_size):
                    update_critic(states)
                    update_actor(states)
                    count.updates += 1

    run.finished(
        loop.evaluation,
        {
            "actor": actor.state_dict(),
            "critic": mage_loss.qvalue_network_params.state_dict(),
            "normalizer": normalizer.state_dict(),
        },
    )
    if cfg.video:
        film_env = task.make_env(device=device, render_mode="rgb_array")
        record_episode(film_env, policy, run_path / "evaluation.mp4", seed=cfg.seed)
    return loop.evaluation.mean


if __name__ == "__main__":
    main()
