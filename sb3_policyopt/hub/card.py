"""The model card: metadata for the Hub, and text for readers."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from sb3_policyopt import registry
from sb3_policyopt.hub.agent import Agent
from sb3_policyopt.hub.environments import acts_at_random
from sb3_policyopt.hub.evaluation import Protocol, Score, requirement
from sb3_policyopt.hub.named_classes import is_expression, own_classes
from sb3_policyopt.hub.wrappers import replaced_gamma
from sb3_policyopt.hyperparams.zoo_yaml import dump_plain
from sb3_policyopt.identity.kinds import PLAIN, PolicyKind, kind_of

_STOCK_EVALUATION = "from stable_baselines3.common.evaluation import evaluate_policy"
HOMEPAGE = "https://github.com/sb3-policyopt/sb3-policyopt"


@dataclass(frozen=True)
class Card:
    """
    The contents of a card.

    :param agent: the agent
    :param protocol: how it was evaluated
    :param score: the result
    :param repo_id: the repository, ``"name/repository"``
    :param revision: the branch, if not the main one
    :param endpoint: address of the Hub
    :param license: identifier of the licence, as the Hub lists them
    :param provenance: the record of the training
    :param has_video: whether there is a ``replay.mp4``
    :param has_picture: whether there is a ``training.png``
    :param policy_class: class of the agent's policy, which says whether it has masks or memory; None for neither
    :param norm_reward: whether ``VecNormalize`` normalised rewards in the training; None without ``VecNormalize``
    """

    agent: Agent
    protocol: Protocol
    score: Score
    repo_id: str
    revision: "str | None"
    endpoint: str
    license: str
    provenance: Mapping[str, object]
    has_video: bool
    has_picture: bool
    policy_class: "type | None" = None
    norm_reward: "bool | None" = None

    @property
    def kind(self) -> PolicyKind:
        """What the policy needs to act, beside observations."""
        return kind_of(self.policy_class)

    @property
    def stock(self) -> "str | None":
        """The class that loads the agent without this package, as ``module:attribute``; None if there is none."""
        if self.policy_class is not None and self.policy_class.__module__.startswith("sb3_policyopt."):
            return None
        kind = self.kind
        entry = registry.of_policy(registry.find(self.agent.algo), kind.masks, kind.memory)
        return entry.stock if (entry.masks, entry.memory) == (kind.masks, kind.memory) else None

    def __str__(self) -> str:
        """The ``README.md``."""
        sections = (
            _headline(self),
            _pictures(self),
            _usage(self),
            _hyperparameters(self),
            _provenance(self),
            _trust(self),
        )
        return f"---\n{metadata(self).to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def metadata(card: Card) -> ModelCardData:
    """
    Make the metadata, which the Hub uses for filters, widget, download counter and leaderboards.

    :param card: the card
    :return: the YAML head of the ``README.md``
    """
    agent = card.agent
    tags = [
        agent.env_id,
        "deep-reinforcement-learning",
        "reinforcement-learning",
        "stable-baselines3",
        "sb3-policyopt",
        agent.algo,
    ]
    result = EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=agent.env_id,
        dataset_name=agent.env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=str(card.score),
        verified=False,
    )
    return ModelCardData(
        library_name="stable-baselines3",
        license=card.license,
        pipeline_tag="reinforcement-learning",
        tags=tags + (["rl-zoo3"] if agent.run_folder else []),
        model_name=registry.find(agent.algo).model_name,
        eval_results=[result],
    )


def _headline(card: Card) -> str:
    agent, score, protocol, stored = card.agent, card.score, card.protocol, card.agent.stored()
    actions = "deterministic" if protocol.deterministic else "sampled"
    seed = "no fixed seed" if "seed" not in stored else f"seed {stored['seed']}"
    return (
        f"# **{agent.class_name}** agent playing **{agent.env_id}**\n\n"
        f"Mean return **{score.mean:.2f} ± {score.std:.2f}** (standard deviation over {protocol.n_episodes} episodes, "
        f"{actions} actions, environment seed {protocol.seed}) after {stored.get('num_timesteps', 0):,} steps of training "
        f"with {seed}.\n\n"
        f"Trained with [sb3-policyopt]({HOMEPAGE}), {agent.class_name} for "
        "[Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3). "
        "The returns of the single episodes are in [results.json](results.json)."
    )


def _pictures(card: Card) -> str:
    parts = []
    if card.has_video:
        address = f"{card.endpoint}/{card.repo_id}/resolve/{card.revision or 'main'}/replay.mp4"
        parts.append(f'<video src="{address}" controls autoplay loop muted></video>\n\n[Video of the agent](replay.mp4)')
    if card.has_picture:
        parts.append("## Training\n\n![Learning curve, evaluations and health of the updates](training.png)")
    return "\n\n".join(parts)


def _usage(card: Card) -> str:
    extras = "hub,contrib" if card.kind != PLAIN else "hub"
    blocks = [("With sb3-policyopt", f'"sb3-policyopt[{extras}]"', "python", _own_code(card))]
    if card.stock is not None:
        module, _, class_name = card.stock.partition(":")
        code = _stock_code(card, module, class_name)
        blocks.append((f"With {module} alone", f"{module} huggingface_hub", "python", code))
    if card.agent.file_name == f"{card.agent.name}.zip":  # rl-zoo3 looks for a file of this name
        blocks.append(("With the RL Zoo", '"sb3-policyopt[zoo,hub]"', "bash", _zoo_code(card)))
    environment = requirement(card.agent.env_id)
    environment = f' "{environment}"' if environment else ""
    ways = [
        f"### {title}\n\n{_fenced('bash', [f'pip install {packages}{environment}'])}\n\n{_fenced(language, code)}"
        for title, packages, language, code in blocks
    ]
    further = [_training_further(card)] if card.norm_reward is not None else []
    return f"## Use it\n\n{_needs(card)}" + "\n\n".join([*ways, *further])


def _training_further(card: Card) -> str:
    """How to train an agent with ``VecNormalize`` further, which is loaded as an evaluation needs it."""
    return (
        "### Train it further\n\nThe agent is loaded for an evaluation: its statistics are frozen, and rewards are not "
        "normalised. To train it further with sb3-policyopt, make `env` as in the training, without `VecNormalize` and frame "
        f"stack; then `{_load_call(card, 'env=env')}`, `vec_normalize.training = True`, "
        f"`vec_normalize.norm_reward = {card.norm_reward}` as in the training, and "
        "`model.learn(100_000, reset_num_timesteps=False)`."
    )


def _load_call(card: Card, *more: str) -> str:
    """The call of ``load_from_hub`` for this agent."""
    arguments = [f'"{card.repo_id}"', *more] + ([f'revision="{card.revision}"'] if card.revision else [])
    if not card.agent.is_safe:
        arguments.append("safe=False")
    return f"model, vec_normalize = load_from_hub({', '.join(arguments)})"


def _needs(card: Card) -> str:
    """What the policy needs beside observations, and whether another package has a class for it."""
    kind = card.kind
    needs = [text for text, has in (("masks of the allowed actions", kind.masks), ("memory", kind.memory)) if has]
    if not needs:
        return ""
    memory = " `predict` returns its state, which the next call takes." if kind.memory else ""
    alone = "" if card.stock else " sb3-contrib has no class for such an agent, so it needs sb3-policyopt."
    return f"The policy has {' and '.join(needs)}.{memory}{alone}\n\n"


def _own_code(card: Card) -> list[str]:
    """Code that loads the agent with this package and evaluates it as it was evaluated."""
    attach = ["vec_normalize.set_venv(env)", "env = vec_normalize"] if card.agent.statistics_path else []
    imports, env = card.protocol.code(attach)
    if card.kind.masks:
        imports.append("from sb3_policyopt.evaluation import MaskingVecEnv, evaluate_policy")
    else:
        imports.append(_STOCK_EVALUATION)
    return [
        *_imports(card, *imports, "from sb3_policyopt.hub import load_from_hub"),
        "",
        _load_call(card),
        *env,
        *_evaluation_code(card),
        *_steps(card, ["env = MaskingVecEnv(env)"], "env.action_masks()"),
    ]


def _stock_code(card: Card, module: str, class_name: str) -> list[str]:
    """The same without this package."""
    revision = f', revision="{card.revision}"' if card.revision else ""
    extra = ["from huggingface_hub import hf_hub_download"]
    extra.append(f"from {module} import {class_name}")
    normalize: list[str] = []
    if card.agent.statistics_path:
        extra.append("from stable_baselines3.common.vec_env import VecNormalize")
        normalize = [
            f'env = VecNormalize.load(hf_hub_download("{card.repo_id}", "vec_normalize.pkl"{revision}), env)',
            "env.training = False  # keep the statistics of the training",
            "env.norm_reward = False  # report the rewards themselves",
        ]
    imports, env = card.protocol.code(normalize)
    if card.kind.masks:
        imports.append("from sb3_contrib.common.maskable.evaluation import evaluate_policy")
        imports.append("from sb3_contrib.common.maskable.utils import get_action_masks")
    else:
        imports.append(_STOCK_EVALUATION)
    load = f'model = {class_name}.load(hf_hub_download("{card.repo_id}", "{card.agent.file_name}"{revision}))'
    steps = _steps(card, [], "get_action_masks(env)")
    return [*_imports(card, *imports, *extra), "", load, *env, *_evaluation_code(card), *steps]


def _steps(card: Card, before: list[str], masks: str) -> list[str]:
    """
    Code that lets an agent with masks or memory act step by step.

    :param before: lines that prepare the environment for masks
    :param masks: expression for the masks of the current step
    """
    kind, deterministic = card.kind, f"deterministic={card.protocol.deterministic}"
    if kind == PLAIN:
        return []
    arguments = ["observation"] + (["state", "episode_start"] if kind.memory else []) + [deterministic]
    arguments += [f"action_masks={masks}"] if kind.masks else []
    start = ["state, episode_start = None, np.ones(env.num_envs, dtype=bool)"] if kind.memory else []
    return [
        "",
        *(before if kind.masks else []),
        "observation = env.reset()",
        *start,
        "for _ in range(100):",
        f"    action, {'state' if kind.memory else '_'} = model.predict({', '.join(arguments)})",
        f"    observation, reward, {'episode_start' if kind.memory else 'done'}, info = env.step(action)",
    ]


def _evaluation_code(card: Card) -> list[str]:
    protocol = card.protocol
    seed = [] if protocol.deterministic else [f"set_random_seed({protocol.seed})"]
    return [
        *seed,
        "mean, std = evaluate_policy("
        f"model, env, n_eval_episodes={protocol.n_episodes}, deterministic={protocol.deterministic})",
        'print(f"mean_reward: {mean:.2f} +/- {std:.2f}")',
    ]


def _imports(card: Card, *lines: str) -> list[str]:
    lines += ("import numpy as np",) if card.kind.memory else ()
    if not card.protocol.deterministic:
        lines += ("from stable_baselines3.common.utils import set_random_seed",)
    return sorted(lines, key=lambda line: (line.startswith("from"), line))


def _zoo_code(card: Card) -> list[str]:
    organization, name = card.repo_id.split("/")
    agent = card.agent
    where = f"-orga {organization}" + (f" -name {name}" if name != agent.name else "")
    revision = f" --revision {card.revision}" if card.revision else ""
    which = f"--algo {agent.algo} --env {agent.env_id}"
    trust = " --trust" if agent.needs_trust else ""
    return [
        f"sb3-policyopt load_from_hub {which} {where} -f logs/{revision}{trust}",
        f"sb3-policyopt enjoy {which} -f logs/{_actions(card)}{_gym_packages(card)}",
    ]


def _actions(card: Card) -> str:
    """The flag of ``enjoy`` for the actions of the evaluation, where they are not those that it takes by default."""
    if card.protocol.deterministic != acts_at_random(card.agent.env_id):
        return ""
    return " --deterministic" if card.protocol.deterministic else " --stochastic"


def _gym_packages(card: Card) -> str:
    """The flag of the zoo's commands for the modules that register the environment."""
    return f" --gym-packages {' '.join(card.protocol.imports)}" if card.protocol.imports else ""


