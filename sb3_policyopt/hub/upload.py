"""The upload: one repository and one commit, or no change."""

from pathlib import Path

from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from sb3_policyopt.errors import HubError, HubUserError
from sb3_policyopt.hub.agent import Agent
from sb3_policyopt.hub.errors import one_sentence

# Files of an earlier upload that the new one may lack; other files of the repository (.gitattributes, LICENSE) are kept.
_OPTIONAL_FILES = [
    "config.json",
    "replay.mp4",
    "training.png",
    "vec_normalize.pkl",
    "vec_normalize.npz",
    "train_eval_metrics.zip",
]


def check_repository(api: HfApi, repo_id: str, agent: Agent, private: bool, revision: "str | None" = None) -> None:
    """
    Check before the evaluation that the agent can be published.

    :param api: the Hub
    :param repo_id: where the agent is to be published
    :param agent: the agent
    :param private: whether the repository is to be private
    :param revision: the branch to commit to; by default the main one
    :raises HubError: if there is no valid token, or the repository holds another agent or is public although ``private``
    """
    with one_sentence(repo_id):
        api.whoami()
        try:
            existing = _branch(api, repo_id, revision)
        except RepositoryNotFoundError:
            return
    if private and not existing.private:
        raise HubUserError(f"{repo_id} exists and is public: choose another name with --repo-name, or leave out --private")
    zips = {file.rfilename for file in existing.siblings or [] if file.rfilename.endswith(".zip")}
    others = zips - {agent.file_name, "train_eval_metrics.zip"}
    if others:
        raise HubUserError(
            f"{repo_id} holds another agent ({', '.join(sorted(others))}): choose another name with --repo-name"
        )


def _branch(api: HfApi, repo_id: str, revision: "str | None") -> ModelInfo:
    """Describe the branch; if there is none of this name, the main one, of which it will be made."""
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        return api.model_info(repo_id)


def send(api: HfApi, folder: Path, repo_id: str, private: bool, revision: "str | None", commit_message: str) -> str:
    """
    Send a folder in one commit.

    :param api: the Hub
    :param folder: the files
    :param repo_id: the repository, created if there is none
    :param private: whether a repository that is created is private
    :param revision: the branch, created if there is none; by default the main one
    :param commit_message: message of the commit
    :return: address of the commit
    :raises HubError: if anything fails; a repository that was created is deleted again
    """
    created = False
    with one_sentence(repo_id, revision=revision):
        try:
            created = _create(api, repo_id, private)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                # Logs are replaced by logs; without new ones those of the repository are kept.
                delete_patterns=[*_OPTIONAL_FILES, *(["logs/*"] if (folder / "logs").is_dir() else [])],
            )
        except BaseException as error:  # Ctrl-C as well: an incomplete repository is deleted
            if created:
                _delete(api, repo_id, error)
            raise
    return str(commit.commit_url)


def _create(api: HfApi, repo_id: str, private: bool) -> bool:
    """Create the repository; False if it exists."""
    try:
        api.create_repo(repo_id, private=private)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 409:
            return False
        raise
    return True


def _delete(api: HfApi, repo_id: str, cause: BaseException) -> None:
    try:
        api.delete_repo(repo_id, missing_ok=True)
    except Exception:
        raise HubError(
            f"the upload failed ({type(cause).__name__}), and so did the removal of the repository it had created: "
            f"delete {api.endpoint}/{repo_id} yourself"
        ) from cause
