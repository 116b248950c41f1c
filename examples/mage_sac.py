"""MAGE-SAC: a stochastic actor with an entropy bonus, its critics trained as in MAGE.

python examples/mage_sac.py                      # Pendulum-v1
python examples/mage_sac.py loss.fixed_alpha=true loss.alpha_init=0.1
python examples/mage_sac.py --cfg job            # every setting

Soft actor-critic (arXiv:1812.05905) inside arXiv:2004.14309's Algorithm 2.
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

from torchrl_mage import (
    GaussianEnsembleLoss,
    GaussianEnsembleWorldModel,
    MAGESACLoss,
    NetworkSoftUpdate,
    Normalizer,
)
from torchrl_mage.diagnostics import model_diagnostics
from torchrl_mage.envs import find_task
from torchrl_mage.modules import critic, stochastic_actor
from torchrl_mage.trainers import (
    Checkpointer,
    CollectorState,
    Counters,
    DivergenceGuard,
    Evaluation,
    RandomState,
    RunFolder,
    SettingsError,
    TrainingLoop,
    chosen_folder,
    clipped_step,
    compiled,
    evaluate,
    exploring_collector,
    member_minibatches,
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
    "loss_world_model",
    "mean_squared_error",
    "log_variance",
    "loss_qvalue",
    "loss_actor",
    "loss_alpha",
    "alpha",
    "entropy",
    "td_error",
    "action_gradient_error",
    "action_gradient",
    "pred_value",
    "target_value",
    "next_terminated",
    "model_within_1_sigma",
    "model_within_2_sigma",
    "model_disagreement",
    "model_open_loop_error",
)
RANGES = Path(__file__).parent / "config" / "ranges.yaml"

OmegaConf.register_new_resolver("run_folder", chosen_folder, replace=True)


@hydra.main(config_path="config", config_name="mage_sac", version_base="1.3")
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

    actor = stochastic_actor(obs_dim, env.action_spec, cfg.actor.num_cells, device=device)
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device) for _ in range(2)]
    dynamics = GaussianEnsembleWorldModel(
        obs_dim,
        action_dim,
        ensemble_size=cfg.world_model.ensemble_size,
        num_cells=cfg.world_model.num_cells,
        device=device,
    )
    if "learned" in (cfg.get("reward"), cfg.get("termination")) or not task.known:
        raise SettingsError(
            f"{task.name}: this script takes tasks whose reward and termination are known; pass "
            "reward=known termination=known for one that you registered, or use mage_td3.py."
        )
    parts = [
        dynamics,
        task.reward,
        task.termination,
        normalizer.on(("next", "observation"), ("next", "normalized_observation")),
    ]
    world_model = TensorDictSequential(*(part for part in parts if part is not None))

    # ---------------------------------------------------------------- losses and optimisers
    model_loss = GaussianEnsembleLoss(dynamics)
    mage_loss = MAGESACLoss(actor, critics, world_model, action_spec=env.action_spec, **cfg.loss)
    mage_loss.make_value_estimator(gamma=cfg.discount)
    critic_targets = NetworkSoftUpdate(mage_loss, ["qvalue_network"], tau=cfg.policy.tau)

    model_optimizer = radam(
        model_loss.world_model_params.parameters(),
        lr=cfg.world_model.lr,
        weight_decay=cfg.world_model.weight_decay,
        decoupled_weight_decay=True,
    )
    critic_optimizer = radam(mage_loss.qvalue_network_params.parameters(), lr=cfg.critic.lr)
    actor_optimizer = radam(mage_loss.actor_network_params.parameters(), lr=cfg.actor.lr)
    alpha_optimizer = torch.optim.Adam([mage_loss.log_alpha], lr=cfg.alpha.lr)
    critic_clip = cfg.critic.grad_clip or 10 * cfg.loss.lmbda or 0.5
    model_step = clipped_step(model_optimizer, cfg.world_model.grad_clip)
    critic_step = clipped_step(critic_optimizer, critic_clip)
    actor_step = clipped_step(actor_optimizer, cfg.actor.grad_clip)

    # One eager call on a real state: the loss checks that the world model fits the networks.
    mage_loss.value_loss(normalizer(env.reset()))
    in_graph = partial(compiled, enabled=cfg.compile, device=device)
    model_nll, value_loss, actor_loss = (
        in_graph(function)
        for function in (model_loss.nll, mage_loss.value_loss, mage_loss.actor_loss)
    )
    model_step = in_graph(model_step, fullgraph=False)  # millions of parameters, read once

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
        columns=[
            *METRICS,
            *(f"model_nll_{member}" for member in range(cfg.world_model.ensemble_size)),
        ],
        total_steps=cfg.total_steps,
        title=f"MAGE-SAC {task.name} seed {cfg.seed}",
        show=("episode_return", "loss_world_model", "loss_qvalue", "alpha"),
        logger=open_logger(cfg.logger, run_path),
    )

    # ---------------------------------------------------------------- the updates of Algorithm 2
    def fit_model(data: TensorDict) -> None:
        """Maximum likelihood; the small batches of the first fits are not worth a compilation."""
        dynamics.update_normalizer(data[-cfg.world_model.fit_interval :])
        for index in member_minibatches(
            len(data),
            ensemble_size=cfg.world_model.ensemble_size,
            batch_size=cfg.world_model.batch_size,
            min_batches=cfg.world_model.fit_batches,
            exact=cfg.world_model.exact_fit_batches,
            device=device,
        ):
            full = index.shape[1] == cfg.world_model.batch_size
            loss, metadata = (model_nll if full else model_loss.nll)(data[index])
            loss.backward()
            model_step()
            model_optimizer.zero_grad()
            run.add(loss_world_model=loss, **metadata)
            guard.watch(loss_world_model=loss)

    def update_critics(states: TensorDict) -> None:
        loss, metadata = value_loss(states)
        loss.backward()
        critic_step()
        critic_optimizer.zero_grad()
        critic_targets.step()
        run.add(loss_qvalue=loss, **metadata)
        td_error = metadata["td_error"]
        huber = smooth_l1_loss(td_error, torch.zeros_like(td_error))
        guard.watch(states, loss_qvalue=loss, huber_td_error=huber)

    def update_actor_and_temperature(states: TensorDict) -> None:
        loss, metadata = actor_loss(states)
        loss.backward()
        actor_step()
        actor_optimizer.zero_grad()
        loss_alpha = mage_loss.alpha_loss(metadata["entropy"], states)
        if not cfg.loss.fixed_alpha:
            loss_alpha.backward()
            alpha_optimizer.step()
            alpha_optimizer.zero_grad()
        alpha = mage_loss.log_alpha.exp()
        run.add(loss_actor=loss, loss_alpha=loss_alpha, alpha=alpha, entropy=metadata["entropy"])
        guard.watch(loss_actor=loss)

    # ---------------------------------------------------------------- evaluation
    def assess(step: int) -> Evaluation:
        """Runs the deterministic policy, and asks the model about those episodes."""
        evaluation = evaluate(eval_env, policy, episodes=cfg.eval_episodes, seed=cfg.seed + step)
        found = model_diagnostics(dynamics, evaluation.episodes)
        nll = found.pop("model_nll")
        run.add(**found, **{f"model_nll_{member}": value for member, value in enumerate(nll)})
        return evaluation

    # ---------------------------------------------------------------- divergence
    guard = DivergenceGuard(
        {
            "loss_world_model": dynamics.parameters(),
            "loss_qvalue": mage_loss.qvalue_network_params.parameters(),
            "loss_actor": mage_loss.actor_network_params.parameters(),
        },
        limits={"huber_td_error": 100.0, "loss_actor": 1e5},  # the authors'
    )
    reset_optimizers = resetter(critic_optimizer, actor_optimizer, alpha_optimizer)

    def reset_agent() -> None:
        """A new actor and new critics; the model, the data and the statistics stay."""
        mage_loss.reset_parameters_recursive()
        reset_optimizers()

    # ---------------------------------------------------------------- checkpoints
    count = Counters()
    checkpointer = Checkpointer(
        run_path,
        {
            "loss": mage_loss,
            "dynamics": dynamics,
            "normalizer": normalizer,
            "model_optimizer": model_optimizer,
            "critic_optimizer": critic_optimizer,
            "actor_optimizer": actor_optimizer,
            "alpha_optimizer": alpha_optimizer,
            "collector": CollectorState(collector),
            "run": run,
            "count": count,
            "random": RandomState(),
        },
        buffer,
    )
    if checkpointer.restore_or_start():
        run.say(f"resumed {run_path} at step {count.step}")

    # ---------------------------------------------------------------- Algorithm 2
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
        assess=assess,
        reset_agent=reset_agent if cfg.on_divergence == "reset_agent" else None,
    ) as loop:
        for step, transition in loop:
            buffer.extend(transition)
            normalizer.update(transition["observation"])
            if step % cfg.world_model.fit_interval == 0:
                data = buffer[:]
                fit_model(data.select(*model_loss.in_keys))
            if step >= cfg.warmup_steps:
                sample = normalizer(buffer.sample().select("observation"))
                for states in sample.split(cfg.policy.batch_size):
                    update_critics(states)
                    count.updates += 1
                    if count.updates % cfg.policy.actor_delay == 0:
                        update_actor_and_temperature(states)

    run.finished(
        loop.evaluation,
        {
            "actor": actor.state_dict(),
            "critics": mage_loss.qvalue_network_params.state_dict(),
            "world_model": dynamics.state_dict(),
            "normalizer": normalizer.state_dict(),
        },
    )
    if cfg.video:
        film_env = task.make_env(device=device, render_mode="rgb_array")
        record_episode(film_env, policy, run_path / "evaluation.mp4", seed=cfg.seed)
    return loop.evaluation.mean


if __name__ == "__main__":
    main()
