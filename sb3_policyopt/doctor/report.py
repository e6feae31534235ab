"""Applies the rules to a run and puts the result into words."""

import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sb3_policyopt.doctor.rule import Finding
from sb3_policyopt.doctor.rules import RULES
from sb3_policyopt.plots.runs import STEPS, Run

_WIDTH = 110


@dataclass(frozen=True)
class Report:
    """
    What the rules say of a run.

    :param run: the run
    :param findings: in the order of the rules, errors first
    :param made: names of the rules that were applied
    :param not_made: names of the algorithm's other rules, for which the log or the settings lack something
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
    :raises ValueError: when the run has no update to judge
    """
    log, settings = run.metrics, settings_of(run)
    if not any(name.startswith("train/") and log[name].notna().any() for name in log):
        raise ValueError(f"{run.path} cannot be judged: its log holds no update (no train/ column with a value).")
    relevant = RULES["common"] + [rule for algo in ("ppo", "trpo") if run.algo in (algo, "") for rule in RULES[algo]]
    made = [rule for rule in relevant if rule.applies(log, settings)]
    findings = [replace(found, rule=rule.name) for rule in made if (found := rule.check(log, settings))]
    findings.sort(key=lambda finding: finding.severity != "error")
    names = tuple(rule.name for rule in made)
    return Report(run, tuple(findings), names, tuple(rule.name for rule in relevant if rule.name not in names))


def settings_of(run: Run) -> Mapping[str, Any]:
    """
    Everything known of how the run was made. Arguments that its configuration does not name have the constructor's default.

    :param run: the run
    :return: hyperparameters and facts by name; no defaults where the configuration is missing altogether
    """
    from sb3_policyopt import PPO, TRPO

    algorithm = {"ppo": PPO, "trpo": TRPO}.get(run.algo)
    if not run.hyperparameters or algorithm is None:
        return {**run.facts, **run.hyperparameters}
    parameters = inspect.signature(algorithm).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **run.facts, **run.hyperparameters}


def to_text(report: Report) -> str:
    """
    The report in plain sentences.

    :param report: of one run
    :return: several lines without a trailing newline
    """
    run = report.run
    subject = f"{run.algo.upper() or 'unknown algorithm'}{f' on {run.env}' if run.env else ''}"
    steps = int(run.metrics[STEPS].max()) if len(run.metrics) else 0
    parts = [f"{run.path}: {subject}, {steps} steps"]
    parts += [_finding_to_text(finding) for finding in report.findings]
    verdict = f"Findings: {len(report.findings)}." if report.findings else "Healthy: nothing looks wrong."
    checks = f"Checks made: {len(report.made)}."
    if report.not_made:
        checks += f" Nothing to look at for: {', '.join(report.not_made)}."
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
