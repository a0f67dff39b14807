"""Sentences and tables about measures: normalisations of options, perplexity of texts."""

import math

from lit_depth.results.measures import cluster_noun, describe_measure, document_sections, perplexity, shared_nouns

DOCUMENTS = {f"d{n}": {"num_tokens": n, "logprob": -1.0, "perplexity": math.e} for n in range(1, 23)}
TEXTS = {"full": {"quality": -1.0, "quality_ci": [-2.0, 0.0]}, "texts": {"num_tokens": 253, "documents": DOCUMENTS}}


def test_perplexity_stands_beside_the_log_probability_of_texts():
    assert describe_measure(TEXTS).endswith("of 253 tokens in all: perplexity 2.72 [1, 7.39].")
    assert cluster_noun(TEXTS) == "document" and cluster_noun({}) == "image" and describe_measure({}) == ""


def test_several_tasks_name_all_that_they_are_of():
    assert shared_nouns([{}, {"texts": {}}]) == {}
    windows = {"nouns": {"sample": "window", "cluster": "document"}}
    assert shared_nouns([{}, windows, windows]) == {
        "nouns": {"sample": "question or window", "cluster": "image or document"}
    }


def test_a_perplexity_without_a_number_is_cut():
    assert perplexity(-1.0, (-1e6, 0.0)).endswith("1.01e+304]")


def test_the_largest_documents_are_shown():
    (section,) = document_sections(TEXTS)
    assert section.table.rows[0] == ["d22", 22, "-1.000", "2.718"] and len(section.table.rows) == 20
    assert "2 smaller ones are left out" in section.text and document_sections({}) == []
