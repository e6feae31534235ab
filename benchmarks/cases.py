"""What is measured: the table of cases, who runs in each, and the floors that must be held."""

from dataclasses import dataclass, field, replace
from typing import Any

CLASSES = {
    ("ppo", "ours"): "sb3_policyopt:PPO",
    ("ppo", "SB3"): "stable_baselines3:PPO",
    ("ppo", "SBX"): "sbx:PPO",
    ("trpo", "ours"): "sb3_policyopt:TRPO",
    ("trpo", "sb3-contrib"): "sb3_contrib:TRPO",
    ("ppo_mask", "ours"): "sb3_policyopt:MaskablePPO",
    ("ppo_mask", "sb3-contrib"): "sb3_contrib:MaskablePPO",
    ("ppo_lstm", "ours"): "sb3_policyopt:RecurrentPPO",
    ("ppo_lstm", "sb3-contrib"): "sb3_contrib:RecurrentPPO",
}


@dataclass(frozen=True)
class Settings:
    """
    All that one measurement needs to know; plain values, as it travels to another process as JSON.

    :param model_class: ``module:name`` of the algorithm
    :param env_id: an id of Gymnasium, or one of ``benchmarks.environments``
    :param n_envs: number of environments
    :param n_steps: steps of each environment in a rollout
    :param policy: name of the policy
    :param vec_env: "dummy", "subproc", "shared", "shared, trainer steps" or "envpool"
    :param normalize: with ``VecNormalize``
    :param small_cnn: channels of each convolution of the features extractor ``benchmarks.environments.SmallCNN``; SB3's
        own extractor if there are none
    :param model_kwargs: further arguments of the algorithm
    :param all_cores: leave threads and cores as they are; else one thread on one core
    """

    model_class: str
    env_id: str
    n_envs: int = 1
    n_steps: int = 2048
    policy: str = "MlpPolicy"
    vec_env: str = "dummy"
    normalize: bool = False
    small_cnn: tuple[int, ...] = ()
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    all_cores: bool = False


@dataclass(frozen=True)
class Case:
    """
    Contenders that take turns. The first one is compared with each of the others.

    :param name: unique name
    :param group: which table it belongs to
    :param title: name in tables and charts
    :param contenders: settings by the contender's name
    """

    name: str
    group: str
    title: str
    contenders: dict[str, Settings]


def libraries(name: str, group: str, title: str, algorithm: str, **settings: Any) -> Case:
    """
    A case in which the libraries run the same task; arguments as in ``Case`` and ``Settings``.

    SBX takes no part where a torch module is the features extractor.
    """
    contenders = {
        library: Settings(model_class, **settings)
        for (of_algorithm, library), model_class in CLASSES.items()
        if of_algorithm == algorithm and not (library == "SBX" and settings.get("small_cnn"))
    }
    return Case(name, group, title, contenders)


def variants(name: str, group: str, title: str, base: Settings, **changes: dict[str, Any]) -> Case:
    """A case in which the same algorithm runs with different settings."""
    return Case(name, group, title, {label: replace(base, **change) for label, change in changes.items()})


TASKS = {"CartPole-v1": "cartpole", "HalfCheetah-v5": "halfcheetah"}
STEPS_PER_ROLLOUT = 2048

FLOOR_CASES = [
    libraries(
        f"{algorithm}-{short}-x{n_envs}",
        "floors",
        f"{algorithm.upper()} {env_id} ×{n_envs}",
        algorithm,
        env_id=env_id,
        n_envs=n_envs,
        n_steps=STEPS_PER_ROLLOUT // n_envs,
    )
    for algorithm in ("ppo", "trpo")
    for env_id, short in TASKS.items()
    for n_envs in (1, 8)
]

# The least ratio of steady speeds, ours over theirs, by contender; in the order CartPole ×1, ×8, HalfCheetah ×1, ×8.
FLOORS = {
    ("ppo", "SB3"): (5.0, 7.0, 3.5, 4.5),
    ("ppo", "SBX"): (3.5, 3.0, 2.5, 2.2),
    ("trpo", "sb3-contrib"): (3.0, 3.5, 2.5, 2.2),
}

WIDE = {"policy_kwargs": {"net_arch": [256, 256]}}
# The zoo's Atari settings.
ATARI = {"batch_size": 256, "n_epochs": 4, "ent_coef": 0.01, "vf_coef": 0.5, "learning_rate": 2.5e-4}

