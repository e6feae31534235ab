"""Corrections of rl-zoo3's ``benchmark``: its column of training steps, and two failures that it reports with a traceback."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytablewriter
import yaml
from huggingface_hub import errors
from rl_zoo3 import utils

from sb3_policyopt.errors import CommandFailedError, HubError
from sb3_policyopt.hub.errors import is_network_error
from sb3_policyopt.process import replaced
from sb3_policyopt.zoo import preflight


@contextmanager
def corrected(argv: list[str]) -> Iterator[None]:
    """
    Within this context ``benchmark`` reads the steps that ``train -n`` gave, and fails with one sentence.

    :param argv: the command line
    :raises HubError: if the list of the agents on the Hub cannot be read
    :raises CommandFailedError: if no agent was evaluated; ``benchmark.md`` is left as it was
    """
    folder = preflight.parse(argv, ("--log-dir",), log_dir=preflight.ZOO_FOLDER).log_dir
    from_dataframe = pytablewriter.MarkdownTableWriter.from_dataframe

    def from_rows(self: pytablewriter.AbstractTableWriter, table: Any, *rest: Any, **options: Any) -> None:
        if table.empty:
            raise CommandFailedError(f"no agent of {folder} was evaluated for a whole episode: -n gives the number of steps")
        from_dataframe(self, table, *rest, **options)

    with ExitStack() as context:
        context.enter_context(replaced(pytablewriter.MarkdownTableWriter, "from_dataframe", from_rows))
        context.enter_context(replaced(utils, "get_saved_hyperparams", with_given_steps(utils.get_saved_hyperparams)))
        try:
            yield
        except Exception as error:
            of_the_hub = (errors.HfHubHTTPError, errors.EntryNotFoundError)
            if not isinstance(error, of_the_hub) and not is_network_error(error):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            remedy = "with --no-hub it evaluates those of --log-dir only"
            raise HubError(f"benchmark cannot read the agents of the zoo on the Hub ({reason}); {remedy}") from error


def with_given_steps(read: Callable[..., Any]) -> Callable[..., Any]:
    """
    Let rl-zoo3 find the number of steps that a run was given by ``-n``, where it finds that of the configuration.

    :param read: rl-zoo3's function that reads the hyperparameters of a run
    :return: the same with ``n_timesteps`` of the command line
    """

    def get_saved_hyperparams(stats_path: str, *rest: Any, **options: Any) -> tuple[dict[str, Any], str | None]:
        hyperparams, found = read(stats_path, *rest, **options)
        path = Path(stats_path, "args.yml")
        arguments = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.UnsafeLoader) if path.is_file() else {}
        if hyperparams and arguments.get("n_timesteps", -1) > 0:
            hyperparams["n_timesteps"] = arguments["n_timesteps"]
        return hyperparams, found

    return get_saved_hyperparams
