"""MAGE-TD3 (arXiv:2004.14309, Algorithm 2): learn a world model and act on its action-gradients.

python examples/mage_td3.py                      # Pendulum-v1 with the paper's settings
python examples/mage_td3.py env=halfcheetah      # another task, with its sizes
python examples/mage_td3.py loss.gradient_coeff=0  # Dyna-TD3
python examples/mage_td3.py --cfg job            # every setting
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
    ModelBasedEnv,
    NetworkSoftUpdate,
    Normalizer,
    RewardModel,
    TerminationModel,
)
from torchrl_mage.diagnostics import model_diagnostics
from torchrl_mage.envs import find_task
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
    "td_error",
    "action_gradient_error",
    "action_gradient",
    "pred_value",
    "target_value",
    "next_terminated",
    "reward_path",  # of the target's action-gradient, Eq. 13
    "next_state_path",
    "next_action_path",
    "model_within_1_sigma",
    "model_within_2_sigma",
    "model_disagreement",
    "model_open_loop_error",
)
RANGES = Path(__file__).parent / "config" / "ranges.yaml"

OmegaConf.register_new_resolver("run_folder", chosen_folder, replace=True)


@hydra.main(config_path="config", config_name="mage_td3", version_base="1.3")
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

    actor = deterministic_actor(obs_dim, env.action_spec, cfg.actor.num_cells, device=device)
    critics = [critic(obs_dim, action_dim, cfg.critic.num_cells, device=device) for _ in range(2)]
    dynamics = GaussianEnsembleWorldModel(
        obs_dim,
        action_dim,
        ensemble_size=cfg.world_model.ensemble_size,
        num_cells=cfg.world_model.num_cells,
        device=device,
    )
    size = {"num_cells": cfg.reward_model.num_cells, "device": device}
    heads = {}  # what of the task is learned
    if cfg.reward == "learned":
        heads["reward"] = RewardModel(obs_dim, action_dim, **size)
    elif task.reward is None:
        raise SettingsError(f"no reward of {task.name} is known: pass reward=learned.")
    if cfg.termination == "learned":
        heads["termination"] = TerminationModel(obs_dim, action_dim, **size)
    elif not task.known:
        raise SettingsError(f"when {task.name} ends is not known: pass termination=learned.")
    parts = [
        dynamics,
        heads.get("reward", task.reward),
        heads.get("termination", task.termination),
        normalizer.on(("next", "observation"), ("next", "normalized_observation")),
    ]
    world_model = TensorDictSequential(*(part for part in parts if part is not None))
    imagination = None  # the paper: the buffer's states alone
    if cfg.policy.imagination_steps:
        imagination = ModelBasedEnv(world_model, task.make_env(device=device))

    # ---------------------------------------------------------------- losses and optimisers
    model_loss = GaussianEnsembleLoss(dynamics)
    mage_loss = MAGELoss(actor, critics, world_model, action_spec=env.action_spec, **cfg.loss)
    mage_loss.make_value_estimator(gamma=cfg.discount)
    critic_targets = NetworkSoftUpdate(mage_loss, ["qvalue_network"], tau=cfg.policy.tau)
    actor_targets = NetworkSoftUpdate(mage_loss, ["actor_network"], tau=cfg.policy.tau)

    model_optimizer = radam(
        model_loss.world_model_params.parameters(),
        lr=cfg.world_model.lr,
        weight_decay=cfg.world_model.weight_decay,
        decoupled_weight_decay=True,
    )
    head_optimizers = {
        name: radam(
            head.parameters(),
            lr=cfg.reward_model.lr,
            weight_decay=cfg.reward_model.weight_decay,
            decoupled_weight_decay=True,
        )
        for name, head in heads.items()
    }
    critic_optimizer = radam(mage_loss.qvalue_network_params.parameters(), lr=cfg.critic.lr)
    actor_optimizer = radam(mage_loss.actor_network_params.parameters(), lr=cfg.actor.lr)
    critic_clip = cfg.critic.grad_clip or 10 * cfg.loss.lmbda or 0.5
    model_step = clipped_step(model_optimizer, cfg.world_model.grad_clip)
    head_steps = {
        name: clipped_step(optimizer, cfg.reward_model.grad_clip)
        for name, optimizer in head_optimizers.items()
    }
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
            *(f"loss_{name}" for name in heads),
        ],
        total_steps=cfg.total_steps,
        title=f"MAGE-TD3 {task.name} seed {cfg.seed}",
        show=("episode_return", "loss_world_model", "loss_qvalue", "loss_actor"),
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

    def fit_heads(data: TensorDict) -> None:
        """Least squares for a learned reward, maximum likelihood for a learned termination."""
        for name, head in heads.items():
            head.update_normalizer(data[-cfg.world_model.fit_interval :])
            for index in member_minibatches(
                len(data),
                ensemble_size=1,
                batch_size=cfg.world_model.batch_size,
                min_batches=cfg.world_model.fit_batches,
                exact=cfg.world_model.exact_fit_batches,
                device=device,
            ):
                loss = head.loss(data[index[0]])
                loss.backward()
                head_steps[name]()
                head_optimizers[name].zero_grad()
                run.add(**{f"loss_{name}": loss})
                guard.watch(**{f"loss_{name}": loss})

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

    def update_actor(states: TensorDict) -> None:
        loss, _ = actor_loss(states)
        loss.backward()
        actor_step()
        actor_optimizer.zero_grad()
        actor_targets.step()
        run.add(loss_actor=loss)
        guard.watch(loss_actor=loss)

    # ---------------------------------------------------------------- evaluation
    def assess(step: int) -> Evaluation:
        """Runs the deterministic policy, and what model and target make of where it went."""
        evaluation = evaluate(eval_env, policy, episodes=cfg.eval_episodes, seed=cfg.seed + step)
        found = model_diagnostics(dynamics, evaluation.episodes)
        nll = found.pop("model_nll")
        run.add(**found, **{f"model_nll_{member}": value for member, value in enumerate(nll)})
        visited = torch.cat([episode.select("observation") for episode in evaluation.episodes])
        states = normalizer(visited[:: -(-len(visited) // 256)])  # some are enough for a mean
        gpu = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(gpu):  # training draws the same with and without it
            paths = mage_loss.target_gradient_paths(states)
        run.add(**{name: path.norm(dim=-1) for name, path in paths.items()})
        return evaluation

    # ---------------------------------------------------------------- divergence
    guard = DivergenceGuard(
        {
            "loss_world_model": dynamics.parameters(),
            **{f"loss_{name}": head.parameters() for name, head in heads.items()},
            "loss_qvalue": mage_loss.qvalue_network_params.parameters(),
            "loss_actor": mage_loss.actor_network_params.parameters(),
        },
        limits={"huber_td_error": 100.0, "loss_actor": 1e5},  # the authors'
    )
    reset_optimizers = resetter(critic_optimizer, actor_optimizer)

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
            **heads,
            "model_optimizer": model_optimizer,
            **{f"{name}_optimizer": optimizer for name, optimizer in head_optimizers.items()},
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
                fit_heads(data)
            if step >= cfg.warmup_steps:
                sample = buffer.sample().select("observation")
                if imagination is not None:
                    sample = imagination.visited_states(
                        policy, sample, cfg.policy.imagination_steps
                    )
                for states in normalizer(sample).split(cfg.policy.batch_size):
                    update_critics(states)
                    count.updates += 1
                    if count.updates % cfg.policy.actor_delay == 0:
                        update_actor(states)

    run.finished(
        loop.evaluation,
        {
            "actor": actor.state_dict(),
            "critics": mage_loss.qvalue_network_params.state_dict(),
            "world_model": dynamics.state_dict(),
            **{name: head.state_dict() for name, head in heads.items()},
            "normalizer": normalizer.state_dict(),
        },
    )
    if cfg.video:
        film_env = task.make_env(device=device, render_mode="rgb_array")
        record_episode(film_env, policy, run_path / "evaluation.mp4", seed=cfg.seed)
    return loop.evaluation.mean


if __name__ == "__main__":
    main()
