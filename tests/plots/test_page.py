import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from sb3_policyopt.plots import plot_run, plot_runs
from sb3_policyopt.plots.experiments import group
from sb3_policyopt.plots.page import make_figure
from sb3_policyopt.plots.panels import PPO_PANELS, TRPO_PANELS
from sb3_policyopt.plots.runs import RETURN, STEPS, read_run

HEADER = f"{STEPS},rollout/ep_rew_mean,train/clip_fraction,train/approx_kl,train/explained_variance"


def figure_of(*paths: Any, pool_seeds: bool = True) -> Any:
    return make_figure([read_run(path) for path in paths], pool_seeds)


def axes_by_title(figure: Any) -> Any:
    return {axes.get_title(loc="left"): axes for axes in figure.get_axes() if axes.get_title(loc="left")}


def texts(figure: Any) -> Any:
    legends = [axes.get_legend() for axes in figure.get_axes() if axes.get_legend()]
    return "\n".join(text.get_text() for legend in legends for text in legend.get_texts())


def write_log(folder: Path, *rows: Any, header: Any = HEADER) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "progress.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_picture_is_written_where_asked(logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "page.pdf"
    assert plot_run(logs / "trpo" / "CartPole-v1_1", out) == out
    assert out.stat().st_size > 5000


def test_picture_holds_the_colours_of_both_algorithms(logs: Path, tmp_path: Path) -> None:
    out = plot_runs([logs / "ppo" / "CartPole-v1_1", logs / "trpo" / "CartPole-v1_1"], tmp_path / "page.png")
    pixels = matplotlib.image.imread(out)[..., :3].reshape(-1, 3)
    for color in ("#0072B2", "#D55E00"):
        assert np.any(np.all(np.abs(pixels - to_rgb(color)) < 0.02, axis=1))


def test_every_trpo_panel_shows_the_log(logs: Path) -> None:
    """All panels but that of an outcome draw the numbers of the log; a CartPole policy has no standard deviation."""
    run = read_run(logs / "trpo" / "Pendulum-v1_1")
    axes = axes_by_title(figure_of(run.path))
    for panel in TRPO_PANELS:
        if panel.column == "train/is_line_search_success":
            continue
        drawn = [line.get_ydata() for line in axes[panel.title].get_lines()]
        for column in (panel.column, *(column for column, _, _ in panel.companions)):
            assert any(np.array_equal(line, run.series(column)[1]) for line in drawn), column


def test_every_ppo_panel_shows_the_log(logs: Path) -> None:
    run = read_run(logs / "ppo" / "CartPole-v1_1")
    axes = axes_by_title(figure_of(run.path))
    for panel in PPO_PANELS:
        if panel.column == "train/std":
            assert panel.title not in axes
        else:
            drawn = [line.get_ydata() for line in axes[panel.title].get_lines()]
            assert any(np.array_equal(line, panel.scale * run.series(panel.column)[1]) for line in drawn), panel.column


@pytest.mark.fast
def test_learning_curve_and_evaluations(logs: Path) -> None:
    run = read_run(logs / "ppo" / "CartPole-v1_1")
    axes = axes_by_title(figure_of(run.path))["Learning curve: CartPole-v1"]
    drawn = [line.get_ydata() for line in axes.get_lines()]
    assert any(np.array_equal(line, run.series(RETURN)[1]) for line in drawn)
    assert any(np.array_equal(line, run.evaluations["mean"]) for line in drawn)


WORDS = f"{STEPS},train/is_line_search_success,train/line_search_reason"
INDICATORS = f"{STEPS},train/is_line_search_success,train/line_search_kl_exceeded,train/line_search_zero_step"


