"""Upload an exported checkpoint to a new repository on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id


def check_repository(repository: str, weights: bool) -> None:
    """Refuse what cannot be uploaded before the work is done.

    Raises:
        ValueError: If it is no name of a repository, the hub is switched off, or there are no weights.
    """
    if not weights:
        raise ValueError("--push_to_hub uploads checkpoints: leave out --weights false")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push_to_hub: expected organisation/name, got {repository!r}: {error}") from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError("--push_to_hub: the hub is switched off by HF_HUB_OFFLINE: unset it")


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder to a repository that does not exist yet; its address.

    One that exists is refused: it may be read by others than those who may read a new one.

    Raises:
        ValueError: If the repository exists, or cannot be made or written to; the folder stays.
    """
    api = HfApi(library_name="lit_depth")
    try:
        made = api.create_repo(repository, private=private, exist_ok=False)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="A checkpoint with fewer blocks")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} is certified and stays, but was not uploaded to {repository}: {reason}") from error
    return str(made)
