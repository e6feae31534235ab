"""T2-T9, M1, R2: TRPO with masks, with memory and with both, measured by torch from the policies before and after."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from contrib_twins import MASKABLE, masked_toy
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from toy_environments import ACTION_SPACES, VECTOR, collect, toy

from sb3_policyopt import TRPO
from sb3_policyopt.distributions.masking import choices
from sb3_policyopt.rollout.buffers import STATES

ACTIONS = {name: ACTION_SPACES[name] for name in ("box_6", "discrete", "multi_discrete", "multi_binary")}
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "masks": ("MaskableMlpPolicy", {}),
    "lstm": ("MlpLstmPolicy", {}),
    "lstm, two layers": ("MlpLstmPolicy", {"n_lstm_layers": 2}),
    "gru": ("MlpLstmPolicy", {"rnn": "gru"}),
    "shared": ("MlpLstmPolicy", {"shared_lstm": True, "enable_critic_lstm": False}),
    "both": ("MaskableMlpLstmPolicy", {}),
    "both, gru": ("MaskableMlpLstmPolicy", {"rnn": "gru", "enable_critic_lstm": False}),
    "both, dict": ("MaskableMultiInputLstmPolicy", {}),
}
DICT = spaces.Dict({"left": VECTOR, "right": spaces.Box(-1, 1, (2,), np.float32)})
FAST = {("masks", "multi_discrete"), ("lstm", "box_6"), ("both", "discrete")}
CASES = [
    pytest.param(policy, action, id=f"{policy}-{action}", marks=pytest.mark.fast if (policy, action) in FAST else ())
    for policy in POLICIES
    for action in ACTIONS
    if action != "box_6" or "Maskable" not in POLICIES[policy][0]
]
cases = pytest.mark.parametrize(("policy", "action"), CASES)


class Kept(TRPO):
    """Keeps the policy, and the rollout in the shape of the steps, as they were before each update."""

    before: Any = None

    def train(self) -> None:
        buffer = self.rollout_buffer
        columns = {name: getattr(buffer, name).copy() for name in (*STATES, "action_masks") if name in vars(buffer)}
        self.columns = {**columns, "observations": vectors(buffer.observations), "starts": buffer.episode_starts.copy()}
        self.before = copy.deepcopy(self.policy)
        super().train()


def model_of(policy: str, action: str, engine: str, algorithm: type[TRPO] = Kept, **arguments: Any) -> Any:
    name, options = POLICIES[policy]
    space = DICT if "MultiInput" in name else VECTOR
    env = (masked_toy if action in MASKABLE else toy)(space, ACTIONS[action])
    network = {"net_arch": [5], **({"lstm_hidden_size": 4} if "Lstm" in name else {}), **options}
    given = {"n_steps": 16, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "device": "cpu", **arguments}
    return algorithm(name, env, engine=engine, policy_kwargs=network, **given)


def vectors(observations: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
    """A copy; what SB3's CombinedExtractor makes of a dict of vectors."""
    if isinstance(observations, dict):
        return np.concatenate([observations["left"], observations["right"]], -1)
    return observations.copy()


def outputs(policy: Any, columns: dict[str, np.ndarray]) -> th.Tensor:
    """
    What the action net puts out for each step, the networks called one step after the other, in the policy's own precision.

    The states start from those stored with the rollout's first step, are the policy's own from there on, and are zero where
    an episode starts (R2).

    :return: shape (n_steps, n_envs, n)
    """
    dtype = next(policy.parameters()).dtype
    observations = th.as_tensor(columns["observations"]).to(dtype)
    network = getattr(policy, "lstm_actor", None)
    if network is None:
        return th.stack([policy.action_net(policy.mlp_extractor.forward_actor(rows)) for rows in observations])
    states = tuple(th.as_tensor(columns[name][0]).to(dtype) for name in STATES[:2])
    steps = []
    for rows, starts in zip(observations, th.as_tensor(columns["starts"]).to(dtype), strict=True):
        states = tuple((1 - starts)[None, :, None] * state for state in states)
        output, states = network(rows[None], states)
        steps.append(policy.action_net(policy.mlp_extractor.forward_actor(output[0])))
    return th.stack(steps)


