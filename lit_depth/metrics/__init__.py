"""Metrics on generated answers: one file each, a pure function and a torchmetrics shell."""

from lit_depth.metrics.agreement import Agreement
from lit_depth.metrics.anls import ANLS, anls
from lit_depth.metrics.caption_tokens import tokenize_caption
from lit_depth.metrics.chat_choice import ChatChoiceAccuracy, parse_chat_choice
from lit_depth.metrics.cider import CIDErD, ReferenceCorpus, cider_d
from lit_depth.metrics.contains import Contains, contains
from lit_depth.metrics.exact_match import ExactMatch, exact_match
from lit_depth.metrics.likelihood import (
    LikelihoodAccuracy,
    LikelihoodAccuracyPerCharacter,
    TokenLogProbability,
    most_likely,
)
from lit_depth.metrics.mmmu import MMMUAccuracy, mmmu_accuracy, parse_mmmu_choice
from lit_depth.metrics.multiple_choice import MultipleChoiceAccuracy, multiple_choice_accuracy, parse_choice
from lit_depth.metrics.relaxed_accuracy import RelaxedAccuracy, relaxed_accuracy
from lit_depth.metrics.text import clean_prediction
from lit_depth.metrics.vqa import MolmoVQAAccuracy, VQAAccuracy, normalize_vqa_answer, vqa_accuracy

__all__ = [
    "ANLS",
    "Agreement",
    "CIDErD",
    "ChatChoiceAccuracy",
    "Contains",
    "ExactMatch",
    "LikelihoodAccuracy",
    "LikelihoodAccuracyPerCharacter",
    "MMMUAccuracy",
    "MolmoVQAAccuracy",
    "MultipleChoiceAccuracy",
    "ReferenceCorpus",
    "RelaxedAccuracy",
    "TokenLogProbability",
    "VQAAccuracy",
    "anls",
    "cider_d",
    "clean_prediction",
    "contains",
    "exact_match",
    "mmmu_accuracy",
    "most_likely",
    "multiple_choice_accuracy",
    "normalize_vqa_answer",
    "parse_chat_choice",
    "parse_choice",
    "parse_mmmu_choice",
    "relaxed_accuracy",
    "tokenize_caption",
    "vqa_accuracy",
]
