"""Applies the rules to a run and formats the result as text."""

import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sb3_policyopt import registry
from sb3_policyopt.doctor.rule import Finding
from sb3_policyopt.doctor.rules import rules_of
from sb3_policyopt.plots.runs import STEPS, Run
from sb3_policyopt.saving.constructors import parameters_of

_WIDTH = 110
_PAUSE = 600.0
"""Seconds without a new row after which a run counts as stopped."""


@dataclass(frozen=True)
class Report:
    """
    The result of the rules for a run.

    :param run: the run
    :param findings: in the order of the rules, errors first
    :param made: names of the rules that were applied
    :param not_made: names of the algorithm's other rules, which need metrics or settings that the run does not have
    """

    run: Run
    findings: tuple[Finding, ...]
    made: tuple[str, ...]
    not_made: tuple[str, ...]


def examine(run: Run) -> Report:
    """
    Apply every rule to a run.

    :param run: with a csv log of at least one row
    :return: the report
    :raises ValueError: when the log contains no update
    """
    log, settings = run.metrics, settings_of(run)
    if not any(name.startswith("train/") and log[name].notna().any() for name in log):
        raise ValueError(f"{run.path} cannot be judged: its log holds no update (no train/ column with a value).")
    relevant = rules_of(run.algo)
    made = [rule for rule in relevant if rule.applies(log, settings)]
    findings = [replace(found, rule=rule.name) for rule in made if (found := rule.check(log, settings))]
    findings.sort(key=lambda finding: finding.severity != "error")
    names = tuple(rule.name for rule in made)
    return Report(run, tuple(findings), names, tuple(rule.name for rule in relevant if rule.name not in names))


def settings_of(run: Run) -> Mapping[str, object]:
    """
    Collect the settings of a run. Arguments that its configuration does not name have the constructor's default.

    :param run: the run
    :return: hyperparameters and facts by name; without defaults if there is no configuration
    """
    masks = run.algo in registry.ALGORITHMS and registry.find(run.algo).masks
    masks = masks or "Maskable" in str(run.hyperparameters.get("policy"))
    facts = {**run.facts, "env": run.env or None, "masks": masks, "still_runs": still_runs(run)}
    if not run.hyperparameters or run.algo not in registry.ALGORITHMS:
        return {**facts, **run.hyperparameters}
    parameters = parameters_of(registry.find(run.algo).load_class()).values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **facts, **run.hyperparameters}


def still_runs(run: Run) -> bool:
    """
    Whether a run is under way: it is not recorded as finished, and its log was written a moment ago.

    :param run: the run
    :return: False also where nothing is recorded
    """
    log = run.path / "progress.csv" if run.path.is_dir() else run.path
    return run.facts.get("finished") is False and log.is_file() and time.time() - log.stat().st_mtime < _PAUSE


def to_text(report: Report) -> str:
    """
    Format a report as text.

    :param report: of one run
    :return: several lines without a trailing newline
    """
    run = report.run
    subject = f"{registry.title(run.algo) or 'unknown algorithm'}{f' on {run.env}' if run.env else ''}"
    steps = int(run.metrics[STEPS].max()) if len(run.metrics) else 0
    parts = [f"{run.path}: {subject}, {steps} steps"]
    parts += [_finding_to_text(finding) for finding in report.findings]
    verdict = f"Findings: {len(report.findings)}." if report.findings else "Healthy: nothing looks wrong."
    checks = f"Checks made: {len(report.made)}."
    if report.not_made:
        checks += f" No data for: {', '.join(report.not_made)}."
    parts.append(textwrap.fill(f"{verdict} {checks}", _WIDTH))
    return "\n\n".join(parts)


def _finding_to_text(finding: Finding) -> str:
    lines = (
        (f"{finding.severity.upper()}: ", f"{finding.what} [{finding.rule}]"),
        ("  Seen:   ", finding.evidence),
        ("  Try:    ", finding.advice),
        ("  Source: ", finding.source),
    )
    return "\n".join(textwrap.fill(head + text, _WIDTH, subsequent_indent=" " * len(head)) for head, text in lines)
