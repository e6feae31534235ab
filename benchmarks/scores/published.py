"""Published returns that the table shows beside ours."""

from typing import NamedTuple


class Source(NamedTuple):
    """Where figures were published, and what they are."""

    title: str
    url: str
    description: str


class Published(NamedTuple):
    """
    A figure somebody else reported.

    :param mean: of their returns
    :param spread: as they give it: a standard deviation over episodes of one agent or over seeds, or a standard error
    :param n_timesteps: of their training
    :param source: key of ``SOURCES``
    """

    mean: float
    spread: float | None
    n_timesteps: int
    source: str


SOURCES = {
    "zoo": Source(
        "rl-zoo3's benchmark.md at 22e3ff2450",
        "https://github.com/DLR-RM/rl-baselines3-zoo/blob/22e3ff2450/benchmark.md",
        "one agent each, ± over its episodes; MuJoCo of version 3, LunarLander of version 2",
    ),
    "tianshou": Source(
        "Tianshou at f2402056b0",
        "https://github.com/thu-ml/tianshou/blob/f2402056b0/examples/mujoco/README.md",
        "10 seeds, the maximum over the training of the mean test return, ± over seeds; MuJoCo of version 3, Reacher and the "
        "pendulums of version 2",
    ),
    "contrib": Source(
        "sb3-contrib at 0ca7fdd8d1",
        "https://github.com/Stable-Baselines-Team/stable-baselines3-contrib/blob/0ca7fdd8d1/docs/modules/trpo.md",
        "3 seeds, ± standard error; MuJoCo of version 3",
    ),
    "baselines": Source(
        "OpenAI baselines at ea25b9e8b2",
        "https://github.com/openai/baselines/blob/ea25b9e8b2/benchmarks_mujoco1M.htm",
        "6 seeds, training returns; MuJoCo of version 2",
    ),
    "cleanrl": Source(
        "CleanRL at fe8d8a03c4",
        "https://github.com/vwxyzjn/cleanrl/blob/fe8d8a03c4/docs/benchmark/ppo_continuous_action.md",
        "3 seeds, training returns; MuJoCo of version 4",
    ),
}

#: The best figure over several seeds where there is one, else that of one agent.
PUBLISHED = {
    ("ppo", "CartPole-v1"): Published(500.0, 0.0, 100_000, "zoo"),
    ("ppo", "Pendulum-v1"): Published(-172.225, 104.159, 100_000, "zoo"),
    ("ppo", "MountainCarContinuous-v0"): Published(88.343, 2.572, 20_000, "zoo"),
    ("ppo", "MountainCar-v0"): Published(-110.423, 19.473, 1_000_000, "zoo"),
    ("ppo", "Acrobot-v1"): Published(-73.506, 18.201, 1_000_000, "zoo"),
    ("ppo", "LunarLander-v3"): Published(242.119, 31.823, 1_000_000, "zoo"),
    ("ppo", "LunarLanderContinuous-v3"): Published(270.863, 32.072, 1_000_000, "zoo"),
    ("ppo", "BipedalWalker-v3"): Published(287.939, 2.448, 5_000_000, "zoo"),
    ("ppo", "Ant-v5"): Published(3258.4, 1079.3, 1_000_000, "tianshou"),
    ("ppo", "HalfCheetah-v5"): Published(5783.9, 1244.0, 1_000_000, "tianshou"),
    ("ppo", "Hopper-v5"): Published(2609.3, 700.8, 1_000_000, "tianshou"),
    ("ppo", "Walker2d-v5"): Published(3588.5, 756.6, 1_000_000, "tianshou"),
    ("ppo", "Swimmer-v5"): Published(281.561, 9.671, 1_000_000, "zoo"),
    ("ppo", "Humanoid-v5"): Published(787.1, 193.5, 1_000_000, "tianshou"),
    ("ppo", "Reacher-v5"): Published(-4.1, 0.3, 1_000_000, "tianshou"),
    ("ppo", "Pusher-v5"): Published(-40.38, 7.15, 1_000_000, "cleanrl"),
    ("ppo", "InvertedPendulum-v5"): Published(1000.0, 0.0, 1_000_000, "tianshou"),
    ("ppo", "InvertedDoublePendulum-v5"): Published(9231.3, 270.4, 1_000_000, "tianshou"),
    ("trpo", "CartPole-v1"): Published(500.0, 0.0, 100_000, "zoo"),
    ("trpo", "Pendulum-v1"): Published(-174.631, 127.577, 100_000, "zoo"),
    ("trpo", "MountainCarContinuous-v0"): Published(92.489, 0.355, 50_000, "zoo"),
    ("trpo", "MountainCar-v0"): Published(-107.278, 13.231, 100_000, "zoo"),
    ("trpo", "Acrobot-v1"): Published(-83.114, 18.648, 100_000, "zoo"),
    ("trpo", "LunarLander-v3"): Published(133.166, 112.173, 200_000, "zoo"),
    ("trpo", "LunarLanderContinuous-v3"): Published(262.387, 21.428, 200_000, "zoo"),
    ("trpo", "BipedalWalker-v3"): Published(182.339, 145.570, 1_000_000, "zoo"),
    ("trpo", "Ant-v5"): Published(3554.0, 591.0, 1_000_000, "contrib"),
    ("trpo", "HalfCheetah-v5"): Published(4471.2, 804.9, 1_000_000, "tianshou"),
    ("trpo", "Hopper-v5"): Published(3372.0, 215.0, 1_000_000, "contrib"),
    ("trpo", "Walker2d-v5"): Published(4502.0, 234.0, 1_000_000, "contrib"),
    ("trpo", "Swimmer-v5"): Published(359.0, 2.0, 1_000_000, "contrib"),
    ("trpo", "Humanoid-v5"): Published(810.1, 126.1, 1_000_000, "tianshou"),
    ("trpo", "Reacher-v5"): Published(-4.82, None, 1_000_000, "baselines"),
    ("trpo", "InvertedPendulum-v5"): Published(1000.0, 0.0, 1_000_000, "tianshou"),
    ("trpo", "InvertedDoublePendulum-v5"): Published(8435.2, 1073.3, 1_000_000, "tianshou"),
}

#: Seeds of one configuration end in two modes there; a return from here on belongs to the upper one.
GOOD_MODE = {"HalfCheetah-v5": 3000.0, "Hopper-v5": 2500.0, "Walker2d-v5": 3000.0, "Swimmer-v5": 300.0}
