"""What settings are called: on the command line, and by Stable-Baselines3, its zoo and CleanRL, whose words get an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection

from relax_rl.errors import did_you_mean

__all__ = ["SYNONYMS", "flag", "meant"]

SYNONYMS: dict[str, tuple[str, ...]] = {
    "activation_fn": ("activation",),
    "actor_keys": ("policy_keys",),
    "algo": ("estimator",),
    "algorithm": ("estimator",),
    "anneal_lr": ("lr_schedule",),
    "batch_size": ("minibatch_size",),
    "clip_coef": ("clip_range",),
    "cuda": ("device",),
    "embedding_dim": ("embed",),
    "ent_coef": ("entropy_coef",),
    "env_id": ("env",),
    "eval_freq": ("eval_interval",),
    "exp_name": ("run_dir",),
    "features_dim": ("cnn_features",),
    "features_extractor": ("cnn",),
    "gym_id": ("env",),
    "lam": ("gae_lambda",),
    "learning_rate": ("policy_lr", "lr"),
    "log_folder": ("run_dir",),
    "lr": ("policy_lr",),
    "max_steps": ("total_steps", "steps"),
    "n_envs": ("num_envs",),
    "n_epochs": ("epochs",),
    "n_eval_episodes": ("eval_episodes", "episodes"),
    "n_steps": ("num_steps", "steps"),
    "n_timesteps": ("total_steps", "steps"),
    "net_arch": ("hidden",),
    "no_track": ("tensorboard",),
    "norm_adv": ("normalize_advantage",),
    "norm_obs": ("normalize_obs",),
    "norm_reward": ("normalize_reward",),
    "num_iterations": ("total_steps", "steps"),
    "num_threads": ("threads",),
    "num_timesteps": ("total_steps", "steps"),
    "output_dir": ("run_dir",),
    "policy_kwargs": ("hidden",),
    "save_freq": ("checkpoint_interval",),
    "target_entropy": ("entropy_target",),
    "tensorboard_log": ("tensorboard",),
    "timesteps": ("total_steps", "steps"),
    "total_timesteps": ("total_steps", "steps"),
    "trained_agent": ("resume",),
    "update_epochs": ("epochs",),
    "use_layer_norm": ("layer_norm",),
    "use_rms_prop": ("optimizer",),
    "use_wandb": ("track", "tensorboard"),
    "value_keys": ("critic_keys",),
    "vec_env": ("vectorization",),
    "verbose": ("quiet",),
    "vf_coef": ("value_coef",),
    "wandb_project": ("track_project",),
    "wandb_project_name": ("track_project",),
}
"""From their names to the settings that answer to them, the first of which that a command has is meant."""

_OTHERWISE = {
    "adam_eps": "Adam's epsilon is 1e-8",
    "capture_video": "evaluate RUN --video takes pictures",
    "clip_range_vf": "V is not clipped here",
    "clip_vloss": "V is not clipped here",
    "features_extractor_class": "a factory of networks takes its place",
    "num_minibatches": "{minibatch_size} counts rows, those of a rollout over the number of minibatches",
    "ortho_init": "layers begin orthogonal, the policy's last one with {policy_head_scale}",
    "stats_window_size": "means are over the last 100 episodes",
    "use_sde": "this exploration is not here",
}
"""Names that no setting answers to, and what there is instead."""

_ELSEWHERE = {
    "env": "the environments come by learn(envs, steps)",
    "estimator": "the estimator is the class: RELAX, LAX, A2C, Marginal or Reinforce of relax_rl.agents",
    "num_envs": "make_envs(ID, num_envs=...) takes it",
    "quiet": "learn(envs, steps) prints nothing; a callback may",
    "tensorboard": "learn(envs, steps) writes nothing; train(config) does",
    "total_steps": "learn(envs, total_steps) takes it",
}
"""What an agent made from Python is not given, and who is."""


def flag(name: str) -> str:
    """What a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def meant(name: str, known: Collection[str], *, called: Callable[[str], str] = str) -> str:
    """`; did you mean A?`, or what there is instead, after a name of somebody else's or for near misses; or nothing.

    Args:
        name: what was asked for.
        known: the settings that there are.
        called: how one is written.
    """
    if name in _OTHERWISE and "policy_lr" in known:
        return f"; {_OTHERWISE[name].format_map({each: called(each) for each in known})}"
    theirs = SYNONYMS.get(name, SYNONYMS.get(name.removeprefix("no_"), ()))
    if "policy_lr" in known and "env" not in known:  # settings of an agent alone
        elsewhere = next((_ELSEWHERE[each] for each in (name, *theirs) if each in _ELSEWHERE), None)
        if elsewhere is not None:
            return f"; {elsewhere}"
    ours = next((called(each) for each in theirs if each in known), None)
    return f"; did you mean {ours}?" if ours else did_you_mean(called(name), map(called, known))
