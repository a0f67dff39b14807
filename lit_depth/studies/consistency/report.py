"""What ``lit-depth consistency`` tells of its result."""

from typing import Any

from lit_depth.results.measures import cluster_noun, readings_sections
from lit_depth.results.report import Report, Table
from lit_depth.results.table import Cell
from lit_depth.results.verdicts import WITHHELD, refusal, verdict_scalars
from lit_depth.studies.consistency.figures import consistency_figures
from lit_depth.studies.shared.decision_views import (
    BEST_SINGLE,
    decision_figures,
    decision_section,
    decision_units,
    regret_section,
)
from lit_depth.studies.shared.importance_views import agreement_chart, agreement_section, headline

COLUMNS = ("a", "b", "measure", "spearman", "noise_free_low", "noise_free_high", "p_value", "verdict")


def report(result: dict[str, Any]) -> Report:
    """The report of the content of ``consistency.json``."""
    measured = result["measurements"]
    decisions = [(e["name"], e["decision"]) for e in measured if e.get("decision") and refusal(e) is None]
    regrets = result.get("regret", []) if len(decisions) == len(measured) else []
    noun = " or ".join(dict.fromkeys(map(cluster_noun, measured)))
    units = decision_units(measured[0]["blocks"])
    figures = consistency_figures(result) | decision_figures(decisions, units, regrets, result["confidence"])
    agreement = list(consistency_figures(result))
    refused = [reason for entry in measured if (reason := refusal(entry, f"{entry['task']} ({entry['split']} split)"))]
    scalars = verdict_scalars([(entry["name"], f"/{entry['name']}", entry) for entry in measured])
    for pair in result["pairs"]:
        scalars |= {f"{key}/{pair['a']} - {pair['b']}": pair["quality"][key] for key in ("spearman", "verdict")}
    return Report(
        title="Consistency of block importance",
        headline="\n\n".join([*refused, *(headline(entry, result) for entry in measured)]),
        sections=[
            *decision_section(decisions, units, BEST_SINGLE, list(figures)),
            *regret_section(regrets, figures=list(figures), noun=noun),
            agreement_section("Agreement", result["pairs"], result["threshold"], agreement, _verdicts(result)),
            *(each for entry in measured for each in readings_sections(entry, result)),
        ],
        kind="consistency",
        figures=figures,
        tables={"consistency/pairs": Table(COLUMNS, _pairs(result))},
        scalars=scalars,
        charts={"consistency": agreement_chart(result["pairs"])},
        metadata={"splits": result["splits"]},
    )


def _verdicts(result: dict[str, Any]) -> str:
    """The verdicts in words, one sentence per pair and measure."""
    threshold, sentences = result["threshold"], []
    nouns = " or ".join(dict.fromkeys(f"{cluster_noun(each)}s" for each in result["measurements"]))
    for pair in result["pairs"]:
        for key, label in (("quality", "quality"), ("reference_logprob", "reference log-probability")):
            entry = pair[key]
            text = f"{pair['a']} against {pair['b']}, by {label}: {entry['verdict']}"
            if entry["verdict"] == WITHHELD:
                sentences.append(f"{text}.")
                continue
            if entry["spearman"] is None:
                sentences.append(f"{text}; on one side all blocks cost the same, or {nouns} are too few: no order.")
                continue
            low, high = entry["ci"]
            text += f" (Spearman {entry['spearman']:.3f}, free of noise in [{low:.3f}, {high:.3f}])."
            needed = entry["samples_needed"]
            if entry["verdict"] == "not shown" and needed:
                text += f" At least about {needed[0]} and {needed[1]} samples are needed to show {threshold:g}."
            elif entry["verdict"] == "not shown":
                text += f" No number of samples up to 1024 times these is likely to show {threshold:g}."
            sentences.append(text)
    return "\n\n".join(sentences)


def _pairs(result: dict[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for pair in result["pairs"]:
        for measure in ("quality", "reference_logprob"):
            entry = pair[measure]
            limits = entry["ci"] or (None, None)
            rows.append([pair["a"], pair["b"], measure, entry["spearman"], *limits, entry["p_value"], entry["verdict"]])
    return rows