@pytest.mark.parametrize(
    "lines",
    [
        [INDICATORS, "1,1,0,0", "2,0,1,0", "3,1,0,0", "4,1,0,0"],
        [INDICATORS, "1,0.5,0.5,0", "2,1,0,0"],  # means over two updates each, as `record_mean` makes them
        [WORDS, "1,1.0,accepted", "2,0.0,kl_exceeded", "3,1.0,accepted", "4,1.0,accepted"],  # an earlier version
        [WORDS, "1,1.0,accepted", "2,0.0,kl_exceeded", INDICATORS, "3,1,0,0", "4,1,0,0"],  # resumed with this one
    ],
    ids=["indicators", "means", "words", "words, then indicators"],
)
def test_outcomes_of_the_line_search(tmp_path: Path, lines: Any) -> None:
    axes = axes_by_title(figure_of(write_log(tmp_path, *lines[1:], header=lines[0])))["Line search: outcomes (% of updates)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["accepted", "kl exceeded"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([75, 25])


def test_outcomes_of_sb3_contrib_which_gives_no_reason(tmp_path: Path) -> None:
    run = write_log(tmp_path, "1,1.0", "2,0.0", header=f"{STEPS},train/is_line_search_success")
    axes = axes_by_title(figure_of(run))["Line search: outcomes (% of updates)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["accepted", "rejected"]


def test_seeds_are_pooled_into_one_curve(logs: Path) -> None:
    paths = sorted((logs / "ppo").iterdir())
    assert "2 runs" in texts(figure_of(*paths))
    pooled, alone = (group([read_run(path) for path in paths], pool) for pool in (True, False))
    assert [e.label for e in pooled] == ["PPO"]
    assert [e.label for e in alone] == ["PPO, CartPole-v1_1", "PPO, CartPole-v1_2"]
    panel = axes_by_title(figure_of(*paths))["Clipped samples (fraction)"]
    assert len(panel.collections) == 1  # the band


def test_other_hyperparameters_are_another_experiment(tmp_path: Path) -> None:
    for number, batch_size in [(1, 64), (2, 64), (3, 32)]:
        folder = write_log(tmp_path / "ppo" / f"Ant-v4_{number}", "1,2,0.1,0.2,0.3")
        (folder / "config.yml").write_text(f"batch_size: {batch_size}\nseed: {number}\n")
    experiments = group([read_run(path) for path in sorted((tmp_path / "ppo").iterdir())])
    assert {e.label: len(e.runs) for e in experiments} == {"PPO, batch_size=64": 2, "PPO, batch_size=32": 1}


def test_other_log_folder_is_another_experiment(tmp_path: Path) -> None:
    runs = [read_run(write_log(tmp_path / root / "ppo" / "Ant-v4_1", "1,2,0.1,0.2,0.3")) for root in ("old", "new")]
    assert [e.label for e in group(runs)] == ["PPO, old", "PPO, new"]


def test_environments_and_algorithms_in_the_labels(logs: Path) -> None:
    runs = [logs / "trpo" / "CartPole-v1_1", logs / "trpo" / "Pendulum-v1_1", logs / "ppo" / "CartPole-v1_1"]
    assert [e.label for e in group([read_run(r) for r in runs])] == ["TRPO, CartPole-v1", "TRPO, Pendulum-v1", "PPO"]


def test_many_runs_have_distinct_colours_and_labels(tmp_path: Path) -> None:
    runs = [read_run(write_log(tmp_path / f"run{i}", "1,2,0.1,0.2,0.3")) for i in range(12)]
    experiments = group(runs)
    assert len({tuple(e.color) for e in experiments}) == len({e.label for e in experiments}) == 12


@pytest.mark.parametrize(
    "rows",
    [
        ["1,2,0.1,0.2,0.3"],
        ["1,2,,,", "2,3,,,"],
        ["1,,0.1,nan,inf", "2,,0.2,nan,-inf"],
        ["1,2,0.1,0.2,word", "2,2,word,0.2,other"],
        [f"{i},{-i},0,1e-300,1e300" for i in range(500)],
        ["5,1,0.1,0.2,0.3", "5,2,0.1,0.2,0.3", "4,1,0.1,0.2,0.3"],
    ],
    ids=["one row", "no metrics", "nan", "words", "extremes", "steps repeated and out of order"],
)
def test_odd_logs_are_drawn(tmp_path: Path, rows: Any) -> None:
    logs = {"Odd-v0_1": rows, "Odd-v0_2": rows[:1], "x": rows}  # two runs of one experiment, one alone
    runs = [write_log(tmp_path / name, *lines) for name, lines in logs.items()]
    assert plot_runs(runs, tmp_path / "page.png").exists()


def test_evaluations_alone_are_drawn(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluations.npz").write_bytes((logs / "ppo" / "CartPole-v1_1" / "evaluations.npz").read_bytes())
    assert plot_run(tmp_path, tmp_path / "page.png").exists()


@pytest.mark.fast
def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_run(write_log(tmp_path, "1,100", header=f"{STEPS},time/fps"), tmp_path / "page.png")


@pytest.mark.fast
def test_metrics_of_an_unknown_algorithm(tmp_path: Path) -> None:
    folder = tmp_path / "ppo" / "A-v0_1"
    for run in (tmp_path / "mine", folder):
        run.mkdir(parents=True)
        write_log(run, "10,0.01", "20,0.02", header=f"{STEPS},train/approx_kl")
    with pytest.raises(ValueError, match=r"no return, and the algorithm is unknown.*such as ppo or trpo"):
        plot_run(tmp_path / "mine", tmp_path / "page.png")
    assert plot_run(folder, tmp_path / "page.png").exists()  # whose folder has the algorithm's name


def test_unknown_format(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in one of \.png, \.pdf"):
        plot_run(logs / "ppo" / "CartPole-v1_1", tmp_path / "page.docx")


def write_run(folder: Path, end: int, first: int = 1000, **facts: Any) -> Path:
    rows = [f"{step},{step / 1000},0.1,0.01,0.5" for step in range(first, end + 1, 1000)]
    write_log(folder, *rows)
    recorded = {"algorithm": "sb3_policyopt.ppo.PPO", "env_id": "CartPole-v1", "hyperparameters": {"n_steps": 64}, **facts}
    (folder / "provenance.json").write_text(json.dumps(recorded))
    return folder


def test_a_run_that_was_continued_in_another_folder_counts_once(tmp_path: Path) -> None:
    """The zoo's second folder of a resumed run holds the whole log."""
    part = write_run(tmp_path / "ppo" / "CartPole-v1_1", 10_000, seed=3, finished=False)
    whole = write_run(tmp_path / "ppo" / "CartPole-v1_2", 40_000, seed=3, finished=True, start_timesteps=10_000)
    other = write_run(tmp_path / "ppo" / "CartPole-v1_3", 40_000, seed=4, finished=True)
    (experiment,) = group([read_run(path) for path in (part, whole, other)])
    assert [run.path.name for run in experiment.runs] == ["CartPole-v1_2", "CartPole-v1_3"]
    assert len(group([read_run(path) for path in (part, whole, other)], pool_seeds=False)) == 3


def test_a_second_call_of_learn_with_a_log_of_its_own_is_a_run_of_its_own(tmp_path: Path) -> None:
    """Its log begins where the first one ends, so that leaving the first one out would lose it."""
    first = write_run(tmp_path / "ppo" / "CartPole-v1_1", 10_000, seed=3, finished=True)
    second = write_run(tmp_path / "ppo" / "CartPole-v1_2", 40_000, first=11_000, seed=3, finished=True, start_timesteps=10_000)
    (experiment,) = group([read_run(first), read_run(second)])
    assert len(experiment.runs) == 2


def test_unfinished_runs_among_finished_ones_are_drawn_but_not_pooled(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "ppo" / f"CartPole-v1_{seed}", 40_000, seed=seed, finished=True) for seed in (1, 2)]
    paths.append(write_run(tmp_path / "ppo" / "CartPole-v1_3", 5_000, seed=3, finished=False))
    figure = figure_of(*paths)
    legend = texts(figure)
    assert "3 runs, 1 of them unfinished and left out; last 10%: 38" in legend  # the mean of 36 to 40
    curve = figure.get_axes()[0]
    assert max(line.get_xdata()[-1] for line in curve.get_lines() if line.get_linewidth() > 1) == 40_000
    assert any(line.get_xdata()[-1] == 5_000 for line in curve.get_lines())
    legend = texts(figure_of(paths[-1], write_run(tmp_path / "ppo" / "CartPole-v1_4", 4_000, seed=4, finished=False)))
    assert "2 runs; last 10%" in legend
