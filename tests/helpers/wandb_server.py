"""A server of Weights & Biases that is not there: it keeps what its client is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import wandb


class FakeApi:
    """As much of ``wandb.Api`` as saving charts, workspaces and reports asks of it.

    ``there``: ids of runs on the server, each with the fingerprint in its configuration.
    """

    default_entity: str | None = "me"

    def __init__(self, there: dict[str, str] | None = None, charts: Sequence[str] = ()) -> None:
        self.there = there or {}
        self.charts: dict[str, Any] = dict.fromkeys(charts)
        self.views: list[dict[str, Any]] = []
        self._service_api = SimpleNamespace(execute_graphql=self.execute, app_url="https://here")

    def execute(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" not in query:  # the number of a project
            return {"project": {"internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
        self.views.append({**variables, "spec": json.loads(variables["spec"])})
        project = {"name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": f"id{len(self.views)}", "name": variables["name"], "displayName": variables["displayName"]}
        view |= {"type": variables["type"], "description": "", "project": project, "spec": variables["spec"]}
        return {"upsertView": {"view": view, "inserted": True}}

    def projects(self, entity: str) -> list[Any]:
        return [SimpleNamespace(name="there")]

    def create_project(self, name: str, entity: str) -> None: ...

    def runs(self, path: str, filters: dict[str, Any], order: str) -> list[Any]:
        if "name" in filters:
            return [SimpleNamespace(id=run) for run in filters["name"]["$in"] if run in self.there]
        found = [run for run, fingerprint in self.there.items() if fingerprint == filters["config.run"]]
        return [SimpleNamespace(id=run) for run in found]

    def create_custom_chart(self, **arguments: Any) -> str:
        if arguments["name"] in self.charts:
            raise wandb.Error("a chart of this name already exists")
        self.charts[arguments["name"]] = arguments
        return f"{arguments['entity']}/{arguments['name']}"


def fake_server(monkeypatch: pytest.MonkeyPatch, there: dict[str, str] | None = None) -> FakeApi:
    """Make it the only server that this process can see."""
    api = FakeApi(there)
    monkeypatch.setattr(wandb, "Api", lambda: api)
    return api
