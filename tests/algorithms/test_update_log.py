"""A row holds a rollout and its own update, and callbacks read the update's numbers during the next rollout, as in SB3."""

import json
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import DISABLED, KVWriter, Logger, configure, filter_excluded_keys
from toy_environments import toy

from sb3_policyopt import PPO, TRPO

STOCK: dict[type[Any], Any] = {PPO: StockPPO, TRPO: ContribTRPO}
N_STEPS, N_ENVS = 16, 2
ROLLOUT = N_STEPS * N_ENVS
SMALL: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 16, "seed": 0, "device": "cpu"}
both = pytest.mark.parametrize("cls", [PPO, TRPO])


class Rows(KVWriter):
    """An output of somebody's own, under a name that nobody here knows; it honours exclusions as SB3's do."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: Any, key_excluded: dict[str, Any], step: int = 0) -> None:
        assert key_values.keys() == key_excluded.keys()
        self.rows.append({"step": step, **filter_excluded_keys(key_values, key_excluded, "mine")})

    def close(self) -> None:
        pass


class Seen(BaseCallback):
    """What is readable at the start of each rollout, at each step and at the end; may dump by itself at some steps."""

    def __init__(self, dump_at: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.dump_at = dump_at

    def note(self) -> None:
        self.seen.append(dict(self.logger.name_to_value))

    def _on_rollout_start(self) -> None:
        self.note()

    def _on_step(self) -> bool:
        self.note()
        if self.n_calls in self.dump_at:
            self.logger.record("eval/mine", self.n_calls)
            self.logger.dump(self.num_timesteps)
            self.note()
        return True

    def _on_rollout_end(self) -> None:
        self.note()

    def _on_training_end(self) -> None:
        self.note()


def trained(
    cls: type[Any],
    callback: BaseCallback,
    n_rollouts: int = 4,
    algorithm_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    """A model after some rollouts, and the rows of its log."""
    output = Rows()
    model = cls("MlpPolicy", toy(n_envs=N_ENVS), **SMALL, **(algorithm_options or {}))
    model.set_logger(Logger(folder=None, output_formats=[output]))
    model.learn(n_rollouts * ROLLOUT, callback=callback, **options)
    return model, output.rows


SITUATIONS = {
    "alone": {},
    "every other iteration is logged": {"log_interval": 2},
    "nothing is logged": {"log_interval": None},
    "a callback dumps": {"dump_at": (20, 37)},
    "a callback dumps, and every other iteration is logged": {"dump_at": (3, 20, 37), "log_interval": 2},
    "a callback dumps, and nothing else": {"dump_at": (20, 50), "log_interval": None},
}


@pytest.mark.thinned(2)
@both
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_callbacks_read_what_they_read_in_sb3_and_each_update_is_written_once(
    cls: type[Any], engine: str, situation: dict[str, Any]
) -> None:
    options: dict[str, Any] = dict(situation)
    callbacks = [Seen(options.get("dump_at", ())) for _ in range(2)]
    options.pop("dump_at", None)
    trained(STOCK[cls], callbacks[0], **options)
    model, rows = trained(cls, callbacks[1], algorithm_options={"engine": engine}, **options)
    assert_same_readings(callbacks[0].seen, callbacks[1].seen, same_numbers=cls is PPO and engine == "autograd")
    assert_each_update_written_once(model, rows, options.get("log_interval", 1))


def assert_same_readings(theirs: list[dict[str, Any]], mine: list[dict[str, Any]], same_numbers: bool) -> None:
    """Moment by moment; the autograd engine of PPO draws the random numbers of SB3."""
    assert len(theirs) == len(mine) and any("train/value_loss" in seen for seen in theirs)
    for moment, (stock, ours) in enumerate(zip(theirs, mine, strict=True)):
        extra = {name for name in ours if not name.startswith("train/")} - stock.keys()
        assert stock.keys() <= ours.keys() and not extra, moment
        assert ("train/value_loss" in stock) == ("train/value_loss" in ours), moment
        for name in ("train/n_updates", "eval/mine"):
            assert stock.get(name) == ours.get(name), (moment, name)
        if same_numbers:
            for name in stock.keys() - {"train/loss", "train/approx_kl"}:  # SB3's are of the last minibatch and epoch
                assert ours[name] == pytest.approx(stock[name], rel=1e-3, abs=1e-5), (moment, name)


def assert_each_update_written_once(model: Any, rows: list[Any], log_interval: int | None) -> None:
    updates = [row["train/n_updates"] for row in rows if "train/n_updates" in row]
    assert updates == sorted(set(updates))
    for row in rows:  # a row has all of an update or nothing of it
        assert ("train/value_loss" in row) == ("train/n_updates" in row)
    if log_interval == 1:
        assert updates == [model._n_updates * k // 4 for k in (1, 2, 3, 4)]  # the last one too
        assert [row["step"] for row in rows if "train/n_updates" in row] == [ROLLOUT * k for k in (1, 2, 3, 4)]
        # Nor afterwards, by those who are used to write the last update of SB3 themselves.
        model.logger.record("time/now", 1)
        model.logger.dump(model.num_timesteps)
        assert rows[-1] == {"step": model.num_timesteps, "time/now": 1}


@both
def test_no_output_of_sb3_writes_an_update_twice(cls: type[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = cls("MlpPolicy", toy(n_envs=N_ENVS), **SMALL)
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "json", "csv", "tensorboard"]))
    model.learn(3 * ROLLOUT, callback=Seen(dump_at=(20, 37)))
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert ["eval/mine" in row for row in rows] == [False, True, False, True, False]
    assert ["train/value_loss" in row for row in rows] == [True, False, True, False, True]
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert text.count("value_loss") == 3 and text.count("mine") == 2
    table = (tmp_path / "progress.csv").read_text().splitlines()
    column = table[0].split(",").index("train/value_loss")
    assert [bool(line.split(",")[column : column + 1] not in ([], [""])) for line in table[1:]] == [
        True,
        False,
        True,
        False,
        True,
    ]
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train/value_loss")] == [ROLLOUT, 2 * ROLLOUT, 3 * ROLLOUT]


class Recording(BaseCallback):
    """Records under names of its own, some of them under ``train/``, in every way that the logger has."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[Any] = []

    def _on_rollout_start(self) -> None:
        self.first.append({name for name in self.logger.name_to_value if "mine" in name})

    def _on_step(self) -> bool:
        self.logger.record("train/mine", self.n_calls)
        self.logger.record_mean("train/mine_mean", float(self.n_calls))
        self.logger.record_mean("mine/mean", float(self.n_calls), exclude="mine")
        if self.n_calls < N_STEPS:
            self.logger.record("train/mine_once", 1)
        return True


