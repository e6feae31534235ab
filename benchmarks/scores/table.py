"""Write the tables of docs/scores.md, and the one of README.md, from the CSV file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.scores import entries
from benchmarks.scores.entries import SHIPPED
from benchmarks.scores.groups import Group, group, is_shipped, stock_for
from benchmarks.scores.published import GOOD_MODE, PUBLISHED, SOURCES
from benchmarks.scores.runs import OURS, SEARCH_SEEDS, STOCK, Row
from benchmarks.scores.statistics import mean_improvement, probability_of_improvement, stratified_interval

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT, README = REPOSITORY / "docs" / "scores.md", REPOSITORY / "README.md"
MUJOCO = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Reacher", "Pusher", "Inverted", "Humanoid")
EARLIER = "an earlier entry"
"""Stands for ``shipped`` in the name of an entry that was so once. Those of stock runs were rl-zoo3's."""

HEADER = [
    "environment",
    "",
    "steps",
    "seeds",
    "IQM [95%]",
    "good mode",
    "stock: IQM (seeds, entry)",
    "P(better)",
    "published",
    "minutes",
    "every seed",
]


def number(value: float) -> str:
    """With a thousands separator, and digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def main_table(rows: Sequence[Row]) -> str:
    """
    One line for each shipped entry that was trained: MuJoCo first, then the others.

    :param rows: of the CSV file
    :return: Markdown
    """
    groups = group(rows)
    shipped = [found for found in groups if is_shipped(found)]
    shipped.sort(key=lambda found: (place(found.env_id), found.env_id, found.algo))
    lines = [
        "| " + " | ".join(HEADER) + " |",
        "|---|---|" + "---:|" * (len(HEADER) - 3) + "---|",
        *(_line(found, stock_for(found, groups)) for found in shipped),
    ]
    return "\n".join(lines) + "\n\n" + _over_all(shipped, groups)


def summary_table(rows: Sequence[Row]) -> str:
    """
    One line for each MuJoCo environment with a shipped entry that was trained, with both algorithms beside each other.

    :param rows: of the CSV file
    :return: Markdown
    """
    shipped = {(found.env_id, found.algo): found for found in group(rows) if is_shipped(found)}
    environments = {env_id for env_id, _ in shipped if place(env_id) < len(MUJOCO)}
    lines = ["| | PPO | published | TRPO | published | minutes |", "|---|---:|---:|---:|---:|---:|"]
    for env_id in sorted(environments, key=lambda name: (place(name), name)):
        ppo, trpo = shipped.get((env_id, "ppo")), shipped.get((env_id, "trpo"))
        cells = [env_id, _reached(ppo), _best("ppo", env_id), _reached(trpo), _best("trpo", env_id)]
        lines.append("| " + " | ".join([*cells, f"{_minutes(ppo)}, {_minutes(trpo)}"]) + " |")
    return "\n".join(lines)


def _reached(found: Group | None) -> str:
    """The interquartile mean, and what is not ten seeds after 1,000,000 steps."""
    if found is None:
        return ""
    seeds = [] if len(found.rows) == 10 else [f"{len(found.rows)} seed{'s' if len(found.rows) > 1 else ''}"]
    steps = [] if found.n_timesteps == 1_000_000 else [f"{found.n_timesteps:,} steps"]
    return number(found.iqm) + (f" ({', '.join(seeds + steps)})" if seeds + steps else "")


def _minutes(found: Group | None) -> str:
    """Of the shortest training, if it is known."""
    return "" if found is None or found.minutes is None else f"{found.minutes:.1f}"


def _best(algo: str, env_id: str) -> str:
    """The published figure."""
    published = PUBLISHED.get((algo, env_id))
    return "" if published is None else number(published.mean)


def place(env_id: str) -> int:
    """Order of the environments: MuJoCo's best known ones first."""
    return next((index for index, name in enumerate(MUJOCO) if env_id.startswith(name)), len(MUJOCO))


def _line(found: Group, stock: Group | None) -> str:
    interval = f" [{number(found.interval[0])}, {number(found.interval[1])}]" if len(found.rows) > 1 else ""
    threshold = GOOD_MODE.get(found.env_id)
    good = "" if threshold is None else f"{np.sum(found.returns >= threshold)} of {len(found.rows)}"
    beside, better = "", ""
    if stock is not None:
        same = stock.rows[0]["entry_hash"] == found.rows[0]["entry_hash"]
        beside = f"{number(stock.iqm)} ({len(stock.rows)}, {'the same' if same else 'another'})"
        better = f"{probability_of_improvement(found.returns, stock.returns):.2f}"
    published = PUBLISHED.get((found.algo, found.env_id))
    theirs = ""
    if published is not None:
        spread = "" if published.spread is None else f" ± {number(published.spread)}"
        steps = "" if published.n_timesteps == found.n_timesteps else f" at {published.n_timesteps:,}"
        theirs = f"{number(published.mean)}{spread} ({published.source}){steps}"
    seeds = ", ".join(number(value) for value in found.returns)
    cells = [found.env_id, found.algo.upper(), f"{found.n_timesteps:,}", str(len(found.rows)), number(found.iqm) + interval]
    return "| " + " | ".join([*cells, good, beside, better, theirs, _minutes(found), seeds]) + " |"


