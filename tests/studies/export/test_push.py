"""Uploading, against a hub that is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_depth.studies.export import push as module
from lit_depth.studies.export.push import check_repository, push
from tests.helpers.folder_hub import FolderHub, folder_hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> type[FolderHub]:
    return folder_hub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "out" / ".eval_results").mkdir(parents=True)
    for name in ("config.json", ".eval_results/x.yaml"):
        (tmp_path / "out" / name).write_text(name)
    return tmp_path / "out"


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_has_all_files(hub, folder, private):
    check_repository("me/small", weights=True)
    assert push(folder, "me/small", private) == "https://huggingface.co/me/small"
    assert hub.private == {"me/small": private}
    assert (hub.root / "me/small/.eval_results/x.yaml").read_text() == ".eval_results/x.yaml"


def test_one_that_is_there_is_left_alone(hub, folder):
    (hub.root / "me/small").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="out is certified and stays, but was not uploaded to me/small: 409 You already"
    ):
        push(folder, "me/small", True)
    assert list((hub.root / "me/small").iterdir()) == [] and (folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("repository", "weights", "message"),
    [
        ("a/b/c", True, "expected organisation/name, got 'a/b/c'"),
        ("", True, "expected organisation/name"),
        ("a/b", False, "leave out --weights false"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before(hub, repository, weights, message):
    with pytest.raises(ValueError, match=message):
        check_repository(repository, weights)


def test_a_hub_that_is_switched_off_is_named(hub, monkeypatch):
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="switched off by HF_HUB_OFFLINE: unset it"):
        check_repository("me/small", weights=True)
