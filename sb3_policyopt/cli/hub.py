"""The commands ``push_to_hub`` and ``load_from_hub``, with the flags of the zoo."""

import argparse
import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sb3_policyopt import registry
from sb3_policyopt.cli.help import new_parser
from sb3_policyopt.errors import PickleRequiredError, UserError, user_errors


def push_main(argv: "Sequence[str] | None" = None) -> None:
    """
    Publish the agent of a run folder.

    :param argv: the arguments after ``push_to_hub``
    :raises UserError: if the agent is missing or cannot be read
    :raises HubError: if the Hub or the network fails
    """
    _import_packages(argv)
    args = push_parser().parse_args(argv)
    with user_errors(OSError, ValueError):
        _push(args)


def load_main(argv: "Sequence[str] | None" = None) -> None:
    """
    Download an agent as a run folder.

    :param argv: the arguments after ``load_from_hub``
    :raises UserError: if the agent is missing, cannot be read, or needs ``--trust``
    :raises HubError: if the Hub or the network fails
    """
    _import_packages(argv)
    args = load_parser().parse_args(argv)
    with user_errors(OSError, ValueError), _flag_instead_of_argument():
        _load(args)


def _import_packages(argv: "Sequence[str] | None") -> None:
    """Import the modules of ``--gym-packages``, which may register further choices of ``--algo``."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_packages(parser)
    registry.import_packages(parser.parse_known_args(argv)[0].gym_packages)


def _add_packages(parser: argparse.ArgumentParser) -> None:
    text = "modules that register the environment or an algorithm"
    parser.add_argument("--gym-packages", nargs="+", default=[], metavar="MODULE", help=text)


@contextmanager
def _flag_instead_of_argument() -> Iterator[None]:
    """Within this context, an error that names the argument ``safe=False`` names the flag of the command instead."""
    try:
        yield
    except PickleRequiredError as error:
        raise UserError(str(error).replace("load it with safe=False", "pass --trust")) from error


def _push(args: argparse.Namespace) -> None:
    import torch as th

    from sb3_policyopt.hub.agent import agent_of_run, find_run
    from sb3_policyopt.hub.environments import acts_at_random
    from sb3_policyopt.hub.evaluation import Protocol
    from sb3_policyopt.hub.push import push_agent

    if args.n_timesteps < 0:
        raise UserError(f"-n must be at least 0, not {args.n_timesteps}")
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    checkpoint = (
        "best" if args.load_best else "last checkpoint" if args.load_last_checkpoint else args.load_checkpoint or "last"
    )
    run = find_run(args.folder, args.algo, args.env, args.exp_id)
    agent = agent_of_run(run, args.algo, args.env, str(checkpoint))
    protocol = Protocol.from_config(
        args.env,
        agent.config,
        env_kwargs=agent.env_kwargs | (args.env_kwargs or {}),
        imports=tuple(args.gym_packages),
        n_envs=args.n_envs,
        deterministic=not args.stochastic and (args.deterministic or not acts_at_random(args.env)),
        seed=args.seed,
    )
    where = push_agent(
        agent,
        f"{args.organization}/{args.repo_name or agent.name}",
        protocol,
        video_length=0 if args.no_video else args.n_timesteps,
        private=args.private,
        revision=args.revision,
        commit_message=args.commit_message,
        license=args.license,
        dry_run=args.dry_run,
        device=args.device,
        report=print if args.verbose else lambda line: None,
    )
    print(where)


def _load(args: argparse.Namespace) -> None:
    from sb3_policyopt.hub.agent import file_name_of
    from sb3_policyopt.hub.load import download_run

    name = args.repo_name or f"{args.algo}-{file_name_of(args.env)}"
    run = download_run(
        f"{args.organization}/{name}",
        args.algo,
        args.env,
        args.folder,
        exp_id=args.exp_id,
        force=args.force,
        revision=args.revision,
        safe=not args.trust,
    )
    print(run)


def _common_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = new_parser(command, description)
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("--algo", required=True, choices=tuple(registry.ALGORITHMS), help="RL algorithm")
    parser.add_argument("-f", "--folder", default=Path("logs"), type=Path, help="log folder")
    parser.add_argument("-name", "--repo-name", help="repository name; default: ALGO-ENV")
    parser.add_argument("--revision", help="branch of the repository (to load: also a tag or a commit); default: main")
    _add_packages(parser)
    parser.add_argument("--verbose", default=1, type=int, help="verbose mode (0: no output, 1: INFO)")
    return parser


def push_parser() -> argparse.ArgumentParser:
    """
    Make the parser of ``push_to_hub``.

    :return: the parser
    """
    parser = _common_parser(
        "push_to_hub",
        "Evaluate a trained agent, film it, write its model card, and publish everything on the Hugging Face Hub.",
    )
    add = parser.add_argument
    add("-orga", "--organization", required=True, help="your user name or organization on the Hub")
    add("-m", "--commit-message", default="Upload agent", help="commit message")
    add("--exp-id", default=0, type=int, help="number of the run (0: latest, -1: no run folder)")
    add("--load-best", action="store_true", help="the best model of the evaluations instead of the last one")
    add("--load-checkpoint", type=int, metavar="STEPS", help="the checkpoint of that many steps instead of the last model")
    add("--load-last-checkpoint", action="store_true", help="the last checkpoint instead of the last model")
    add("--deterministic", action="store_true", help="deterministic actions (the default, except in Atari and MiniGrid)")
    add("--stochastic", action="store_true", help="sampled actions (the default in Atari and MiniGrid)")
    add("--seed", default=0, type=int, help="seed of the evaluation")
    add("--n-envs", default=1, type=int, help="environments in parallel")
    add("-n", "--n-timesteps", default=1000, type=int, help="length of the video in steps")
    add("--no-video", "--no-render", dest="no_video", action="store_true", help="no video")
    add("--env-kwargs", nargs="+", action=_KeyValue, metavar="KEY:VALUE", help="arguments of the environment")
    add("--device", default="auto", help="PyTorch device: auto, cpu, cuda, …")
    add("--num-threads", default=-1, type=int, help="number of threads of PyTorch (-1: its default)")
    add("--private", action="store_true", help="if the repository is created now, only its owner has access")
    add("--license", default="mit", help="licence of the agent, as the Hub abbreviates it (mit, apache-2.0, cc-by-4.0, …)")
    add("--dry-run", type=Path, metavar="FOLDER", help="write all files into FOLDER, and send nothing")
    return parser


def load_parser() -> argparse.ArgumentParser:
    """
    Make the parser of ``load_from_hub``.

    :return: the parser
    """
    parser = _common_parser("load_from_hub", "Download an agent from the Hugging Face Hub as a run folder of the RL Zoo.")
    add = parser.add_argument
    add("-orga", "--organization", default="sb3", help="user name or organization on the Hub")
    add("--exp-id", default=0, type=int, help="number of the run (0: a new one, -1: no run folder)")
    add("--force", action="store_true", help="replace the run folder if it exists")
    add(
        "--trust",
        action="store_true",
        help="load pickles, which can run any code: only from authors you trust",
    )
    return parser


class _KeyValue(argparse.Action):
    """Collect ``key:value`` pairs, as the zoo does; values are Python literals, and strings where they are not."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: "str | Sequence[object] | None",
        option_string: "str | None" = None,
    ) -> None:
        pairs: dict[str, object] = {}
        for pair in map(str, values or ()):
            key, colon, value = pair.partition(":")
            if not colon:
                parser.error(f"{option_string} expects KEY:VALUE, not {pair!r}")
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)
