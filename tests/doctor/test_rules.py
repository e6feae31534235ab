import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_policyopt import PPO, MaskableTRPO, registry
from sb3_policyopt.doctor.report import examine, to_text
from sb3_policyopt.doctor.rules import rules_of
from sb3_policyopt.doctor.rules.trust_region import step_fits_noise
from sb3_policyopt.plots.runs import NONFINITE, STEPS, Run, read_run
from sb3_policyopt.recording import RunRecorder
from sb3_policyopt.saving.provenance import half_range

# run of conftest.RUNS: rules that must find something in it
PROVOKED = {
    "huge learning rate": {"exploding_kl"},
    "a tempting action": {"dead_entropy"},
    "tiny learning rate": {"policy_stands_still"},
    "learning rate falls to zero": {"zero_coefficient"},
    "clip range falls to zero": {"zero_coefficient"},
    "rewards times 1000": {"reward_scale", "useless_critic"},
    "rewards over a million": {"reward_scale"},
    "one enormous reward": {"exploding_gradient"},
    "entropy bonus too large": {"exploding_std"},
    "tiny standard deviation": {"vanishing_std", "clipped_away"},
    "no clipping": {"largest_ratio", "few_effective_samples"},
    "episodes cut short": {"return_collapsed"},
    "endless episodes": {"no_episode"},
    "huge trust region, one try": {"steps_rejected"},
    "curvature from two samples": {"trust_region_unused", "kl_model_off"},
    "curvature from two samples, no line search": {"trust_region_left", "kl_model_off"},
    "one iteration of CG": {"cg_not_converging"},
    "noise, 10,000 parameters": {"step_fits_noise"},
}
WITHOUT_A_RUN = {  # tests of their own, below
    "nonfinite_metrics",
    "skipped_updates",
    "stopped_early",
    "truncated_minibatch",
    "unfitting_std",
    "low_mode",
}


def found(folder: Path) -> dict[str, Any]:
    return {finding.rule: finding for finding in examine(read_run(folder)).findings}


@pytest.mark.parametrize("name", PROVOKED)
def test_rule_is_provoked_by_a_real_run(trained: Callable[..., Any], name: str) -> None:
    findings = found(trained(name))
    assert PROVOKED[name] <= set(findings)
    for finding in findings.values():
        assert any(character.isdigit() for character in finding.evidence), "evidence is numbers"
        assert finding.what and finding.advice and finding.source


def test_every_rule_has_a_test_that_provokes_it() -> None:
    assert {rule.name for rule in rules_of("")} == set().union(*PROVOKED.values()) | WITHOUT_A_RUN


@pytest.mark.parametrize("name", ["ppo healthy", "trpo healthy", "masks healthy", "memory healthy"])
def test_healthy_run_has_no_finding(trained: Callable[..., Any], name: str) -> None:
    report = examine(read_run(trained(name)))
    assert report.findings == ()
    assert len(report.made) >= 12
    assert "Healthy: nothing looks wrong." in to_text(report)


def test_steps_that_fit_noise(trained: Callable[..., Any]) -> None:
    def ratios(name: str) -> np.ndarray:
        log = read_run(trained(name)).metrics
        values: np.ndarray = (log["train/surrogate_improvement"] / np.sqrt(2 * log["train/kl_divergence_loss"])).to_numpy()
        return values

    assert ratios("noise, 272 parameters")[0] == pytest.approx(np.sqrt(272 / 1024), rel=0.3)
    assert "step_fits_noise" not in found(trained("noise, 272 parameters"))
    evidence = found(trained("noise, 10,000 parameters"))["step_fits_noise"].evidence
    assert f"is {np.median(ratios('noise, 10,000 parameters')):.3g};" in evidence


@pytest.mark.parametrize("settings", [{"normalize_advantage": False}, {"kl_reduction": "mean"}])
def test_steps_that_fit_noise_need_both_scales(trained: Callable[..., Any], settings: dict[str, Any]) -> None:
    log = read_run(trained("noise, 10,000 parameters")).metrics
    assert step_fits_noise.check(log, {}) is not None
    assert step_fits_noise.check(log, settings) is None


