"""A hub that is a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.errors import HfHubHTTPError

from lit_depth.studies.export import push


class FolderHub:
    """The calls of the hub's client that are made, and nothing else."""

    root: Path
    private: dict[str, bool]

    def __init__(self, library_name: str) -> None:
        assert library_name == "lit_depth"

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        if (self.root / repo_id).exists() and not exist_ok:
            response = httpx.Response(409, request=httpx.Request("POST", "https://huggingface.co/api/repos/create"))
            raise HfHubHTTPError("409 You already created this model repo", response=response)
        (self.root / repo_id).mkdir(parents=True)
        self.private[repo_id] = private
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)


def folder_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> type[FolderHub]:
    """Put a folder in the hub's place."""
    hub = type("Hub", (FolderHub,), {"root": root, "private": {}})
    monkeypatch.setattr(push, "HfApi", hub)
    monkeypatch.setattr(push.constants, "HF_HUB_OFFLINE", False)
    return hub
