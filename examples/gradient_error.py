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
    MAGELoss,
    NetworkSoftUpdate,
    Normalizer,
    OraclePendulum,
)
from torchrl_mage.diagnostics import oracle_gradient_error
from torchrl_mage.envs import get_task
from torchrl_mage.modules import critic, deterministic_actor
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
    set_up_torch,
)

METRICS = (
    "gradient_error",
    "episode_return",
    "loss_world_model",
    "mean_squared_error",
    "log_variance",
    "loss_qvalue",
    "td_error",
    "action_gradient_error",
    "action_gradient",
    "pred_value",
    "target_value",
    "next_terminated",
)
RANGES = Path(__file__).parent / "config" / "ranges.yaml"

OmegaConf.register_new_resolver("run_folder", chosen_folder, replace=True)


@hydra.main(config_path="config", config_name="gradient_error", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Trains critics of a fixed actor; returns the final evaluation return."""
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

    # ---------------------------------------------------------------- environment and networks
    if cfg.env.name != "Pendulum-v1":
        raise SettingsError(
            f"env.name = {cfg.env.name!r}: this script needs differentiable true dynamics and has "
            "Pendulum's alone; leave env out."
        )
    if cfg.video or cfg.on_divergence != "stop":
        raise SettingsError(
            f"video = {cfg.video}, on_divergence = {cfg.on_divergence}: this script's actor is "
            "the one thing that stays as it is; leave both out."
        )
    task = get_task(cfg.env.name)
    env, eval_env, start_env = (
        task.make_env(device=device, timeout=cfg.env_timeout) for _ in range(3)
    )
    obs_dim = env.observation_spec["observation"].shape[-1]
    action_dim = env.action_spec.shape[-1]

    normalizer = Normalizer(obs_dim, device=device)

    actor = deterministic_actor(obs_dim, env.action_spec, cfg.actor.num_cells, device=device)
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device) for _ in range(2)]
    dynamics = GaussianEnsembleWorldModel(
        obs_dim,
        action_dim,
        ensemble_size=cfg.world_model.ensemble_size,
        num_cells=cfg.world_model.num_cells,
        device=device,
    )
    next_normalizer = normalizer.on(("next", "observation"), ("next", "normalized_observation"))
    world_model = TensorDictSequential(dynamics, task.reward, next_normalizer)
    oracle = TensorDictSequential(OraclePendulum(), next_normalizer)

    # ---------------------------------------------------------------- losses and optimisers
    model_loss = GaussianEnsembleLoss(dynamics)
    mage_loss = MAGELoss(actor, critics, world_model, action_spec=env.action_spec, **cfg.loss)
    mage_loss.make_value_estimator(gamma=cfg.discount)
    critic_targets = NetworkSoftUpdate(mage_loss, ["qvalue_network"], tau=cfg.policy.tau)
    NetworkSoftUpdate(mage_loss, ["actor_network"], tau=cfg.policy.tau)  # the actor stays

    model_optimizer = radam(
        model_loss.world_model_params.parameters(),
        lr=cfg.world_model.lr,
        weight_decay=cfg.world_model.weight_decay,
        decoupled_weight_decay=True,
    )
    critic_optimizer = radam(mage_loss.qvalue_network_params.parameters(), lr=cfg.critic.lr)
    critic_clip = cfg.critic.grad_clip or 10 * cfg.loss.lmbda or 0.5
    model_step = clipped_step(model_optimizer, cfg.world_model.grad_clip)
    critic_step = clipped_step(critic_optimizer, critic_clip)

    # One eager call on a real state: the loss checks that the world model fits the networks.
    mage_loss.value_loss(normalizer(env.reset()))
    in_graph = partial(compiled, enabled=cfg.compile, device=device)
    model_nll, value_loss = in_graph(model_loss.nll), in_graph(mage_loss.value_loss)
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
        columns=METRICS,
        total_steps=cfg.total_steps,
        title=f"Gradient error {task.name} seed {cfg.seed}",
        show=("gradient_error", "loss_world_model", "loss_qvalue"),
        logger=open_logger(cfg.logger, run_path),
    )

    # ---------------------------------------------------------------- updates of model and critics
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

    def first_critic(states: TensorDict) -> TensorDict:
        with mage_loss.qvalue_network_params.data[0].to_module(mage_loss.qvalue_network):
            return mage_loss.qvalue_network(states)

    def assess(step: int) -> Evaluation:
        """Adds Eq. 14's error, averaged over the trajectories."""
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
        run.add(gradient_error=error)
        return evaluate(eval_env, policy, episodes=cfg.eval_episodes, seed=cfg.seed + step)

    # ---------------------------------------------------------------- divergence
    guard = DivergenceGuard(
        {
            "loss_world_model": dynamics.parameters(),
            "loss_qvalue": mage_loss.qvalue_network_params.parameters(),
        },
        limits={"huber_td_error": 100.0},  # the authors'
    )

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
            "collector": CollectorState(collector),
            "run": run,
            "count": count,
            "random": RandomState(),
        },
        buffer,
    )
    if checkpointer.restore_or_start():
        run.say(f"resumed {run_path} at step {count.step}")

    # ---------------------------------------------------------------- the experiment
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
    ) as loop:
        for step, transition in loop:
            buffer.extend(transition)
            if step <= cfg.warmup_steps:  # as long as it moves, so does the policy
                normalizer.update(transition["observation"])
            if step % cfg.world_model.fit_interval == 0:
                fit_model(buffer[:].select(*model_loss.in_keys))
            if step >= cfg.warmup_steps:
                sample = normalizer(buffer.sample().select("observation"))
                for states in sample.split(cfg.policy.batch_size):
                    update_critics(states)
                    count.updates += 1

    run.finished(
        loop.evaluation,
        {
            "actor": actor.state_dict(),
            "critics": mage_loss.qvalue_network_params.state_dict(),
            "world_model": dynamics.state_dict(),
            "normalizer": normalizer.state_dict(),
        },
    )
    return loop.evaluation.mean


if __name__ == "__main__":
    main()