def test_numbers_of_the_evidence_are_those_of_the_log(trained: Callable[..., Any]) -> None:
    folder = trained("huge learning rate")
    kl = pd.read_csv(folder / "progress.csv")["train/approx_kl"]
    evidence = found(folder)["exploding_kl"].evidence
    assert f"above 0.1 in {(kl > 0.1).sum()} of {len(kl)} updates" in evidence
    assert f"median {kl.median():.3g}, largest {kl.max():.3g}" in evidence


def write(folder: Path, rows: list[Any]) -> Path:
    logger = configure(str(folder), ["csv"])
    for row in rows:
        for key, value in row.items():
            logger.record(key, value)
        logger.dump()
    logger.close()
    return folder


def test_nonfinite_metrics(tmp_path: Path) -> None:
    rows = [{STEPS: 10 * i, "train/loss": float("nan") if i > 2 else 0.1, "train/value_loss": 1.0} for i in range(1, 6)]
    finding = found(write(tmp_path, rows))["nonfinite_metrics"]
    assert finding.evidence == "From step 30 on: train/loss in 3 rows."


def test_explained_variance_may_be_undefined(tmp_path: Path) -> None:
    """SB3 logs nan where all returns are equal."""
    rows = [{STEPS: 10 * i, "train/explained_variance": float("nan"), "train/loss": 1.0} for i in range(1, 6)]
    assert "nonfinite_metrics" not in found(write(tmp_path, rows))


def test_skipped_updates(tmp_path: Path) -> None:
    rows = [{STEPS: i, "train/skipped_updates": 2.0 * (i == 7), "train/loss": 1.0} for i in range(1, 21)]
    finding = found(write(tmp_path, rows))["skipped_updates"]
    assert finding.severity == "warning" and "1 of 20 rows, 2 at most" in finding.evidence


@pytest.mark.parametrize("version", ["words", "indicators"])
@pytest.mark.parametrize(("reason", "advice"), [("kl_exceeded", "grows faster"), ("zero_step", "gradient is zero")])
def test_why_steps_are_rejected(tmp_path: Path, version: str, reason: str, advice: str) -> None:
    """Of ten steps seven are refused for one reason, one for another; earlier versions logged the reason as a word."""
    rows = []
    for i, outcome in enumerate([reason] * 7 + ["no_improvement", "accepted", "accepted"]):
        told: dict[str, Any] = {f"train/line_search_{name}": float(name == outcome) for name in REASONS}
        if version == "words":
            told = {"train/line_search_reason": outcome}
        rows.append({STEPS: i, "train/is_line_search_success": float(outcome == "accepted"), **told})
    finding = found(write(tmp_path, rows))["steps_rejected"]
    assert finding.evidence == f"2 of 10 steps were accepted ({reason.replace('_', ' ')}: 7; no improvement: 1)."
    assert advice in finding.advice


def make_model(**arguments: Any) -> Any:
    return PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_epochs=1, **arguments)