def _over_all(shipped: Sequence[Group], groups: Sequence[Group]) -> str:
    """The probability of improvement over stock, averaged over environments where both have several seeds."""
    sentences = []
    for algo in ("ppo", "trpo"):
        pairs = []
        for found in shipped:
            stock = stock_for(found, groups)
            if found.algo == algo and stock is not None and min(len(found.rows), len(stock.rows)) > 1:
                pairs += [found.returns, stock.returns]
        if pairs:
            low, high = stratified_interval(mean_improvement, pairs)
            sentences.append(
                f"{algo.upper()}: where several seeds of ours and of the stock implementation ran here "
                f"({len(pairs) // 2} of the environments), the mean probability of improvement is "
                f"{mean_improvement(pairs):.2f} [{low:.2f}, {high:.2f}]."
            )
    return "\n".join(sentences)


def list_of(groups: Sequence[Group]) -> list[str]:
    """Lines of a table of entries and their seeds, the best of each environment first."""
    lines = ["| environment | | entry | steps | seeds | minutes | return of each |", "|---|---|---|---:|---|---:|---|"]
    for found in sorted(groups, key=lambda found: (place(found.env_id), found.env_id, found.algo, -found.iqm)):
        seeds = ", ".join(row["seed"] for row in found.rows)
        returns = ", ".join(number(value) for value in found.returns)
        cells = [found.env_id, found.algo.upper(), f"`{name_of(found)}`", f"{found.n_timesteps:,}", seeds]
        lines.append("| " + " | ".join([*cells, _minutes(found), returns]) + " |")
    return lines


def name_of(found: Group) -> str:
    """The name of the entry, without calling shipped what was so once."""
    name = found.rows[0]["entry"]
    if not name.startswith(SHIPPED):
        return name
    listed = entries.is_listed(found.algo, found.env_id)
    still = listed and entries.identity(entries.load(found.algo, found.env_id, name)) == found.rows[0]["entry_hash"]
    return name if still else name.replace(SHIPPED, EARLIER)


def stock_table(rows: Sequence[Row]) -> str:
    """
    What SB3's PPO and sb3-contrib's TRPO were trained with.

    :param rows: of the CSV file
    :return: Markdown
    """
    return "\n".join(list_of([found for found in group(rows) if found.rows[0]["implementation"] == STOCK]))


def tried_table(rows: Sequence[Row]) -> str:
    """
    What was trained beside the shipped entries: candidates, searches, earlier entries.

    :param rows: of the CSV file
    :return: Markdown
    """
    lines = list_of([found for found in group(rows) if found.rows[0]["implementation"] == OURS and not is_shipped(found)])
    hours = sum(float(row["wall_seconds"] or 0) for row in rows if int(row["seed"]) >= SEARCH_SEEDS) / 3600
    return "\n".join(
        [*lines, "", f"Trainings with seeds from {SEARCH_SEEDS} on chose the entries; they took {hours:.1f} core-hours."]
    )


def sources() -> str:
    """Where the published figures are from."""
    return "\n".join(f"- {name}: [{source.title}]({source.url}): {source.description}." for name, source in SOURCES.items())


def write(rows: Sequence[Row], document: Path = DOCUMENT, readme: Path = README) -> None:
    """
    Put the tables between their marks, ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    :param rows: of the CSV file
    :param document: has marks for table, stock, tried and sources
    :param readme: has marks for scores
    """
    put(document, table=main_table(rows), stock=stock_table(rows), tried=tried_table(rows), sources=sources())
    put(readme, scores=summary_table(rows))


def put(document: Path, **contents: str) -> None:
    """
    Replace what stands between marks.

    :param document: Markdown
    :param contents: by the name of the mark
    :raises ValueError: if the document lacks a mark
    """
    text = document.read_text(encoding="utf-8")
    for name, content in contents.items():
        before, _, rest = text.partition(f"<!-- {name} -->")
        _, found, after = rest.partition(f"<!-- end of {name} -->")
        if not found:
            raise ValueError(f"{document} lacks <!-- {name} --> ... <!-- end of {name} -->")
        text = f"{before}<!-- {name} -->\n{content}\n<!-- end of {name} -->{after}"
    document.write_text(text, encoding="utf-8")