def _hyperparameters(card: Card) -> str:
    steps = card.agent.arguments.get("n_timesteps")  # of the command line, which overrides the configuration
    config = card.agent.config | ({"n_timesteps": steps} if isinstance(steps, int) and steps > 0 else {})
    block = dump_plain({card.agent.env_id: config}).splitlines()
    command = f"sb3-policyopt train --algo {card.agent.algo} --env {card.agent.env_id} -conf hyperparameters.yml"
    command += _env_kwargs(card.agent.env_kwargs) + _gym_packages(card)
    return (
        "## Hyperparameters\n\nWhat is not listed has its default. To train such an agent again, save them as "
        f"`hyperparameters.yml` and run\n`{command}`.{_remarks(card)}\n\n{_fenced('yaml', block)}"
    )


def _env_kwargs(arguments: Mapping[str, object]) -> str:
    """The flag of ``train`` for the arguments of the environment: its environments for evaluations have them, too."""
    written = {key: json.dumps(value) if isinstance(value, str) else repr(value) for key, value in arguments.items()}
    pairs = [shlex.quote(f"{key}:{value}") for key, value in written.items()]
    return f" --env-kwargs {' '.join(pairs)}" if pairs else ""


def _remarks(card: Card) -> str:
    """What a training with these hyperparameters needs beside packages that everybody can install, or does otherwise."""
    sentences = []
    names = own_classes(card.agent.config)
    of_scripts = [name for name in names if name.startswith("__main__.") or "<locals>" in name]
    importable = ", ".join(f"`{name}`" for name in names if name not in of_scripts)
    if importable:
        sentences.append(f"You need {importable}, which the hyperparameters name: put the module where Python finds it.")
    if of_scripts:
        sentences.append(
            f"You need {', '.join(f'`{name}`' for name in of_scripts)}, which the hyperparameters name and which the author "
            "defined in a script: put the class into a module, and write its name in the hyperparameters as `module.Class`."
        )
    if not is_expression(card.agent.config.get("policy_kwargs")):
        sentences.append("`policy_kwargs` holds objects that cannot be written in this form: replace them by what makes them.")
    gamma = replaced_gamma(card.agent.config)
    if gamma is not None:
        sentences.append(f"`VecNormalize` then has the `gamma` of the algorithm, and not {gamma} as here.")
    return "".join(f" {sentence}" for sentence in sentences)