class PowerCut(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps == 300:
            raise RuntimeError("power cut")
        return True


def test_run_that_broke_off(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        make_model(n_steps=64).learn(1000, callback=[recorder, PowerCut()])
    assert "stopped_early" not in found(tmp_path)  # it may still run
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "progress.csv", (an_hour_ago, an_hour_ago))
    assert "step 256 of 1000 (26%)" in found(tmp_path)["stopped_early"].evidence


def test_run_that_came_to_its_end(tmp_path: Path) -> None:
    make_model(n_steps=64).learn(256, callback=RunRecorder(tmp_path))
    assert json.loads((tmp_path / "provenance.json").read_text())["finished"]
    report = examine(read_run(tmp_path))
    assert "stopped_early" in report.made and "stopped_early" not in {finding.rule for finding in report.findings}


@pytest.mark.filterwarnings("ignore:.*mini-batch")
@pytest.mark.parametrize("given", [{"batch_size": 48}, {}], ids=["given", "default"])
def test_truncated_minibatch(tmp_path: Path, given: dict[str, Any]) -> None:
    """100 = 2 · 48 + 4 = 64 + 36; of its divisors 50 is nearest to both."""
    make_model(n_steps=100, **given).learn(300, callback=RunRecorder(tmp_path, {"n_steps": 100, **given}))
    finding = found(tmp_path)["truncated_minibatch"]
    rest = 4 if given else 36
    assert f"a rest of {rest}." in finding.evidence and "e.g. 50." in finding.advice


def test_dividing_batch_size_is_fine(tmp_path: Path) -> None:
    make_model(n_steps=96, batch_size=48).learn(288, callback=RunRecorder(tmp_path, {"n_steps": 96, "batch_size": 48}))
    report = examine(read_run(tmp_path))
    assert "truncated_minibatch" in report.made and not {f.rule for f in report.findings} & {"truncated_minibatch"}


def test_normalised_rewards_have_no_unsuitable_scale(tmp_path: Path) -> None:
    rows = [{STEPS: i, "train/value_loss": 1e9, "train/explained_variance": 0.9} for i in range(1, 6)]
    write(tmp_path, rows)
    assert "reward_scale" in found(tmp_path)
    for normalize, silent in [("true", True), ("{norm_reward: false}", False), ("\"{'norm_reward': False}\"", False)]:
        (tmp_path / "config.yml").write_text(f"normalize: {normalize}\n")
        assert ("reward_scale" not in found(tmp_path)) == silent


def test_solved_task_may_have_a_bad_critic_and_little_entropy(tmp_path: Path) -> None:
    """The same metrics give findings in a run that did not learn."""
    sick = [
        {"train/explained_variance": -0.5, "train/entropy_loss": -0.7 * 0.5**i, "train/clip_fraction": 0.1} for i in range(12)
    ]
    for name, returns in [("solved", np.linspace(20, 500, 12)), ("stuck", np.full(12, 20.0))]:
        write(tmp_path / name, [{STEPS: i, "rollout/ep_rew_mean": returns[i], **sick[i]} for i in range(12)])
    symptoms = {"useless_critic", "dead_entropy"}
    assert not symptoms & set(found(tmp_path / "solved"))
    assert symptoms <= set(found(tmp_path / "stuck"))


@pytest.mark.parametrize(
    ("returns", "facts", "silent"),
    [
        (np.linspace(490, 500, 40), {"continued_from": "agent.zip"}, True),  # it knew the task before
        (np.linspace(490, 500, 40), {"start_timesteps": 100_000}, True),
        (np.linspace(490, 100, 40), {"continued_from": "agent.zip"}, False),  # and forgot it
        (np.full(40, 20.0), {}, False),
        (np.minimum(np.linspace(20, 4820, 400), 500.0), {}, True),  # solved within the first tenth
    ],
)
def test_a_solved_task_has_single_large_gradients_and_a_critic_of_no_use(
    tmp_path: Path, returns: Any, facts: dict[str, Any], silent: bool
) -> None:
    """The critic's loss falls to 0 once every episode ends alike, and the median of the gradient with it."""
    rows = [
        {
            STEPS: 100_000 + i,
            "rollout/ep_rew_mean": value,
            "train/grad_norm": {3: 15.0, 4: 17.5, 5: 41.5, 6: 12.8, 7: 17.0}.get(i, 0.1),
            "train/explained_variance": -0.2,
        }
        for i, value in enumerate(returns)
    ]
    write(tmp_path, rows)
    (tmp_path / "provenance.json").write_text(json.dumps({"algo": "ppo", "finished": True, **facts}))
    assert ("useless_critic" not in found(tmp_path)) == silent
    assert "exploding_gradient" not in found(tmp_path)


@pytest.mark.parametrize("column", ["std", "std_min", "ratio_max", "grad_norm", "approx_kl", "effective_sample_size"])
def test_a_metric_that_is_never_finite_is_a_finding_and_no_crash(tmp_path: Path, column: str) -> None:
    write(tmp_path, [{STEPS: i, "train/loss": 1.0, f"train/{column}": np.inf} for i in range(6)])
    assert f"train/{column}" in found(tmp_path)["nonfinite_metrics"].evidence


def test_masks_that_leave_no_choice_are_no_lack_of_exploring(tmp_path: Path) -> None:
    """The entropy of a policy with masks is small where few actions are allowed, from the first update on."""
    for algo, start, expected in [("ppo", 0.008, True), ("ppo_mask", 0.008, False), ("ppo_mask", 1.0, True)]:
        rows = [{STEPS: i, "train/entropy_loss": -max(start * 0.5**i, 0.005), "train/clip_fraction": 0.1} for i in range(12)]
        folder = write(tmp_path / f"{algo} {start}", rows)
        (folder / "provenance.json").write_text(json.dumps({"algo": algo}))
        assert ("dead_entropy" in found(folder)) == expected


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_a_recorded_run_is_known_by_its_class(tmp_path: Path, policy: str) -> None:
    """Without the zoo's folders, as PPO and PPO with masks log the same metrics."""
    model = MaskableTRPO(policy, "MaskedRoute-v0", n_steps=32, batch_size=32, device="cpu")
    model.learn(64, callback=RunRecorder(tmp_path))
    run = read_run(tmp_path)
    assert run.algo == "trpo_mask" and "MaskableTRPO, 64 steps" in to_text(examine(run))


COLUMNS = sorted({column for rule in rules_of("") for column in rule.columns} - {NONFINITE, STEPS})
REASONS = ["kl_exceeded", "no_improvement", "non_finite", "zero_step"]
CELLS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 1e-30, 1e30]))