@both
@pytest.mark.parametrize("log_interval", [1, 2])
def test_what_callbacks_record_is_written_and_forgotten_as_in_sb3(cls: type[Any], engine: str, log_interval: int) -> None:
    callbacks, tables = [Recording(), Recording()], []
    for callback, algorithm, options in zip(callbacks, (STOCK[cls], cls), ({}, {"engine": engine}), strict=True):
        _, rows = trained(algorithm, callback, algorithm_options=options, log_interval=log_interval)
        tables.append([{name: value for name, value in row.items() if "mine" in name or name == "step"} for row in rows])
    assert tables[0] == tables[1]
    assert {"train/mine", "train/mine_mean", "train/mine_once"} < tables[0][0].keys() and "mine/mean" not in tables[0][0]
    assert callbacks[0].first == callbacks[1].first


class Averaging(BaseCallback):
    """Averages under a name that the update records too."""

    def _on_step(self) -> bool:
        if self.num_timesteps > ROLLOUT:
            self.logger.record_mean("train/value_loss", 1e6)
        return True


@both
def test_a_mean_of_a_callbacks_own_under_an_updates_name(cls: type[Any]) -> None:
    """It does not mix with what was written, and the update's record ends it."""
    seen = Seen()
    _, rows = trained(cls, CallbackList([Averaging(), seen]), n_rollouts=2)
    assert [row["train/value_loss"] < 1e6 for row in rows] == [True, True]
    assert [values["train/value_loss"] for values in seen.seen[-N_STEPS - 2 : -2]] == [pytest.approx(1e6)] * N_STEPS


def with_odd_updates(base: type[Any]) -> type[Any]:
    """A subclass as users write it: numbers of its own in ``train``, one of them in odd updates only."""

    class Odd(base):
        def train(self) -> None:
            super().train()
            number = self.logger.name_to_value["train/n_updates"] // (10 if "PPO" in base.__name__ else 1)
            if number % 2:
                self.logger.record("losses/odd", number)
            for value in (1.0, 2.0):
                self.logger.record_mean("losses/mean", value * number)
            self.logger.record("losses/same", 15)

    return Odd


@both
@pytest.mark.parametrize("log_interval", [1, 2])
def test_a_train_that_records_more(cls: type[Any], log_interval: int) -> None:
    callbacks = [Seen(), Seen()]
    for callback, base in zip(callbacks, (STOCK[cls], cls), strict=True):
        _, rows = trained(with_odd_updates(base), callback, log_interval=log_interval)
    for stock, ours in zip(callbacks[0].seen, callbacks[1].seen, strict=True):
        for name in ("losses/odd", "losses/same"):
            assert stock.get(name) == ours.get(name)
        assert ("losses/mean" in stock) == ("losses/mean" in ours)
    numbers = [1, 2, 3, 4]
    if log_interval == 1:
        assert [row.get("losses/odd") for row in rows] == [1, None, 3, None]
        assert [row["losses/mean"] for row in rows] == [1.5 * number for number in numbers]
    else:  # the mean over the two updates since the last row
        assert [row["losses/mean"] for row in rows] == [pytest.approx(1.5 * 1.5), pytest.approx(1.5 * 3.5)]


