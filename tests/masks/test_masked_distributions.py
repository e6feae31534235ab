"""M1: with its penalties the categorical family is the distribution over the allowed actions, and masked columns are 0."""

from typing import Any

import numpy as np
import pytest
import torch as th
from contrib_twins import MASKABLE, MaskedToy, is_allowed
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from stable_baselines3.common.env_util import make_vec_env
from toy_environments import VECTOR, collect

from sb3_policyopt import MaskablePPO, MaskableTRPO
from sb3_policyopt.distributions import Categorical, MultiCategorical
from sb3_policyopt.distributions.masking import PENALTY, allows_some, choices, penalties

BATCH = 3
SIZES = [(4,), (1,), (3, 2, 4), (2, 2, 2, 2, 2)]


def family_of(sizes: tuple[int, ...]) -> Any:
    return Categorical(sizes[0]) if len(sizes) == 1 else MultiCategorical(sizes)


@st.composite
def masked(draw: Any) -> tuple[tuple[int, ...], np.ndarray, np.ndarray, np.random.Generator]:
    """Sizes of choices, masks that allow at least one action of each choice, logits, random numbers."""
    sizes = draw(st.sampled_from(SIZES))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 20.0]))
    row = st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n).filter(any) for n in sizes))
    masks = np.array([np.concatenate(draw(row)) for _ in range(BATCH)])
    return sizes, masks, scale * random.standard_normal((BATCH, sum(sizes))), random


def dense(sizes: tuple[int, ...], masks: np.ndarray, logits: np.ndarray) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """For each row and choice: the columns of the allowed actions, and their probabilities in float64."""
    rows = []
    for mask, row in zip(masks, logits.astype(np.float64), strict=True):
        parts, start = [], 0
        for size in sizes:
            columns = start + np.flatnonzero(mask[start : start + size])
            weights = np.exp(row[columns] - row[columns].max())
            parts.append((columns, weights / weights.sum()))
            start += size
        rows.append(parts)
    return rows


