"""From the measurements to Markdown tables: medians, with the quartiles of speeds and ratios as their spread."""

from statistics import median, quantiles
from typing import Any

from benchmarks.cases import FLOOR_CASES, FLOORS

PARTS = ("environment", "policy", "buffer", "update")
Summary = tuple[float, float, float]
"""Median, lower and upper quartile."""


def summary(values: list[float]) -> Summary | None:
    """
    :param values: one for each turn, or for each process
    :return: median and quartiles (of few values the smallest and the largest); None without any value
    """
    if len(values) < 4:
        return (median(values), min(values), max(values)) if values else None
    lower, middle, upper = quantiles(values, n=4)
    return middle, lower, upper


def good(case: dict[str, Any], contender: str) -> list[dict[str, Any]]:
    """The measurements of a contender that did not fail."""
    return [measurement for measurement in case["measurements"].get(contender, []) if "error" not in measurement]


def values(case: dict[str, Any], contender: str, key: str) -> list[float]:
    """One measured value of a contender, from each of its processes."""
    return [measurement[key] for measurement in good(case, contender)]


def speeds(case: dict[str, Any], contender: str, clock: str = "steps_per_second") -> list[float]:
    """Speeds of a contender in its turns; empty where it made its first iteration alone."""
    return [turn[clock] for measurement in good(case, contender) for turn in measurement["turns"]]


def speed_ratio(case: dict[str, Any], contender: str, clock: str = "steps_per_second") -> Summary | None:
    """
    :param case: of the results
    :param contender: whom to compare the first contender with
    :param clock: "steps_per_second", or "steps_per_cpu_second" where other processes disturbed the measurement
    :return: ratio of steady speeds, first contender over this one, of neighbouring turns
    """
    first = next(iter(case["measurements"]))
    processes = zip(case["measurements"][first], case["measurements"][contender], strict=False)
    turns = [pair for a, b in processes for pair in zip(a["turns"], b["turns"], strict=False)]
    return summary([a[clock] / b[clock] for a, b in turns])


def split(case: dict[str, Any], contender: str) -> dict[str, float]:
    """Median microseconds per environment step, by part."""
    parts = [measurement.get("microseconds_per_step") for measurement in good(case, contender)]
    return {part: median([one[part] for one in parts]) for part in PARTS} if parts and all(parts) else {}


def shown(value: Summary | None, form: str = ".1f") -> str:
    """``median (lower quartile-upper quartile)``."""
    if value is None:
        return "–"
    middle, least, most = (format(number, form) for number in value)
    return middle if least == most else f"{middle} ({least}–{most})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def floors_table(results: dict[str, Any], clock: str = "steps_per_second") -> str:
    """The ratios that must be held: ``reached (spread) / floor``, with a cross where it is missed; arguments as elsewhere."""
    rows = []
    tasks = [case.title.split(" ", 1)[1] for case in FLOOR_CASES[:4]]
    for (algorithm, contender), floors in FLOORS.items():
        cells = []
        cases = [case for case in FLOOR_CASES if case.name.startswith(algorithm)]
        for case, floor in zip(cases, floors, strict=True):
            measured = results["cases"].get(case.name)
            ratio = speed_ratio(measured, contender, clock) if measured else None
            cells.append("–" if ratio is None else f"{shown(ratio)} / {floor}" + (" ✗" if ratio[0] < floor else " ✓"))
        if any(cell != "–" for cell in cells):
            rows.append([f"{algorithm.upper()} / {contender}", *cells])
    return table(["reached / floor", *tasks], rows)


def case_rows(case: dict[str, Any], clock: str) -> list[list[str]]:
    """One row for each contender."""
    rows = []
    for contender in case["measurements"]:
        parts = split(case, contender)
        ratio = speed_ratio(case, contender, clock) if contender != next(iter(case["measurements"])) else None
        rows.append([
            case["title"],
            contender,
            shown(summary(speeds(case, contender, clock)), ",.0f") if good(case, contender) else "failed",
            shown(ratio, ".2f"),
            shown(summary(values(case, contender, "first_update_seconds"))),
            *(f"{parts[part]:.0f}" if parts else "–" for part in PARTS),
            shown(summary(values(case, contender, "peak_memory_mib")), ",.0f"),
        ])  # fmt: skip
    return rows


def markdown(results: dict[str, Any], clock: str = "steps_per_second") -> str:
    """All tables, under a heading for each group."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"Measured {machine['date']} on {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {packages}.",
        "Median over turns of about a second, with the quartiles in parentheses. *ratio*: speed of the first contender over "
        "this one, of neighbouring turns. *first update*: seconds from the constructor to the end of the first iteration. "
        "The parts are µs per environment step; *buffer* holds the rest of the rollout as well.",
    ]
    groups = dict.fromkeys(case["group"] for case in results["cases"].values())
    if "floors" in groups:
        lines.append(floors_table(results, clock))
    header = [
        "case",
        "",
        "steps/s" if clock == "steps_per_second" else "steps per s of CPU",
        "ratio",
        "first update, s",
        *PARTS,
        "peak memory, MiB",
    ]
    for group in groups:
        rows = [row for case in results["cases"].values() if case["group"] == group for row in case_rows(case, clock)]
        lines += [f"## {group.capitalize()}", table(header, rows)]
    return "\n\n".join(lines) + "\n"


def failures(results: dict[str, Any]) -> list[str]:
    """What went wrong, one line for each failed measurement."""
    return [
        f"{name}, {contender}: {measurement['error'].strip().splitlines()[-1]}"
        for name, case in results["cases"].items()
        for contender, measurements in case["measurements"].items()
        for measurement in measurements
        if "error" in measurement
    ]
