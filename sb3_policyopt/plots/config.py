"""The configuration of a run: rl-zoo3's ``config.yml`` and ``args.yml``, and this package's ``provenance.json``."""

import json
from pathlib import Path

from sb3_policyopt.hyperparams.zoo_yaml import NamingLoader, load_plain

_NAMES = {"env_id": "env", "requested_timesteps": "n_timesteps"}
"""Names in ``provenance.json`` that differ from rl-zoo3's."""


def read_config(folder: Path) -> tuple[dict[str, object], dict[str, object]]:
    """
    Read the configuration of a run.

    Files that are missing or damaged are skipped: a run can be drawn without its seed.

    :param folder: run folder of the zoo's layout, ``{env}_{n}/{env}/config.yml``; the files may also lie in the folder itself
    :return: the hyperparameters under their own names, and the facts of this one run, among them ``algo``, ``env``, ``seed``,
        ``finished`` where known
    """
    arguments, provenance = _read_yaml(_locate(folder, "args.yml")), _read_json(_locate(folder, "provenance.json"))
    hyperparameters = _read_yaml(_locate(folder, "config.yml")) | _dict(provenance.get("hyperparameters"))
    facts = _from_monitor(folder) | {key: arguments[key] for key in ("algo", "env", "seed") if arguments.get(key) is not None}
    n_timesteps = arguments.get("n_timesteps")
    if isinstance(n_timesteps, int) and n_timesteps > 0:  # the command line overrides the configuration
        hyperparameters["n_timesteps"] = n_timesteps
    plain = {_NAMES.get(key, key): value for key, value in provenance.items() if not isinstance(value, dict)}
    return hyperparameters, facts | plain


def _dict(content: object) -> dict[str, object]:
    return content if isinstance(content, dict) else {}


def _locate(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()), None)


def _read_json(path: Path | None) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return _dict(content)


def _from_monitor(folder: Path) -> dict[str, object]:
    """The environment's id, which ``Monitor`` writes into the first line of its csv file."""
    path = next(iter(sorted(folder.glob("*monitor.csv"))), None)
    try:
        first = path.read_text(encoding="utf-8").partition("\n")[0] if path else ""
        env = json.loads(first.lstrip("#") or "{}").get("env_id")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"env": env} if env and env != "None" else {}


def _read_yaml(path: Path | None) -> dict[str, object]:
    try:
        return load_plain(path.read_text(encoding="utf-8"), path.name, NamingLoader) if path else {}
    except (OSError, ValueError):
        return {}