def draw_actions(sizes: tuple[int, ...], masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Allowed actions."""
    starts = np.cumsum((0, *sizes[:-1]))
    return np.array(
        [
            [random.choice(np.flatnonzero(mask[start : start + size])) for start, size in zip(starts, sizes, strict=True)]
            for mask in masks
        ]
    )


@pytest.mark.fast
@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(case=masked())
def test_M1_all_slopes_are_those_of_the_allowed_actions_and_masked_columns_are_0(library: str, case: Any) -> None:
    sizes, masks, logits, random = case
    actions, tangent = draw_actions(sizes, masks, random), random.standard_normal(logits.shape)
    starts = np.cumsum((0, *sizes[:-1]))
    log_prob, entropy = np.zeros(BATCH), np.zeros(BATCH)
    score, entropy_gradient, metric = (np.zeros_like(logits) for _ in range(3))
    for i, parts in enumerate(dense(sizes, masks, logits)):
        for k, (columns, p) in enumerate(parts):
            chosen = columns == starts[k] + actions[i, k]
            with np.errstate(divide="ignore", invalid="ignore"):
                p_log_p = np.where(p > 0, p * np.log(p), 0)
                log_prob[i] += np.log(p[chosen][0])
            entropy[i] -= p_log_p.sum()
            score[i, columns] = chosen - p  # ∂ ln p_a / ∂ logit_j = [a = j] − p_j
            entropy_gradient[i, columns] = -(p_log_p - p * p_log_p.sum())  # −p (ln p + H)
            metric[i, columns] = (np.diag(p) - np.outer(p, p)) @ tangent[i, columns]

    def array(values: np.ndarray) -> Any:
        return th.as_tensor(values) if library == "torch" else values

    family = family_of(sizes)
    parameters = (array(logits) + penalties(array(masks)),)
    evaluation = family.evaluate(parameters, array(actions), True)
    found_log_prob, (found_score,) = family.log_prob_and_score(parameters, array(actions))
    # −1e8 + logit has rounding errors of 1.5e-8 in float64, but no allowed action is near a forbidden one.
    exact: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
    if np.isfinite(log_prob).all():
        np.testing.assert_allclose(found_log_prob, log_prob, **exact)
        np.testing.assert_allclose(evaluation.log_prob, log_prob, **exact)
        np.testing.assert_allclose(family.log_prob(parameters, array(actions)), log_prob, **exact)
    np.testing.assert_allclose(family.entropy(parameters), entropy, **exact)
    np.testing.assert_allclose(float(evaluation.mean_entropy), entropy.mean(), **exact)
    slopes = {
        "score": (found_score, score),
        "score of evaluate": (evaluation.score[0], score),
        "entropy gradient": (family.entropy_gradient(parameters)[0], entropy_gradient),
        "entropy gradient of evaluate": (evaluation.entropy_gradient[0], entropy_gradient),
        "metric": (family.fisher_metric(parameters, (array(tangent),))[0], metric),
    }
    for name, (found, expected) in slopes.items():
        np.testing.assert_allclose(found, expected, err_msg=name, **exact)
        assert not np.asarray(found)[~masks].any(), f"{name}: a masked column is not exactly 0"


@given(case=masked())
def test_M1_kl_is_that_of_the_allowed_actions(case: Any) -> None:
    sizes, masks, logits, random = case
    new = logits + random.standard_normal(logits.shape)
    family, penalty = family_of(sizes), penalties(masks)
    found = family.kl((logits + penalty,), (new + penalty,))
    expected = np.zeros(BATCH)
    for i, (parts, new_parts) in enumerate(zip(dense(sizes, masks, logits), dense(sizes, masks, new), strict=True)):
        for (_, p), (_, q) in zip(parts, new_parts, strict=True):
            some = p > 0
            expected[i] += (p[some] * (np.log(p[some]) - np.log(q[some]))).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@given(case=masked())
def test_M1_float32_is_sb3_contribs(case: Any) -> None:
    sizes, masks, logits, random = case
    space = spaces.Discrete(sizes[0]) if len(sizes) == 1 else spaces.MultiDiscrete(sizes)
    actions = draw_actions(sizes, masks, random)
    single = logits.astype(np.float32)
    theirs = make_masked_proba_distribution(space).proba_distribution(th.from_numpy(single))
    theirs.apply_masking(masks)
    evaluation = family_of(sizes).evaluate((single + penalties(masks),), actions, False)
    assert evaluation.log_prob.dtype == np.float32
    of_theirs = theirs.log_prob(th.from_numpy(actions if len(sizes) > 1 else actions[:, 0]))
    np.testing.assert_allclose(evaluation.log_prob, of_theirs, rtol=1e-5, atol=1e-5)
    assert float(evaluation.mean_entropy) == pytest.approx(float(theirs.entropy().mean()), rel=1e-4, abs=1e-5)


@given(case=masked())
def test_M1_forbidden_actions_are_not_sampled(case: Any) -> None:
    sizes, masks, logits, _ = case
    family, many = family_of(sizes), 200
    th.manual_seed(0)
    noise = family.rollout_noise(many, BATCH)
    starts = np.cumsum((0, *sizes[:-1]))
    for step in range(many):
        actions = family.sample(((logits + penalties(masks)).astype(np.float32),), noise[step])
        assert np.take_along_axis(masks, starts + actions, 1).all()


def test_M1_the_penalty_is_sb3_contribs() -> None:
    masks = np.array([[True, False], [False, True]])
    expected = np.array([[0, -1e8], [-1e8, 0]], np.float32)
    assert PENALTY == -1e8
    for found in (penalties(masks), penalties(th.from_numpy(masks)).numpy()):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_M1_the_columns_of_a_mask() -> None:
    assert choices(spaces.Discrete(4)) == (4,)
    assert choices(spaces.Discrete(4, start=2)) == (4,)
    assert choices(spaces.MultiDiscrete([3, 2, 4])) == (3, 2, 4)
    assert choices(spaces.MultiBinary(3)) == (2, 2, 2)


def test_M1_a_row_that_allows_none_of_a_choice() -> None:
    masks = np.array([[1, 0, 0, 0, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    assert allows_some(masks, (2, 3)).tolist() == [True, False, False, False]
    assert allows_some(masks, (5,)).tolist() == [True, True, True, False]


class NeverTheLast(MaskedToy):
    """Never allows the last action of a choice among three or more, nor the last of the first choice."""

    def _forbid(self) -> np.ndarray:
        mask, sizes = super()._forbid(), choices(self.action_space)
        for start, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
            if start == 0 or size > 2:
                mask[start : start + 2], mask[start + size - 1] = True, False
        return mask


@pytest.mark.fast
@pytest.mark.parametrize("algorithm", [MaskablePPO, MaskableTRPO])
@pytest.mark.parametrize("space", MASKABLE)
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_M1_logits_of_actions_that_are_always_forbidden_do_not_move(
    algorithm: type[Any], space: str, policy: str, engine: str
) -> None:
    """
    Their slopes are exactly 0, so that the weights stay the same bits; those of the others change.

    With autograd the distribution is sb3-contrib's, which normalises the logits before it masks them. What goes through that
    sum cancels, but for rounding: 1e-9 of the gradient, by which
    Adam moves less than a 100th of a step of 3e-4; how much depends on the processor.
    """
    options = {"lstm_hidden_size": 8} if "Lstm" in policy else {}
    env = make_vec_env(lambda: NeverTheLast(VECTOR, MASKABLE[space]), 4, seed=0)
    model = algorithm(policy, env, n_steps=32, batch_size=32, engine=engine, seed=0, policy_kwargs=options, device="cpu")
    before = [parameter.detach().clone() for parameter in model.policy.action_net.parameters()]
    masks = collect(model).action_masks.reshape(-1, sum(choices(MASKABLE[space]))).any(0)
    never = np.flatnonzero(~masks)
    assert len(never) == {"discrete": 1, "multi_discrete": 2, "multi_binary": 1}[space]
    model.train()
    for old, new in zip(before, model.policy.action_net.parameters(), strict=True):
        tolerance = 1e-6 if model.engine_in_use.name == "autograd" else 0
        np.testing.assert_allclose(new[never].detach(), old[never], rtol=0, atol=tolerance)
        assert (new - old).abs().max() > 1e-4
    for number in range(4):
        assert all(is_allowed(MASKABLE[space], *entry) for entry in model.env.envs[number].get_wrapper_attr("taken"))
