"""Which device "auto" takes: the rule beside what was measured on 16 cores and one H100, and the count it rests on."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn

from sb3_policyopt.setup.devices import Iteration, Machine, Passes, fastest, is_on_gpu, multiplications

MEASURED_ON = Machine(has_gpu=True, threads=16)
OBSERVATIONS, ACTIONS = 48, 12
VECTOR = spaces.Box(-1, 1, (OBSERVATIONS,), np.float32)
TORQUES = spaces.Box(-1, 1, (ACTIONS,), np.float32)
ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)

# One minibatch of PPO with two hidden layers: width, rows, µs with the closed form on the CPU, with autograd on the GPU.
PPO_MINIBATCHES = [
    (64, 64, 318, 4_419),
    (64, 512, 1_751, 4_574),
    (64, 4_096, 11_719, 5_953),
    (64, 16_384, 45_063, 7_367),
    (256, 64, 1_331, 4_201),
    (256, 512, 23_028, 4_740),
    (256, 4_096, 46_333, 8_167),
    (256, 16_384, 105_215, 10_996),
    (512, 64, 4_302, 4_845),
    (512, 512, 28_483, 5_180),
    (512, 4_096, 63_169, 6_847),
    (1_024, 64, 18_747, 4_560),
    (1_024, 512, 50_204, 4_300),
]
# One update of TRPO (15 iterations of conjugate gradient, one pass of the critic): width, rows of the rollout and of the
# critic's minibatches, ms on the CPU and on the GPU.
TRPO_UPDATES = [
    (64, 2_048, 128, 59, 72),
    (256, 2_048, 128, 1_859, 93),
    (256, 16_384, 1_024, 2_447, 74),
    (512, 65_536, 4_096, 7_113, 170),
]


def build(policy_class: Any, space: Any, action_space: Any = TORQUES, **options: Any) -> Any:
    return policy_class(space, action_space, lambda _: 3e-4, **options)


def mlp(*widths: Any) -> Any:
    return build(ActorCriticPolicy, VECTOR, net_arch=list(widths))


def ppo(policy: Any, n_envs: int, n_steps: int, batch_size: int, n_epochs: int) -> Any:
    passes = Passes.over(n_envs * n_steps, batch_size, n_epochs)
    return Iteration(*multiplications(policy), n_steps, n_envs, [passes])


def trpo(policy: Any, n_envs: int, n_steps: int, batch_size: int, n_critic_updates: int) -> Any:
    size = n_envs * n_steps
    critic = Passes.over(size, batch_size, n_critic_updates, 0.5)
    return Iteration(*multiplications(policy), n_steps, n_envs, [Passes(17, size, 0.5), critic])


class TestTheMeasuredTable:
    @pytest.mark.parametrize("width, rows, cpu, gpu", PPO_MINIBATCHES)
    def test_minibatches(self, width: int, rows: Any, cpu: Any, gpu: Any) -> None:
        minibatch = Iteration(*multiplications(mlp(width, width)), 0, 8, [Passes(1, rows)])
        assert fastest(minibatch, MEASURED_ON)[0] == ("cpu" if cpu < gpu else "cuda")
        # On the GPU the rule is right to a factor of two, and so it is on the CPU but where OpenBLAS's and torch's threads
        # fight (256 wide, 512 rows) and where 16 of them have enough to do for the products to speed up.
        assert 0.5 < minibatch.gpu_time() / gpu < 2
        assert 1 / 3 < minibatch.cpu_time(16) / cpu < 5

    @pytest.mark.parametrize("width, size, batch_size, cpu, gpu", TRPO_UPDATES)
    def test_updates_of_trpo(self, width: int, size: int, batch_size: int, cpu: Any, gpu: Any) -> None:
        update = trpo(mlp(width, width), 8, size // 8, batch_size, 1)._replace(n_steps=0)
        assert fastest(update, MEASURED_ON)[0] == ("cpu" if cpu < gpu else "cuda")

    @pytest.mark.parametrize("algorithm", [ppo, trpo])
    def test_whole_trainings_with_small_networks(self, algorithm: Any) -> None:
        # 8 × 256 steps, minibatches of 64. PPO: 11,184 steps/s on the CPU, 1,074 on the GPU; TRPO: 14,773 and 2,446.
        iteration = algorithm(mlp(64, 64), 8, 256, 64, 10)
        assert fastest(iteration, MEASURED_ON)[0] == "cpu"
        assert iteration.gpu_time() / iteration.cpu_time(16) > 3

    def test_the_time_of_a_whole_iteration_on_the_gpu(self) -> None:
        # PPO 64 × 64, 8 × 256: 2,048 steps at 1,074/s, of which the environments took a little.
        assert 0.7 < ppo(mlp(64, 64), 8, 256, 64, 10).gpu_time() / (2_048 / 1_074 * 1e6) < 1
        # CnnPolicy, 8 × 128, batches of 256, 4 epochs: 91.6 ms the update, 206 ms the rollout with its environments.
        atari = ppo(build(ActorCriticCnnPolicy, ATARI, spaces.Discrete(6)), 8, 128, 256, 4)
        assert 0.5 < atari.gpu_time() / 297.6e3 < 1

    @pytest.mark.parametrize("algorithm", [ppo, trpo])
    @pytest.mark.parametrize("threads", [1, 2, 16, 64])
    def test_convolutions_and_a_simulator_of_thousands(self, algorithm: Any, threads: int) -> None:
        atari = algorithm(build(ActorCriticCnnPolicy, ATARI, spaces.Discrete(6)), 8, 128, 256, 4)
        robots = algorithm(mlp(512, 256, 128), 4_096, 24, 24_576, 5)
        for iteration in (atari, robots):
            assert fastest(iteration, Machine(True, threads))[0] == "cuda"


class TestTheRule:
    def test_without_a_gpu_there_is_no_choice(self) -> None:
        iteration = ppo(mlp(1_024, 1_024), 64, 1_024, 16_384, 10)
        assert fastest(iteration, Machine(True, 2))[0] == "cuda"
        assert fastest(iteration, Machine(False, 2)) == ("cpu", "there is no GPU")

    def test_it_says_why(self) -> None:
        device, reason = fastest(ppo(mlp(64, 64), 8, 256, 64, 10), MEASURED_ON)
        # 2 (48 · 64 + 64 · 64) + 64 · 12 + 64 multiplications
        assert device == "cpu" and "8 environments, up to 64 rows at once and 15,168 multiplications a row" in reason
        assert reason.endswith("times as long on the GPU")
        assert fastest(ppo(mlp(512, 512), 8, 256, 2_048, 10), MEASURED_ON)[1].endswith("times as long on the CPU")

    @given(
        features=st.integers(0, 10**8),
        networks=st.integers(1, 10**7),
        n_steps=st.integers(1, 4_096),
        n_envs=st.integers(1, 4_096),
        batch_size=st.integers(1, 10**5),
        n_epochs=st.integers(1, 20),
        threads=st.integers(1, 128),
    )
    def test_more_multiplications_never_favour_the_cpu(
        self, features: Any, networks: Any, n_steps: int, n_envs: int, batch_size: int, n_epochs: int, threads: int
    ) -> None:
        passes = Passes.over(n_steps * n_envs, batch_size, n_epochs)
        small = Iteration(features, networks, n_steps, n_envs, [passes])
        large = small._replace(networks=2 * networks + 10**6)
        machine = Machine(True, threads)
        assert fastest(small, machine) == fastest(small, machine)
        assert (fastest(small, machine)[0], fastest(large, machine)[0]) != ("cuda", "cpu")
        # More threads never favour the GPU.
        assert (fastest(small, machine)[0], fastest(small, Machine(True, threads + 1))[0]) != ("cpu", "cuda")

    @given(size=st.integers(1, 10**6), rows=st.integers(1, 10**5), times=st.integers(1, 50), most=st.integers(1, 10**5))
    def test_passes_cover_the_rollout(self, size: int, rows: Any, times: Any, most: Any) -> None:
        passes = Passes.over(size, rows, times)
        for some in (passes, passes.of_at_most(most)):
            assert some.n * some.rows >= times * size
            assert some.rows <= rows
        assert passes.of_at_most(most).rows <= most
        assert passes.n == times * math.ceil(size / rows)


class OwnNetwork(BaseFeaturesExtractor):
    """Everything that the count knows: convolutions of three kinds of arguments, pools, groups, an embedding."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, features_dim=5)
        self.chain = nn.Sequential(
            nn.Conv2d(4, 8, (5, 3), stride=(2, 1), padding=(1, 0)),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1, groups=4, dilation=2, bias=False),
            nn.AvgPool2d(3, stride=2),
            nn.Conv2d(8, 2, 3, padding="same"),
            nn.Flatten(),
        )
        with th.no_grad():
            width = self.chain(th.zeros(1, *space.shape)).shape[1]
        self.table = nn.Embedding(1_000, 3)
        self.head = nn.Linear(width + 3, 5)

    def forward(self, observations: Any) -> Any:
        looked_up = self.table(th.zeros(len(observations), dtype=th.long))
        return self.head(th.cat((self.chain(observations), looked_up), 1))


