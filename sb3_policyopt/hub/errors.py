"""The errors of ``huggingface_hub`` as one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors

from sb3_policyopt.errors import HubError, HubUserError

__all__ = ["HubError", "HubUserError", "is_network_error", "one_sentence"]


@contextmanager
def one_sentence(repo_id: str, filename: "str | None" = None, revision: "str | None" = None) -> Iterator[None]:
    """
    Turn the errors of ``huggingface_hub`` into a :class:`HubError` of one sentence.

    :param repo_id: the repository concerned
    :param filename: the file that was requested, if any
    :param revision: the branch, tag or commit that was requested, if any
    :raises HubError: for every failure of the Hub, the network, or the arguments sent to them
    """
    try:
        yield
    except HubError:
        raise
    except errors.HFValidationError as error:  # a name that the Hub does not allow
        raise HubUserError(_one_line(error)) from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(_one_line(error)) from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError("no Hugging Face token found: run `hf auth login`, or set the environment variable HF_TOKEN") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{repo_id} is gated: request access on its page on the Hub first") from error
    except errors.RepositoryNotFoundError as error:
        raise HubUserError(
            f"there is no repository {repo_id}, or it is private and your token has no access to it: "
            "check the name, and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubUserError(f"{repo_id} has no branch, tag or commit {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"the Hub cannot be reached, and {filename or repo_id} is not in the local cache") from error
    except errors.EntryNotFoundError as error:
        raise HubUserError(f"{repo_id} has no file {filename!r}") from error
    except errors.HfHubHTTPError as error:
        raise HubError(_http_sentence(error, repo_id)) from error
    except (errors.HTTPError, OSError) as error:
        if not is_network_error(error):
            raise
        raise HubError(f"the Hub cannot be reached ({type(error).__name__}): check your network") from error
    except (RuntimeError, ValueError) as error:  # how huggingface_hub wraps the failure of one of several files
        reason = "" if error.__cause__ is None else f" ({_one_line(error.__cause__)})"
        raise HubError(_one_line(error).rstrip(".") + reason) from error


def is_network_error(error: Exception) -> bool:
    """
    Test whether the Hub could not be reached.

    :param error: what ``huggingface_hub`` raised
    :return: True for a failure of its HTTP client (httpx or requests) or for its offline mode, not for an answer of the Hub
    """
    if isinstance(error, (errors.HfHubHTTPError, errors.OfflineModeIsEnabled)):
        return not isinstance(error, errors.HfHubHTTPError)
    package = type(error).__module__.partition(".")[0]
    return package.startswith(("httpx", "requests", "urllib3")) or isinstance(error, (ConnectionError, TimeoutError))


def _http_sentence(error: errors.HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code if error.response is not None else None
    if status == 401:
        return "the Hub refuses your token: log in with `hf auth login`, or correct the environment variable HF_TOKEN"
    if status == 403:
        return f"your token has no right to write to {repo_id}: use a token with write access, and a namespace of yours"
    if status == 409:
        return f"{repo_id} was changed or created by someone else meanwhile: try again"
    return f"the Hub answered with an error ({status or 'no status'}): {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