@pytest.mark.fast
@given(st.data())
def test_no_log_breaks_a_rule(data: Any) -> None:
    """For every log, each rule returns a finding or None."""
    columns = data.draw(st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True))
    rows = data.draw(st.integers(1, 25))
    log = pd.DataFrame({c: data.draw(st.lists(CELLS, min_size=rows, max_size=rows)) for c in columns})
    for reason in data.draw(st.lists(st.sampled_from(REASONS), unique=True)):
        log[f"train/line_search_{reason}"] = data.draw(st.lists(CELLS, min_size=rows, max_size=rows))
    if data.draw(st.booleans()):
        log["train/line_search_reason"] = data.draw(
            st.lists(st.sampled_from(["accepted", "zero_step", None]), min_size=rows, max_size=rows)
        )
    log[STEPS], log[NONFINITE] = np.arange(rows), ""
    settings = data.draw(
        st.fixed_dictionaries(
            {},
            optional={"batch_size": st.integers(1, 100), "n_steps": st.integers(1, 100), "n_timesteps": st.integers(1, 100)},
        )
    )
    run = Run(Path("run"), data.draw(st.sampled_from([*registry.ALGORITHMS, ""])), "", log, pd.DataFrame(), {}, settings)
    try:
        to_text(examine(run))
    except ValueError as error:
        assert "cannot be judged" in str(error)


@pytest.mark.parametrize("column", [*COLUMNS, "time/iterations"])
@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_a_column_of_words_breaks_no_rule(tmp_path: Path, column: str, algo: str) -> None:
    """Whatever wrote them: the rules that need it are not made."""
    numbers = dict.fromkeys(COLUMNS, 0.5)
    folder = write(tmp_path, [{STEPS: i, "time/iterations": i, **numbers, column: "words"} for i in range(1, 8)])
    (folder / "provenance.json").write_text(json.dumps({"algo": algo, "hyperparameters": {"batch_size": 48}}))
    report = examine(read_run(folder))
    assert len(report.made) > 5
    assert not [rule.name for rule in rules_of(algo) if rule.columns == (column,) and rule.name in report.made]


@pytest.mark.parametrize("batch_size", ["inf", "nan", "-inf", 10**400], ids=["inf", "nan", "minus inf", "huge"])
def test_a_setting_that_is_no_finite_number_is_not_known(tmp_path: Path, batch_size: object) -> None:
    hyperparameters = {"batch_size": batch_size, "n_steps": 100, "n_timesteps": batch_size}
    write(tmp_path, [{STEPS: i, "train/approx_kl": 0.01} for i in range(1, 6)])
    (tmp_path / "provenance.json").write_text(json.dumps({"n_envs": 1, "hyperparameters": hyperparameters}))
    assert not {"truncated_minibatch", "stopped_early"} & set(found(tmp_path))


