import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.results_plotter import ts2xy

from sb3_policyopt import PPO
from sb3_policyopt.doctor.report import examine, to_text
from sb3_policyopt.plots.runs import NONFINITE, RETURN, STEPS, find_runs, read_run

pytestmark = pytest.mark.fast


def write(folder: Path, rows: Any) -> Any:
    """Write rows with SB3's own csv logger."""
    logger = configure(str(folder), ["csv"])
    for row in rows:
        for key, value in row.items():
            logger.record(key, value)
        logger.dump()
    logger.close()
    return folder


def test_header_that_grows(tmp_path: Path) -> None:
    """SB3's writer adds columns when they first appear; rows of before have no value there."""
    write(tmp_path, [{STEPS: 10, "a/x": 1.0}, {STEPS: 20, "a/x": 2.0, "a/y": 5.0}, {STEPS: 30, "a/y": 6.0}])
    run = read_run(tmp_path)
    assert [s.tolist() for s in run.series("a/x")] == [[10, 20], [1, 2]]
    assert [s.tolist() for s in run.series("a/y")] == [[20, 30], [5, 6]]
    assert run.series("a/z")[0].size == 0


def test_words_booleans_and_nonfinite_numbers(tmp_path: Path) -> None:
    rows = [
        {STEPS: 1, "train/line_search_reason": "accepted", "train/ok": True, "train/loss": float("nan")},
        {STEPS: 2, "train/line_search_reason": 'no "improvement", at all', "train/ok": False, "train/loss": 0.5},
        {STEPS: 3, "train/line_search_reason": "kl_exceeded", "train/ok": True, "train/loss": float("inf")},
    ]
    run = read_run(write(tmp_path, rows))
    assert run.metrics["train/line_search_reason"].tolist() == ["accepted", 'no "improvement", at all', "kl_exceeded"]
    assert run.series("train/ok")[1].tolist() == [1, 0, 1]
    assert run.series("train/loss")[1].tolist() == [0.5]
    assert run.metrics[NONFINITE].tolist() == ["train/loss", "", "train/loss"]
    assert run.series("train/line_search_reason")[1].size == 0


def test_torn_last_line_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text(f"a/x,{STEPS},a/y\n1,10,2\n3,20,4\n5,3")
    run = read_run(tmp_path)
    assert run.series("a/x")[0].tolist() == [3, 10, 20]  # "3" may be a torn "30": no later row is displaced
    assert run.series("a/y")[1].tolist() == [2, 4]


def test_second_header_of_a_resumed_log(tmp_path: Path) -> None:
    text = f"{STEPS},a/x\n10,1\n20,2\na/y,{STEPS},a/x\n7,30,3\n8,40,4\n"
    (tmp_path / "progress.csv").write_text(text)
    run = read_run(tmp_path)
    assert [s.tolist() for s in run.series("a/x")] == [[10, 20, 30, 40], [1, 2, 3, 4]]
    assert run.series("a/y")[1].tolist() == [7, 8]


