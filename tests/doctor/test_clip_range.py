"""Clipped samples count where there is a clip range: a schedule that falls to 0 has none at its end."""

from collections.abc import Sequence

import pandas as pd
import pytest
from stable_baselines3.common.logger import configure

from sb3_policyopt import PPO
from sb3_policyopt.doctor.report import examine
from sb3_policyopt.doctor.rules.policy import clipped_away, policy_stands_still
from sb3_policyopt.plots.runs import STEPS, read_run


def made_log(fractions: Sequence[float], clip_ranges: Sequence[float], **columns: float) -> pd.DataFrame:
    steps = [256 * (i + 1) for i in range(len(fractions))]
    named = {f"train/{name}": value for name, value in columns.items()}
    return pd.DataFrame({STEPS: steps, "train/clip_fraction": fractions, "train/clip_range": clip_ranges, **named})


def test_a_short_training_that_ends_beyond_its_total_has_no_finding(tmp_path: object) -> None:
    """With the schedule that rl-zoo3 makes of lin_0.2, which goes on below 0, as in stock."""
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=256, clip_range=lambda progress: 0.2 * progress, seed=0, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(500)
    model.logger.close()
    log = read_run(str(tmp_path)).metrics
    assert log["train/clip_range"].iloc[-1] < 0 and log["train/clip_fraction"].iloc[-1] == 1
    assert "clipped_away" not in {finding.rule for finding in examine(read_run(str(tmp_path))).findings}


@pytest.mark.parametrize(
    ("fractions", "clip_ranges", "is_found"),
    [
        ([0.9] * 6, [0.2] * 6, True),
        ([0.9] * 5 + [1.0], [0.2] * 5 + [0.0], True),  # one row without a clip range leaves the others
        ([0.1] * 4 + [1.0] * 4, [0.2] * 4 + [0.0, 0.0, -0.1, -0.1], False),
        ([0.9, 0.9, 1.0], [0.2, 0.2, -0.1], False),  # two rows are too few
        ([0.9, 0.9, 0.9], [0.2, 0.2, 0.2], True),
        ([0.9] * 6, [float("nan")] * 6, True),  # not logged
    ],
)
def test_rows_without_a_clip_range_do_not_count(fractions: list[float], clip_ranges: list[float], is_found: bool) -> None:
    finding = clipped_away.check(made_log(fractions, clip_ranges), {})
    assert (finding is not None) == is_found
    assert finding is None or "is 0.90." in finding.evidence


def test_a_policy_that_stands_still_is_found_under_such_a_schedule() -> None:
    log = made_log([0.0] * 5 + [1.0], [0.2, 0.16, 0.12, 0.08, 0.04, -0.01], approx_kl=1e-6, learning_rate=1e-9)
    assert policy_stands_still.check(log, {}) is not None