CHEETAH: dict[str, Any] = {"env_id": "HalfCheetah-v5", "n_envs": 8, "n_steps": 256}
CARTPOLE: dict[str, Any] = {"env_id": "CartPole-v1", "n_envs": 8, "n_steps": 256}
BALL: dict[str, Any] = {"env_id": "benchmarks/Ball-v0", "n_envs": 8, "n_steps": 128, "policy": "CnnPolicy"}
CELLS: dict[str, Any] = {
    "env_id": "benchmarks/Cells-v0",
    "n_envs": 8,
    "n_steps": 256,
    "policy": "CnnPolicy",
    "small_cnn": (16, 32, 64),
}
ONE_CONVOLUTION: dict[str, Any] = {**CELLS, "small_cnn": (8,)}
PONG: dict[str, Any] = {
    "env_id": "PongNoFrameskip-v4",
    "n_envs": 8,
    "n_steps": 128,
    "policy": "CnnPolicy",
    "model_kwargs": ATARI,
}
SUBPROC: dict[str, Any] = {"vec_env": "subproc", "all_cores": True}

SHAPE_CASES = [
    libraries("ppo-wide", "shapes", "PPO HalfCheetah-v5 ×8, 256×256", "ppo", **CHEETAH, model_kwargs=WIDE),
    libraries("trpo-wide", "shapes", "TRPO HalfCheetah-v5 ×8, 256×256", "trpo", **CHEETAH, model_kwargs=WIDE),
    libraries("ppo-large", "shapes", "PPO HalfCheetah-v5 ×8, batch 1024", "ppo", **CHEETAH, model_kwargs={"batch_size": 1024}),
    libraries("ppo-normalize", "shapes", "PPO HalfCheetah-v5 ×8, VecNormalize", "ppo", **CHEETAH, normalize=True),
    libraries("ppo-subproc", "shapes", "PPO HalfCheetah-v5 ×8, SubprocVecEnv, all threads", "ppo", **CHEETAH, **SUBPROC),
    libraries("ppo-threads", "shapes", "PPO CartPole-v1 ×8, all threads", "ppo", **CARTPOLE, all_cores=True),
    libraries("trpo-threads", "shapes", "TRPO CartPole-v1 ×8, all threads", "trpo", **CARTPOLE, all_cores=True),
    libraries("ppo-cells-1", "shapes", "PPO 7×7 images ×8, one convolution", "ppo", **ONE_CONVOLUTION),
    libraries("trpo-cells-1", "shapes", "TRPO 7×7 images ×8, one convolution", "trpo", **ONE_CONVOLUTION),
    libraries("ppo-cells", "shapes", "PPO 7×7 images ×8, three convolutions", "ppo", **CELLS),
    libraries("trpo-cells", "shapes", "TRPO 7×7 images ×8, three convolutions", "trpo", **CELLS),
    libraries("ppo-image", "shapes", "PPO 36×36 images ×8", "ppo", **BALL, model_kwargs=ATARI),
    libraries("trpo-image", "shapes", "TRPO 36×36 images ×8", "trpo", **BALL),
    libraries("ppo-pong", "shapes", "PPO Pong ×8", "ppo", **PONG),
]