def parts_of(policy: Any, columns: dict[str, np.ndarray]) -> list[th.distributions.Distribution]:
    """Torch's own independent distributions, of the allowed actions alone."""
    output, space = outputs(policy, columns), policy.action_space
    if isinstance(space, spaces.Box):
        return [th.distributions.Normal(output, policy.log_std.exp().expand_as(output))]
    has_masks = isinstance(policy, MaskableActorCriticPolicy) or "action_masks" in columns
    if isinstance(space, spaces.MultiBinary) and not has_masks:
        return [th.distributions.Bernoulli(logits=output)]
    if has_masks:
        output = output.masked_fill(~th.as_tensor(columns["action_masks"]), -th.inf)
    split = th.split(output, list(choices(space)), -1)
    return [th.distributions.Categorical(probs=part.softmax(-1)) for part in split]


def kl_by_torch(model: Any) -> float:
    """KL(π_old‖π_new), joint over the parts of an action and the mean over all steps, in float64."""
    with th.no_grad():
        old, new = (parts_of(copy.deepcopy(policy).double(), model.columns) for policy in (model.before, model.policy))
        total: Any = sum(th.distributions.kl_divergence(p, q) for p, q in zip(old, new, strict=True))
    return float(total.sum(-1).mean() if total.dim() == 3 else total.mean())


@pytest.mark.thinned(3)
@cases
def test_T2_kl_of_every_update_is_within_the_trust_region(policy: str, action: str, engine: str) -> None:
    model, n_accepted = model_of(policy, action, engine, target_kl=0.02), 0
    for _ in range(3):
        collect(model)
        model.train()
        logged, kl = model.logger.name_to_value, kl_by_torch(model)
        assert 0 <= kl <= 0.02 * (1 + 1e-5)
        assert logged["train/kl_divergence_loss"] == pytest.approx(kl, rel=1e-3, abs=1e-7)
        n_accepted += bool(logged["train/is_line_search_success"] and kl > 1e-4)
    assert n_accepted >= 2


def dense_fisher(policy: Any, names: list[str], columns: dict[str, np.ndarray]) -> th.Tensor:
    """
    T5: F = E[Jᵀ M J] in float64, J row by row by backward passes through :func:`outputs`, M the metric of the allowed actions.

    Masked columns have M = 0. For a Box M is 1/σ² for the means and 2 for ln σ, on which a row's own J is the identity.
    """
    policy = copy.deepcopy(policy).double()
    parameters = [dict(policy.named_parameters())[name] for name in names]
    output = outputs(policy, columns)
    n = output.shape[-1]
    rows = output.reshape(-1, n)
    metrics = metrics_of(policy, columns)
    total: Any = 0.0
    for row, metric in zip(rows, metrics, strict=True):
        gradients = [th.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True) for entry in row]
        flat = [
            th.cat([th.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(entry, parameters, strict=True)])
            for entry in gradients
        ]
        jacobian = th.stack(flat)
        total = total + jacobian.T @ metric @ jacobian / len(rows)
    if "log_std" in names:
        at = sum(parameter.numel() for parameter in parameters[: names.index("log_std")])
        total[range(at, at + n), range(at, at + n)] += 2
    return total.detach()


def metrics_of(policy: Any, columns: dict[str, np.ndarray]) -> th.Tensor:
    """M of each row with respect to the action net's outputs, shape (n_rows, n, n)."""
    parts, blocks = parts_of(policy, columns), []
    for part in parts:
        if isinstance(part, th.distributions.Normal):
            blocks.append(th.diag_embed(part.variance.reciprocal()).flatten(0, 1))
        elif isinstance(part, th.distributions.Bernoulli):
            blocks.append(th.diag_embed(part.variance).flatten(0, 1))
        else:
            assert isinstance(part, th.distributions.Categorical)
            p = part.probs.flatten(0, 1)
            blocks.append(th.diag_embed(p) - p[:, :, None] * p[:, None, :])
    block_diag: Callable[..., th.Tensor] = th.block_diag  # torch has no annotations for it
    return th.stack([block_diag(*row) for row in zip(*blocks, strict=True)])