def by_hooks(policy: Any, observations: Any) -> Any:
    """The multiplications, from the shapes that layers really give out; the modules that are used twice count once."""
    counts = {}

    def note(module: Any, _: Any, output: Any) -> None:
        positions = output[0, 0].numel() if output.dim() > 2 else 1
        counts[module] = module.weight.numel() * positions

    for module in policy.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    policy(observations)
    return sum(counts.values())


SMALL_IMAGE = spaces.Box(0, 255, (4, 36, 40), np.uint8)
POLICIES: dict[str, tuple[type[ActorCriticPolicy], Any, dict[str, Any]]] = {
    "MlpPolicy": (ActorCriticPolicy, VECTOR, {}),
    "uneven": (ActorCriticPolicy, VECTOR, {"net_arch": {"pi": [32, 16], "vf": [7]}}),
    "linear": (ActorCriticPolicy, VECTOR, {"net_arch": []}),
    "CnnPolicy": (ActorCriticCnnPolicy, ATARI, {}),
    "separate": (ActorCriticCnnPolicy, ATARI, {"share_features_extractor": False}),
    "own network": (ActorCriticCnnPolicy, SMALL_IMAGE, {"features_extractor_class": OwnNetwork}),
    "flat image": (ActorCriticCnnPolicy, SMALL_IMAGE, {"features_extractor_class": FlattenExtractor}),
    "dict": (MultiInputActorCriticPolicy, spaces.Dict({"a": SMALL_IMAGE, "b": ATARI, "c": VECTOR}), {}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_count_is_that_of_the_layers_outputs(name: str) -> None:
    policy_class, space, options = POLICIES[name]
    policy = build(policy_class, space, **options)
    features, networks = multiplications(policy)
    observations = {key: th.zeros(1, *part.shape) for key, part in space.spaces.items()} if name == "dict" else None
    assert features + networks == by_hooks(policy, th.zeros(1, *space.shape) if observations is None else observations)
    extractors = {policy.pi_features_extractor, policy.vf_features_extractor}
    plain = name in ("MlpPolicy", "uneven", "linear", "flat image")
    assert (features == 0) == plain and len(extractors) == (2 if name == "separate" else 1)


def test_counting_computes_nothing() -> None:
    """No forward pass, no random number, no change: the policy may be anything."""

    class Untouchable(ActorCriticPolicy):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

        extract_features = evaluate_actions = predict_values = get_distribution = forward

    policy = build(Untouchable, VECTOR, optimizer_kwargs={"eps": 1e-5})
    before, state = th.get_rng_state(), {name: value.clone() for name, value in policy.state_dict().items()}
    multiplications(policy)
    assert th.equal(before, th.get_rng_state())
    assert all(th.equal(value, state[name]) for name, value in policy.state_dict().items())


def test_unknown_modules_count_their_weights() -> None:
    class Recurrent(BaseFeaturesExtractor):
        def __init__(self, space: Any) -> None:
            super().__init__(space, features_dim=16)
            self.memory = nn.GRU(OBSERVATIONS, 16)

    features, _ = multiplications(build(ActorCriticPolicy, VECTOR, features_extractor_class=Recurrent))
    assert features == 3 * 16 * OBSERVATIONS + 3 * 16 * 16


@pytest.mark.parametrize("where", ["parameter", "buffer", "attribute"])
def test_tensors_that_a_policy_puts_on_the_gpu_are_found(where: str) -> None:
    """With a fake tensor, whose device is a GPU that is not there."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        there = th.zeros(3, device="cuda")
    policy = mlp(8)
    assert not is_on_gpu(policy)
    if where == "parameter":
        policy.mlp_extractor.scale = nn.Parameter(there)
    elif where == "buffer":
        policy.mlp_extractor.register_buffer("scale", there)
    else:
        policy.mlp_extractor.scale = there
    assert is_on_gpu(policy)


def test_spaces_without_a_shape_do_no_harm() -> None:
    assert multiplications(build(ActorCriticPolicy, spaces.Discrete(5)))[0] == 0
    assert multiplications(nn.Linear(3, 4)) == (0, 12)