@both
def test_evaluation_callbacks(cls: type[Any], engine: str) -> None:
    """They dump by themselves: SB3 writes the last update with the evaluation, and nobody reads it from then on."""
    seen = [Seen(), Seen()]
    for callback, algorithm, options in zip(seen, (STOCK[cls], cls), ({}, {"engine": engine}), strict=True):
        evaluation = EvalCallback(toy(n_envs=1, seed=1), eval_freq=20, n_eval_episodes=1, verbose=0, warn=False)
        _, rows = trained(algorithm, CallbackList([evaluation, callback]), algorithm_options=options)
    for stock, ours in zip(*(callback.seen for callback in seen), strict=True):
        for name in ("train/n_updates", "eval/mean_ep_length", "time/total_timesteps"):
            assert (name in stock) == (name in ours)
    assert [("eval/mean_reward" in row, "train/value_loss" in row) for row in rows] == [
        *((False, True), (True, False), (False, True), (True, False), (False, True), (True, False), (False, True)),
    ]


class Naive(BaseCallback):
    """As the maintainers advise: reads without asking whether it is there; SB3's dict answers 0 then."""

    def __init__(self, below: float) -> None:
        super().__init__()
        self.below = below

    def _on_step(self) -> bool:
        return self.num_timesteps <= ROLLOUT or not self.logger.name_to_value["train/value_loss"] < self.below


@both
@pytest.mark.parametrize("below", [-1.0, 1e9])
def test_stopping_by_the_value_loss(cls: type[Any], engine: str, below: float) -> None:
    models = [trained(STOCK[cls], Naive(below))[0], trained(cls, Naive(below), algorithm_options={"engine": engine})[0]]
    assert models[0].num_timesteps == models[1].num_timesteps == (4 * ROLLOUT if below < 0 else ROLLOUT + N_ENVS)


@both
def test_a_read_before_anything_was_recorded_is_no_number_of_an_update(cls: type[Any]) -> None:
    class Reading(BaseCallback):
        def _on_step(self) -> bool:
            assert self.logger.name_to_value["train/value_loss"] >= 0
            return True

    model = cls("MlpPolicy", toy(n_envs=N_ENVS), **SMALL)
    output = Rows()  # which, like SB3's own, wants as many exclusions as values
    model.set_logger(Logger(folder=None, output_formats=[output]))
    model.learn(2 * ROLLOUT, callback=Reading())
    assert all(row["train/value_loss"] > 0 for row in output.rows)


@both
def test_a_dump_logs_of_ones_own(cls: type[Any]) -> None:
    """It decides when a row is written; what it leaves is written later."""

    class Rarely(cls):
        def dump_logs(self, iteration: int = 0) -> None:
            if iteration == 3:
                super().dump_logs(iteration)

    seen = Seen()
    _, rows = trained(Rarely, seen)
    assert [row["train/n_updates"] for row in rows] == [30 if cls is PPO else 3]
    assert all("train/value_loss" in values for values in seen.seen[N_STEPS + 2 :])


@both
def test_a_disabled_logger(cls: type[Any]) -> None:
    model = cls("MlpPolicy", toy(n_envs=N_ENVS), **SMALL)
    output = Rows()
    model.set_logger(Logger(folder=None, output_formats=[output]))
    model.logger.set_level(DISABLED)
    model.learn(2 * ROLLOUT)
    assert output.rows == [] and model.logger.name_to_value["train/n_updates"] == (20 if cls is PPO else 2)
    model.logger.set_level(20)
    model.learn(ROLLOUT, reset_num_timesteps=False)
    assert [row["train/n_updates"] for row in output.rows] == [30 if cls is PPO else 3]


@both
def test_a_logger_that_a_callback_replaces(cls: type[Any]) -> None:
    class Replacing(BaseCallback):
        outputs: list[Any] = []

        def _on_rollout_start(self) -> None:
            self.outputs.append(Rows())
            self.model.set_logger(Logger(folder=None, output_formats=[self.outputs[-1]]))

        def _on_step(self) -> bool:
            return True

    callback = Replacing()
    callback.outputs = []
    trained(cls, callback, n_rollouts=3)
    assert [[row["time/iterations"] for row in output.rows] for output in callback.outputs] == [[1], [2], [3]]