@pytest.mark.parametrize(("log_std_init", "is_found"), [(2.0, True), (0.0, False), (-5.0, True)])
def test_first_standard_deviation_and_the_range_of_actions(tmp_path: Path, log_std_init: float, is_found: bool) -> None:
    """Pendulum's actions are in [-2, 2], one half-range is 2: e^2 is 3.7 half-ranges, e^0 half of one, e^-5 is 0.003."""
    options: dict[str, Any] = {"n_steps": 64, "policy_kwargs": {"log_std_init": log_std_init}}
    PPO("MlpPolicy", "Pendulum-v1", device="cpu", seed=0, **options).learn(320, callback=RunRecorder(tmp_path, options))
    assert json.loads((tmp_path / "provenance.json").read_text())["action_half_range"] == 2.0
    assert ("unfitting_std" in found(tmp_path)) == is_found


@pytest.mark.parametrize(
    ("changes", "is_found"),
    [
        ({}, True),
        ({"use_sde": True}, False),
        ({"continued_from": "agent.zip"}, False),
        ({"start_timesteps": 2000}, False),  # learn(reset_num_timesteps=False): the first update is not in this log
        ({"start_timesteps": 20_000}, True),  # resumed: the log has been continued
        ({"action_half_range": None}, False),
    ],
)
def test_first_standard_deviations_that_the_log_does_not_have(changes: dict[str, Any], is_found: bool) -> None:
    steps = np.arange(1, 21) * 2048
    log = pd.DataFrame({STEPS: steps, "train/std": 1.5, "rollout/ep_rew_mean": -5.0})
    check = {rule.name: rule for rule in rules_of("ppo")}["unfitting_std"]
    settings = {"action_half_range": 1.0, **changes}
    finding = check.check(log, settings) if check.applies(log, settings) else None
    assert (finding is not None) == is_found
    # P(|N(0, 1.5)| > 1) = 2 (1 - Phi(2 / 3)) = 0.505
    assert finding is None or "About 50% of them are clipped" in finding.evidence


@pytest.mark.parametrize(("end", "is_found"), [(1900.0, True), (6000.0, False)])
def test_a_return_that_rises_into_a_low_mode_excuses_no_first_standard_deviation(end: float, is_found: bool) -> None:
    """HalfCheetah with SB3's first standard deviation of 1: from -300 to about 1,900, where it stays (docs/scores.md)."""
    steps = np.linspace(25_000, 1_000_000, 40)
    log = pd.DataFrame({STEPS: steps, "train/std": 1.0, "rollout/ep_rew_mean": np.where(steps < 200_000, -300.0, end)})
    check = {rule.name: rule for rule in rules_of("trpo")}["unfitting_std"].check
    assert (check(log, {"action_half_range": 1.0, "env": "HalfCheetah-v5"}) is not None) == is_found


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([-1.0, -1.0], [1.0, 1.0], 1.0),
        ([0.0, 2.0], [3.0, 5.0], 1.5),
        ([-1.0, -100.0], [1.0, 100.0], None),
        ([-1e9], [1e9], None),
        ([-np.inf], [np.inf], None),
    ],
)
def test_half_range_of_an_action(low: list[float], high: list[float], expected: float | None) -> None:
    assert half_range(spaces.Box(np.array(low, np.float32), np.array(high, np.float32))) == expected
    assert half_range(spaces.Discrete(3)) is None


@pytest.mark.parametrize(
    ("env", "last", "is_found"),
    [
        ("HalfCheetah-v5", 1800.0, True),
        ("HalfCheetah-v5", 6000.0, False),
        ("Swimmer-v5", 120.0, True),
        ("Ant-v5", 1800.0, False),
    ],
)
def test_low_mode(env: str, last: float, is_found: bool) -> None:
    """Returns that have stayed level since a third of the run."""
    steps = np.linspace(25_000, 1_000_000, 40)
    log = pd.DataFrame({STEPS: steps, "rollout/ep_rew_mean": last * np.minimum(1.0, steps / 300_000)})
    names = {rule.name: rule for rule in rules_of("ppo")}
    assert (names["low_mode"].check(log, {"env": env}) is not None) == is_found


def test_a_return_that_still_rises_is_in_no_low_mode() -> None:
    steps = np.linspace(25_000, 1_000_000, 40)
    log = pd.DataFrame({STEPS: steps, "rollout/ep_rew_mean": 2500 * steps / 1_000_000})
    names = {rule.name: rule for rule in rules_of("ppo")}
    assert names["low_mode"].check(log, {"env": "HalfCheetah-v5"}) is None
