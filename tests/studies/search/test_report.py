"""What a search tells: refusals first, ties in full on the page, everything that loggers keep."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_depth.studies.search.report import report
from lit_depth.studies.shared.publish import as_text
from tests.helpers.search_result import BASELINE, search_result
from tests.helpers.wandb_run import files_of, logged_report, read_table


def test_a_search_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = search_result()
    logged = logged_report(report(result), "search.json", result, tmp_path, monkeypatch)
    *_, media = logged.history
    first, _, _, last = read_table(logged, media["search/ablations"])
    assert (first["removed"], first["drop_ci_high"], first["interaction"]) == ("0", 0.2, None)
    assert (last["removed"], last["num_removed"], last["found_by"]) == ("0 2", 2, "search")
    assert (first["found_by"], last["quality"], last["drop_simultaneous_ci_low"]) == ("search, greedy", 0.8, -0.1)
    assert (last["interaction_ci_low"], last["interaction_simultaneous_ci_high"]) == (0.2, 0.5)
    assert (first["drop_p_holm"], last["interaction_p_holm"]) == (0.4, 0.01)
    assert logged.summary["withheld"] == "" and logged.summary["baseline/quality"] == 0.6
    expected = {"search/removed_1": "0", "search/drop_1": 0.1, "search/removed_2": "0 2", "search/drop_2": 0.12}
    expected |= {"search/evaluations": 800, "search/saved": 200, "full/num_distinct_answers": 9}
    assert {key: logged.summary[key] for key in expected} == expected
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "search"]
    assert artifact.name == "search" and files_of(artifact) == {"search.json"}
    for name in ("search_tree", "drop_vs_removed"):
        drawn = tmp_path / "result" / "figures" / f"{name}.png"
        assert (logged.files / media[f"figures/{name}"]["path"]).read_bytes() == drawn.read_bytes()


def test_where_a_verdict_is_withheld_it_is_said_first_and_no_tie_is_named():
    result = search_result()
    assert (
        not as_text(report(result)).startswith("\nNo verdict")
        and "without 0, 2" in report(result).sections[1].table.rows[1]
    )
    result["report"]["baseline"] = {**BASELINE, "beaten": False}
    told = report(result)
    assert as_text(told).startswith("\nNo verdict on shapes: the full model (0.900)")
    assert [row[-1] for row in told.sections[1].table.rows] == ["withheld", "withheld"]
    assert told.scalars["withheld"].startswith("No verdict on shapes")


def test_ties_that_the_table_has_no_room_for_are_on_the_page():
    result = search_result()
    assert len(report(result).sections) == 2
    result["levels"][1]["tied"] = [(0, 1), *((0, 2) for _ in range(6)), (1, 3)]
    levels, ties = report(result).sections[1:]
    assert levels.table.rows[1][-1].endswith("without 0, 2 and 1 more")
    assert (
        ties.text.startswith("2 removed: without 0, 2; ") and ties.text.endswith("; without 1, 3") and not ties.printed
    )