GROUP = "masks-and-memory"
MASKED: dict[str, Any] = {"env_id": "benchmarks/MaskedCartPole-v1", "all_cores": True}
LSTM: dict[str, Any] = {"policy": "MlpLstmPolicy", "all_cores": True}
WITH_64 = {"lstm_hidden_size": 64}
ZOO_LSTM = {**WITH_64, "enable_critic_lstm": True, "net_arch": {"pi": [64], "vf": [64]}}
# The zoo's entries for PPO with memory, without their activation and their gSDE, and with 8 of LunarLander's 32 environments.
NO_VEL: dict[str, dict[str, Any]] = {
    "cartpole": {"env_id": "CartPoleNoVel-v1", "n_envs": 8, "n_steps": 32, "model_kwargs": {
        "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "policy_kwargs": ZOO_LSTM}},
    "pendulum": {"env_id": "PendulumNoVel-v1", "n_envs": 4, "n_steps": 1024, "model_kwargs": {
        "gamma": 0.9, "learning_rate": 1e-3, "policy_kwargs": ZOO_LSTM}},
    "lunarlander": {"env_id": "LunarLanderNoVel-v3", "n_envs": 8, "n_steps": 512, "model_kwargs": {
        "n_epochs": 4, "gae_lambda": 0.98, "gamma": 0.999, "ent_coef": 0.01, "policy_kwargs": ZOO_LSTM}},
}  # fmt: skip
MASKS_AND_MEMORY_CASES = [
    *(
        libraries(f"mask-cartpole-x{n}", GROUP, f"MaskablePPO CartPole-v1 ×{n}", "ppo_mask", **MASKED, n_envs=n,
                  n_steps=256)
        for n in (1, 8)
    ),
    libraries("lstm-64", GROUP, "RecurrentPPO CartPole-v1 ×8, LSTM of 64", "ppo_lstm", **LSTM, env_id="CartPole-v1",
              n_envs=8, n_steps=128, model_kwargs={"policy_kwargs": WITH_64}),
    libraries("lstm-256", GROUP, "RecurrentPPO CartPole-v1 ×8, LSTM of 256", "ppo_lstm", **LSTM, env_id="CartPole-v1",
              n_envs=8, n_steps=128),
    *(
        libraries(f"lstm-zoo-{name}", GROUP, f"RecurrentPPO {task['env_id']}, the zoo's size", "ppo_lstm", **LSTM, **task)
        for name, task in NO_VEL.items()
    ),
]  # fmt: skip

VEC_ENVS = {"EnvPool": {"vec_env": "envpool"}, "DummyVecEnv": {"vec_env": "dummy"}, "SubprocVecEnv": {"vec_env": "subproc"}}
ENVPOOL_CASES = [
    variants("envpool-cartpole", "envpool", "CartPole-v1 ×64",
             Settings("sb3_policyopt:PPO", "CartPole-v1", 64, 32, all_cores=True), **VEC_ENVS),
    variants("envpool-halfcheetah", "envpool", "HalfCheetah-v5 ×64",
             Settings("sb3_policyopt:PPO", "HalfCheetah-v5", 64, 32, all_cores=True), **VEC_ENVS),
    variants("envpool-pong", "envpool", "Pong ×8",
             Settings("sb3_policyopt:PPO", **PONG, all_cores=True), **VEC_ENVS),
]  # fmt: skip

SCALING_CASES = [
    *(
        libraries(f"{algorithm}-n_envs-{n}", "scaling", f"{algorithm.upper()} n_envs={n}", algorithm,
                  env_id="CartPole-v1", n_envs=n, n_steps=STEPS_PER_ROLLOUT // n)
        for algorithm in ("ppo", "trpo") for n in (1, 4, 16, 64)
    ),
    *(
        libraries(f"{algorithm}-batch_size-{n}", "scaling", f"{algorithm.upper()} batch_size={n}", algorithm, **CARTPOLE,
                  model_kwargs={"batch_size": n})
        for algorithm in ("ppo", "trpo") for n in (32, 128, 512, 2048)
    ),
    *(
        libraries(f"{algorithm}-width-{n}", "scaling", f"{algorithm.upper()} width={n}", algorithm, **CARTPOLE,
                  model_kwargs={"policy_kwargs": {"net_arch": [n, n]}})
        for algorithm in ("ppo", "trpo") for n in (32, 128, 512)
    ),
]  # fmt: skip

# Memory of TRPO's first update on 16,384 stacked 84×84×4 frames; few passes over them, as each takes minutes.
FRAMES: dict[str, Any] = {"env_id": "benchmarks/Frames-v0", "n_envs": 8, "n_steps": 2048, "policy": "CnnPolicy"}
FEW_PASSES = {"cg_max_steps": 3, "n_critic_updates": 1}
MEMORY_CASES = [
    Case(
        "trpo-memory", "memory", "TRPO, 16,384 frames of 84×84×4",
        {
            "ours, micro_batch_size=256": Settings(
                "sb3_policyopt:TRPO", **FRAMES, model_kwargs={"micro_batch_size": 256, **FEW_PASSES}
            ),
            "sb3-contrib": Settings("sb3_contrib:TRPO", **FRAMES, model_kwargs=FEW_PASSES),
        },
    )
]  # fmt: skip

CASES = {
    case.name: case
    for case in [*FLOOR_CASES, *SHAPE_CASES, *MASKS_AND_MEMORY_CASES, *ENVPOOL_CASES, *SCALING_CASES, *MEMORY_CASES]
}