def test_zero_bytes_after_a_crash(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_bytes(f"{STEPS},a/x\n10,1\n20,2\n".encode() + b"\0" * 64)
    assert read_run(tmp_path).series("a/x")[1].tolist() == [1, 2]


@pytest.mark.parametrize("wrong", ["inf", "-inf", "nan", "", "many"])
@pytest.mark.parametrize("n_wrong", [1, 3])
def test_rows_without_a_finite_number_of_steps_are_left_out(tmp_path: Path, wrong: str, n_wrong: int) -> None:
    (tmp_path / "progress.csv").write_text(f"{STEPS},train/loss\n10,1\n" + f"{wrong},9\n" * n_wrong + "20,2\n")
    run = read_run(tmp_path)
    assert run.metrics[STEPS].tolist() == [10, 20] and run.series("train/loss")[1].tolist() == [1, 2]
    assert "20 steps" in to_text(examine(run))


@pytest.mark.parametrize("content", ["", "\n", f"{STEPS},a/x\n", "\0\0"])
def test_empty_log(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.csv").write_text(content)
    with pytest.raises(ValueError, match="no data yet"):
        read_run(tmp_path)


def test_other_csv_file(tmp_path: Path) -> None:
    (tmp_path / "shopping.csv").write_text("milk,bread\n1,2\n")
    with pytest.raises(ValueError, match="not a log of Stable-Baselines3"):
        read_run(tmp_path / "shopping.csv")


def test_missing_and_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is not a run folder"):
        find_runs(tmp_path)


def test_monitor_files_stand_in_for_the_log(logs: Path, tmp_path: Path) -> None:
    """SB3's own reader of Monitor files is the reference."""
    source = logs / "ppo" / "CartPole-v1_1"
    for path in source.glob("*.monitor.csv"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "9.monitor.csv").write_text("")  # a worker that died at once
    run = read_run(tmp_path)
    (tmp_path / "9.monitor.csv").unlink()
    reference = load_results(str(tmp_path))
    steps, returns = run.series(RETURN)
    np.testing.assert_array_equal(steps, ts2xy(reference, "timesteps")[0])
    np.testing.assert_allclose(returns, reference["r"].rolling(100, min_periods=1).mean())
    assert run.env == "CartPole-v1"


def test_a_monitor_of_a_folder_is_a_run(tmp_path: Path) -> None:
    """Monitor(env, "folder") writes folder/monitor.csv."""
    PPO("MlpPolicy", Monitor(gym.make("CartPole-v1"), str(tmp_path)), n_steps=128, n_epochs=1, device="cpu").learn(256)
    assert (tmp_path / "monitor.csv").is_file()
    reference = load_results(str(tmp_path))
    (found,) = find_runs(tmp_path)
    np.testing.assert_allclose(read_run(found).series(RETURN)[1], reference["r"].rolling(100, min_periods=1).mean())


def test_single_monitor_file(logs: Path) -> None:
    run = read_run(logs / "ppo" / "CartPole-v1_1" / "0.monitor.csv")
    assert len(run.series(RETURN)[0]) > 5


def test_evaluations(logs: Path) -> None:
    folder = logs / "trpo" / "CartPole-v1_1"
    run, raw = read_run(folder), np.load(folder / "evaluations.npz")
    np.testing.assert_array_equal(run.evaluations["timesteps"], raw["timesteps"])
    np.testing.assert_allclose(run.evaluations["mean"], raw["results"].mean(axis=1))


def test_damaged_evaluations_do_not_spoil_the_run(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text((logs / "trpo" / "CartPole-v1_1" / "progress.csv").read_text())
    (tmp_path / "evaluations.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.warns(UserWarning, match="evaluations.npz is left out, as it is empty or damaged"):
        assert read_run(tmp_path).evaluations.empty


@pytest.mark.parametrize(
    "arrays",
    [
        {"timesteps": [], "results": []},
        {"timesteps": [1, 2, 3], "results": [[1.0, 1.0], [1.0, 2.0]]},
        {"timesteps": [1, 2], "results": [[], []]},
        {"timesteps": 1, "results": 2.0},
    ],
)
def test_empty_and_mismatched_evaluations_do_not_spoil_the_run(arrays: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, [{STEPS: 10, RETURN: 1.0}])
    np.savez(tmp_path / "evaluations.npz", **arrays)
    with pytest.warns(UserWarning, match="evaluations.npz is left out, as it is empty or damaged"):
        run = read_run(tmp_path)
    assert run.evaluations.empty and run.series(RETURN)[1].tolist() == [1.0]


def test_every_metric_of_both_algorithms_is_read(logs: Path) -> None:
    """The real log has no column that reads as empty, but for what only one action space has."""
    for folder in [logs / "ppo" / "CartPole-v1_1", logs / "trpo" / "Pendulum-v1_1"]:
        run = read_run(folder)
        empty = [c for c in run.metrics if c != NONFINITE and run.metrics[c].isna().all()]
        assert empty == []
        assert run.algo == folder.parent.name and run.env == folder.name[:-2]


def test_configuration_of_the_zoo(tmp_path: Path) -> None:
    """``config.yml`` is an OrderedDict with a Python tag; ``args.yml`` names the environment and the seed."""
    write(tmp_path / "Ant-v4_3", [{STEPS: 1, "a/x": 1}])
    inner = tmp_path / "Ant-v4_3" / "Ant-v4"
    inner.mkdir()
    hyperparameters = OrderedDict(batch_size=48, normalize="{'norm_obs': True}", policy_kwargs={"net_arch": [8]})
    (inner / "config.yml").write_text(yaml.dump(hyperparameters))
    (inner / "args.yml").write_text(yaml.dump(OrderedDict(algo="trpo", env="Ant-v4", seed=7, n_timesteps=-1)))
    run = read_run(tmp_path / "Ant-v4_3")
    assert run.hyperparameters == dict(hyperparameters)
    assert (run.algo, run.env, run.facts["seed"]) == ("trpo", "Ant-v4", 7)


def test_yaml_of_other_authors_runs_no_code(tmp_path: Path) -> None:
    write(tmp_path, [{STEPS: 1, "a/x": 1}])
    (tmp_path / "config.yml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'owned'}']\nb: 2\n")
    assert read_run(tmp_path).hyperparameters["b"] == 2
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("text", ["{", "[1, 2", "a: b: c", "- 1"])
def test_damaged_configuration_is_passed_over(tmp_path: Path, text: str) -> None:
    write(tmp_path, [{STEPS: 1, "a/x": 1}])
    (tmp_path / "config.yml").write_text(text)
    (tmp_path / "provenance.json").write_text(text)
    assert read_run(tmp_path).hyperparameters == {}


def test_provenance_goes_before_the_zoo(tmp_path: Path) -> None:
    write(tmp_path, [{STEPS: 1, "a/x": 1}])
    (tmp_path / "config.yml").write_text("batch_size: 8\nnormalize: true\n")
    record = {"env_id": "Ant-v5", "requested_timesteps": 500, "finished": False, "hyperparameters": {"batch_size": 16}}
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    run = read_run(tmp_path)
    assert run.hyperparameters == {"batch_size": 16, "normalize": True}
    assert (run.env, run.facts["n_timesteps"], run.facts["finished"]) == ("Ant-v5", 500, False)


def test_folder_of_runs_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write(tmp_path / f"Ant-v4_{number}", [{STEPS: 1, "a/x": 1}])
    (tmp_path / "report").mkdir()
    assert [path.name for path in find_runs(tmp_path)] == ["Ant-v4_1", "Ant-v4_2", "Ant-v4_10"]