def _provenance(card: Card) -> str:
    text = "## Provenance\n\nAs recorded when the agent was trained; the whole record is [provenance.json](provenance.json)."
    rows = [f"| {label} | {_cell(value)} |" for label, value in _facts(card) if value not in (None, "", {})]
    return "\n".join([text, "", "| fact | value |", "|---|---|", *rows])


def _facts(card: Card) -> list[tuple[str, object]]:
    """The rows of the provenance table; None where the training has recorded no value."""
    provenance, stored = card.provenance, card.agent.stored()
    git, seconds, cores = (provenance.get(key) for key in ("git", "wall_time_seconds", "processor_cores"))
    machine = [provenance.get("platform"), cores and f"{cores} cores", provenance.get("device")]
    return [
        ("training began", provenance.get("started")),
        ("training took", f"{seconds:,.0f} s" if isinstance(seconds, int | float) else None),
        ("environment steps", f"{stored.get('num_timesteps', 0):,}"),
        ("seed", stored.get("seed")),
        ("environments", stored.get("n_envs")),
        ("machine", ", ".join(str(part) for part in machine if part)),
        ("git commit", f"{git['commit']}{' with changes' if git.get('modified') else ''}" if isinstance(git, dict) else None),
        ("packages", provenance.get("versions")),
        (f"SHA-256 of {card.agent.file_name}", f"`{provenance['zip_sha256']}`"),
    ]


def _cell(value: object) -> str:
    text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _trust(card: Card) -> str:
    agent = card.agent
    if not agent.is_safe:
        return (
            "## Trust\n\nThis agent can only be loaded with pickle, which runs whatever code the files contain: "
            "do so only if you trust its author."
        )
    configuration = (
        "\n\nThe command `load_from_hub` takes this agent only with `--trust`, because its `config.yml` names code that is "
        "not of a known package."
    )
    return (
        "## Trust\n\nA saved agent of Stable-Baselines3 contains pickles, which run code when they are loaded. "
        "`load_from_hub` of sb3-policyopt does not load them: it reads tensors, and the plain JSON and arrays that this "
        "repository has in addition. The code without sb3-policyopt does unpickle: run it only if you trust the author of "
        "this repository." + (configuration if agent.needs_trust else "")
    )


def _fenced(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
