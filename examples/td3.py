"""Model-free TD3, the baseline: TorchRL's loss with MAGE's networks, data and evaluation.

python examples/td3.py                  # Pendulum-v1
python examples/td3.py env=halfcheetah  # another task, with its sizes
python examples/td3.py --cfg job        # every setting
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import hydra
import torch
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch.nn.functional import smooth_l1_loss
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.objectives import TD3Loss

from torchrl_mage import NetworkSoftUpdate, Normalizer
from torchrl_mage.envs import find_task
from torchrl_mage.modules import critic, deterministic_actor
from torchrl_mage.trainers import (
    Checkpointer,
    CollectorState,
    Counters,
    DivergenceGuard,
    RandomState,
    RunFolder,
    TrainingLoop,
    chosen_folder,
    compiled,
    evaluate,
    exploring_collector,
    open_logger,
    open_run,
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
    "pred_value",
    "target_value",
)
CONFIG = Path(__file__).parent / "config"
RANGES = CONFIG / "ranges.yaml"

OmegaConf.register_new_resolver("run_folder", chosen_folder, replace=True)


class SharedConfig(SearchPathPlugin):
    """Behind this script's own experiments, those and the groups that all scripts share."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's hook."""
        search_path.append("shared", f"file://{CONFIG}")


Plugins.instance().register(SharedConfig)


@hydra.main(config_path="config/td3", config_name="td3", version_base="1.3")
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
    task = find_task(cfg.env.id)
    env, eval_env = (task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(2))
    obs_dim = env.observation_spec["observation"].shape[-1]
    action_dim = env.action_spec.shape[-1]
    normalizer = Normalizer(obs_dim, device=device)
    normalize = TensorDictSequential(
        normalizer, normalizer.on(("next", "observation"), ("next", "normalized_observation"))
    )
    actor = deterministic_actor(obs_dim, env.action_spec, cfg.actor.num_cells, device=device)
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device) for _ in range(2)]

    # ---------------------------------------------------------------- loss and optimisers
    td3_loss = TD3Loss(actor, critics, action_spec=env.action_spec, **cfg.loss)
    td3_loss.make_value_estimator(gamma=cfg.discount)
    critic_targets = NetworkSoftUpdate(td3_loss, ["qvalue_network"], tau=cfg.policy.tau)
    actor_targets = NetworkSoftUpdate(td3_loss, ["actor_network"], tau=cfg.policy.tau)
    critic_optimizer = torch.optim.Adam(
        td3_loss.qvalue_network_params.parameters(), lr=cfg.critic.lr
    )
    actor_optimizer = torch.optim.Adam(td3_loss.actor_network_params.parameters(), lr=cfg.actor.lr)
    in_graph = partial(compiled, enabled=cfg.compile, device=device)
    value_loss, actor_loss = in_graph(td3_loss.value_loss), in_graph(td3_loss.actor_loss)

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
        title=f"TD3 {task.name} seed {cfg.seed}",
        show=("episode_return", "loss_qvalue", "loss_actor"),
        logger=open_logger(cfg.logger, run_path),
    )

    # ---------------------------------------------------------------- the updates of TD3
    def update_critics(batch: TensorDict) -> None:
        loss, metadata = value_loss(batch)
        loss.backward()
        critic_optimizer.step()
        critic_optimizer.zero_grad()
        critic_targets.step()
        td_error = metadata["target_value"] - metadata["pred_value"]
        run.add(
            loss_qvalue=loss,
            td_error=td_error.abs(),
            pred_value=metadata["pred_value"],
            target_value=metadata["target_value"],
        )
        huber = smooth_l1_loss(td_error, torch.zeros_like(td_error))
        guard.watch(batch, loss_qvalue=loss, huber_td_error=huber)

    def update_actor(batch: TensorDict) -> None:
        loss, _ = actor_loss(batch)
        loss.backward()
        actor_optimizer.step()
        actor_optimizer.zero_grad()
        actor_targets.step()
        run.add(loss_actor=loss)
        guard.watch(loss_actor=loss)

    # ---------------------------------------------------------------- divergence
    guard = DivergenceGuard(
        {
            "loss_qvalue": td3_loss.qvalue_network_params.parameters(),
            "loss_actor": td3_loss.actor_network_params.parameters(),
        },
        limits={"huber_td_error": 100.0, "loss_actor": 1e5},
    )
    reset_optimizers = resetter(critic_optimizer, actor_optimizer)

    def reset_agent() -> None:
        """A new actor and new critics; the data and the statistics stay."""
        td3_loss.reset_parameters_recursive()
        reset_optimizers()

    # ---------------------------------------------------------------- checkpoints
    count = Counters()
    checkpointer = Checkpointer(
        run_path,
        {
            "loss": td3_loss,
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

    # ---------------------------------------------------------------- TD3
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
                sample = normalize(buffer.sample())
                for batch in sample.split(cfg.policy.batch_size):
                    update_critics(batch)
                    count.updates += 1
                    if count.updates % cfg.policy.actor_delay == 0:
                        update_actor(batch)

    run.finished(
        loop.evaluation,
        {
            "actor": actor.state_dict(),
            "critics": td3_loss.qvalue_network_params.state_dict(),
            "normalizer": normalizer.state_dict(),
        },
    )
    if cfg.video:
        film_env = task.make_env(device=device, render_mode="rgb_array")
        record_episode(film_env, policy, run_path / "evaluation.mp4", seed=cfg.seed)
    return loop.evaluation.mean


if __name__ == "__main__":
    main()