@pytest.mark.thinned(6)
@cases
def test_T5_R2_products_with_F_are_those_of_float64(policy: str, action: str, engine: str) -> None:
    """
    One float32 product has errors of some 1e-6 of its largest entry. Before it the policy makes an update, so that the rollout
    begins in the middle of episodes, with states that are not zero.
    """
    model = model_of(policy, action, engine, n_steps=8, batch_size=32)
    collect(model)
    model.train()
    collect(model)
    buffer = model.rollout_buffer
    names = [name for name in (*STATES, "action_masks") if name in vars(buffer)]
    columns = {name: getattr(buffer, name).copy() for name in names}
    columns |= {"observations": vectors(buffer.observations), "starts": buffer.episode_starts.copy()}
    if "Lstm" in POLICIES[policy][0]:
        assert np.abs(columns[STATES[0]][0]).max() > 0.01
    engine_in_use = model.prepare_engine()
    known = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    of_actor = [known[id(parameter)] for parameter in engine_in_use.flat.parameters[: engine_in_use.actor_count]]
    fisher = dense_fisher(model.policy, of_actor, columns)
    (batch,) = engine_in_use.data(buffer).whole()
    region = model.trust_region(engine_in_use, batch)
    generator = th.Generator().manual_seed(0)
    for _ in range(3):
        vector = th.randn(engine_in_use.n_actor, generator=generator)
        expected = fisher @ vector.double()
        scale = float(expected.abs().max())
        assert scale > 1e-3
        np.testing.assert_allclose(region.fisher(vector), expected, rtol=0, atol=2e-5 * scale)


@cases
def test_R2_J_and_its_transpose_are_adjoint(policy: str, action: str, engine: str) -> None:
    """uᵀ(Jv) = vᵀ(Jᵀu)."""
    model = model_of(policy, action, engine, n_steps=8, batch_size=32)
    collect(model)
    engine_in_use = model.prepare_engine()
    (batch,) = engine_in_use.data(model.rollout_buffer).whole()
    forward = engine_in_use.actor_pass(batch)
    random = np.random.default_rng(0)
    v = th.as_tensor(random.normal(size=engine_in_use.n_actor).astype(np.float32))
    moved = forward.pushforward(v)
    # A row for every transition, also for a standard deviation that moves by the same for all.
    slopes: tuple[Any, ...] = tuple(random.normal(size=(batch.size, part.shape[1])).astype(np.float32) for part in moved)
    if isinstance(moved[0], th.Tensor):
        slopes = tuple(th.as_tensor(part) for part in slopes)
    left = sum(
        float((np.asarray(u, np.float64) * np.asarray(part, np.float64)).sum()) for u, part in zip(slopes, moved, strict=True)
    )
    right = float(v.double() @ th.as_tensor(forward.pullback(slopes)).double())
    assert left == pytest.approx(right, rel=1e-4, abs=1e-4)
    assert abs(left) > 1e-2


def refusing(answer: Callable[[], tuple[float, float]]) -> type[Kept]:
    """TRPO whose candidates all seem to have this surrogate and KL."""

    class Refusing(Kept):
        n_asked = 0

        def trust_region(self, *arguments: Any) -> Any:
            region: Any = super().trust_region(*arguments)
            evaluate = region.evaluate

            def evaluated() -> tuple[float, float]:
                self.n_asked += 1
                evaluate()
                return answer()

            region.evaluate = evaluated
            return region

    return Refusing


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("why", ["kl", "surrogate", "not finite"])
def test_T9_a_rejected_step_leaves_the_parameters_bit_for_bit(policy: str, why: str, engine: str) -> None:
    answers = {"kl": (1e9, 1.0), "surrogate": (-1e9, 0.0), "not finite": (float("nan"), 0.0)}
    algorithm = refusing(lambda: answers[why])
    model = model_of(policy, "discrete", engine, algorithm, n_critic_updates=0)
    collect(model)
    model.train()
    assert model.n_asked == model.line_search_max_iter
    assert model.logger.name_to_value["train/is_line_search_success"] == 0
    for before, after in zip(model.before.parameters(), model.policy.parameters(), strict=True):
        assert th.equal(before, after)
    observations, starts = model.env.reset(), np.ones(4, bool)
    actions = [p.predict(observations, None, starts, deterministic=True)[0] for p in (model.before, model.policy)]
    np.testing.assert_array_equal(*actions)
