"""Answer every predicted batch under many block masks, score the answers, keep every score."""

from __future__ import annotations

import math
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from tqdm.auto import tqdm

from lit_depth.functional.arguments import check_least, check_range, checked
from lit_depth.functional.fingerprints import weights_sample
from lit_depth.functional.masks import Masks, MaskSet
from lit_depth.functional.token_agreement import TokenAgreement
from lit_depth.metrics import clean_prediction
from lit_depth.metrics.base import new_metric
from lit_depth.results.records import BAD, REFERENCES, RecordWriter, check_complete, read_records
from lit_depth.results.store import run_of

if TYPE_CHECKING:
    import pandas as pd


class MaskSweep(Callback):
    """Evaluate block masks on the same samples of Lightning's predict loop.

    Use it with `lit_depth.DepthModule` (or a module with ``request_masks`` whose ``predict_step`` returns
    `lit_depth.module.MaskedPredictions`) on evaluation batches. After the loop :attr:`records` holds one row per
    (mask, sample) of *all* processes, and :attr:`bad_samples` what could not be evaluated, which no mask was scored on.

    Args:
        masks: Block masks, each bool ``[num_blocks]`` or a list of bools; repeated ones are evaluated once.
        folder: Folder of the append-only record files, one per process. What earlier runs recorded there is not
            evaluated again, whatever their number of processes.
        metric: Name in `lit_depth.metrics`, or class path of one of your own, see `lit_depth.metrics.base.resolve`. Its
            ``score`` rates one answer; a metric of a whole corpus (CIDEr-D) has a ``corpus`` instead, and scores each
            mask after the loop against the same references. Samples with continuations need one whose ``judge`` reads
            their log-probabilities (`lit_depth.metrics.likelihood`). A metric that knows more of a sample than its
            references has ``rate(sample, text)`` besides, which gives what is recorded.
        lens: Record what the logit lens reads of the reference answer behind every block of the full model, where that
            is among the masks (`lit_depth.functional.logit_lens`): lists ``lens_rank`` and ``lens_logprob``.
        acceptance: Tokens of the full model's own answer that are read under every mask, where the full model is among
            them: ``accepted`` of a record has one character for each, ``1`` where the mask takes the full model's token
            to be the most likely one. 0 = none.
        also: Metrics that read the same answers in another way; what they give stands beside the score, in columns
            called as they are, and the answers they find no option in under ``<name>_parse_failed``. None = as the
            metric says.
        max_bad_samples: Largest share of all samples, 0 to 1, that may be bad before the run stops with an error.
        description: Text before the progress bar.

    Attributes:
        running: Image and score of what has been scored so far, by mask id and sample; None = is not kept.
        num_of_process: Samples that this process has to answer.
        num_new: Answers that the latest loop has given, on all processes.
        weights: `lit_depth.functional.fingerprints.weights_sample` of the module that is to answer; None = of the one
            that the loop starts with.

    Raises:
        ValueError: If more samples are bad than allowed, a log-probability is NaN or infinite, or records are missing;
            if the records are another run's or model's; if the weights change before the loop ends.
    """

    @checked
    def __init__(
        self,
        masks: Masks,
        folder: str | Path,
        metric: str = "ExactMatch",
        max_bad_samples: float = 0.01,
        description: str = "masks",
        also: Sequence[str] | None = None,
        lens: bool = False,
        acceptance: int = 0,
    ) -> None:
        check_range(0, 1, max_bad_samples=max_bad_samples)
        check_least(0, acceptance=acceptance)
        self.masks = MaskSet.of(masks).unique()
        self.folder = Path(folder)
        self.lens, self.acceptance = lens, acceptance
        self.metric = new_metric(metric)
        self._corpus = getattr(self.metric, "corpus", None)
        self._by_full = getattr(self.metric, "against_full", False)  # scored by the full model's answers
        names = getattr(self.metric, "also", ()) if also is None else also
        self.also = {name: new_metric(name) for name in names}
        for name, second in self.also.items():
            if not hasattr(second, "score"):
                raise ValueError(f"expected a second metric that scores each answer by itself, got {name}")
        # columns of the records of whose means a result tells too
        self._told = tuple(getattr(self.metric, "told", ("parse_failed",)))
        self.max_bad_samples = max_bad_samples
        self.description = description
        self.weights: str | None = None
        self.records: pd.DataFrame | None = None
        self.running: dict[str, dict[str, tuple[str, float]]] | None = None
        self.num_of_process = self.num_new = 0
        self.bad_samples: dict[str, str] = {}
        self._run: str | None = None
        self._num_samples = 0
        self._done: set[tuple[str, str]] = set()
        self._writer: RecordWriter | None = None
        self._progress: Any = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_weights(pl_module)
        # plain tensors do not say what a unit is, the module does
        self.masks = MaskSet(self.masks.bits, pl_module.hparams.get("granularity", self.masks.granularity))
        # processes that hold one model together answer the same batches, and the first one records
        is_split = bool(getattr(pl_module, "is_split", False))
        # outside of a run's folder records belong to the weights that made them
        self._run = run_of(self.folder / "rank0.jsonl") or self.weights
        if is_split:  # which differ from process to process
            self._run = trainer.strategy.broadcast(self._run)
        # by earlier, interrupted runs, of whatever number of processes
        frame = read_records(sorted(self.folder.glob("rank*.jsonl")), run=self._run)
        self._done = set(zip(frame["mask"], frame["sample"]))
        if is_split:  # a folder may show other processes less, and then they would not answer the same
            self._done = trainer.strategy.broadcast(self._done)
        loaders, num_batches = self.loop_of(trainer)
        self._num_samples = sum(len(loader.dataset) for loader in loaders)
        self.num_of_process = -(-self._num_samples // (1 if is_split else trainer.world_size))
        for mask, sample, image, score in frame[["mask", "sample", "image", "score"]].itertuples(index=False):
            self._keep_running(mask, sample, image, score)
        if trainer.is_global_zero or not is_split:
            self._writer = RecordWriter(self.folder / f"rank{trainer.global_rank}.jsonl", self._run)
        self._progress = tqdm(
            total=num_batches * len(self.masks),
            desc=self.description,
            unit="mask x batch",
            file=sys.stderr,
            # where it is not given, the environment may turn it off
            **({} if trainer.is_global_zero else {"disable": True}),
        )
        pl_module.on_mask = self._progress.update
        pl_module.reads_lens, pl_module.acceptance = self.lens, self.acceptance  # type: ignore[assignment]

    def loop_of(self, trainer: Trainer) -> tuple[list[Any], int]:
        """The loaders of the loop that runs, and its number of batches."""
        loaders = trainer.predict_dataloaders
        return loaders if isinstance(loaders, list) else [loaders], int(sum(trainer.num_predict_batches))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        self._record_bad_samples(batch)
        wanted = self.wanted(batch)
        self._progress.update(len(self.masks) - len(wanted))
        pl_module.request_masks(wanted)  # type: ignore[operator]

    def wanted(self, batch: Mapping[str, Any]) -> MaskSet:
        """The masks that a batch is still to be answered under: all, or none where every answer is recorded.

        A batch that was interrupted is answered as a whole once more: a resumed run repeats the very computation, down
        to the last bit of its log-probabilities.
        """
        done = all((name, sample) in self._done for name in self.masks.ids for sample in batch["sample_ids"])
        return self.masks.take([]) if done else self.masks

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        if self._corpus and outputs.mask_ids:
            for sample in batch["samples"]:
                if (REFERENCES, sample.id) not in self._done:
                    self._write({"mask": REFERENCES, "sample": sample.id, "references": sample.references})
        likelihoods = outputs.likelihoods or [[None] * len(texts) for texts in outputs.texts]
        of_masks = zip(outputs.mask_ids, outputs.texts, outputs.reference_logprobs.tolist(), likelihoods)
        for row, (mask, texts, logprobs, found) in enumerate(of_masks):
            if mask not in self.masks.ids:  # asked for by another callback
                continue
            lens, agreement = (
                self._lens_columns(mask, outputs, len(texts)),
                token_columns(row, getattr(outputs, "agreement", None)),
            )
            for column, (sample, text, logprob, likelihood, of_sample) in enumerate(
                zip(batch["samples"], texts, logprobs, found, lens)
            ):
                is_scored = bool(sample.references)
                if is_scored and not math.isfinite(logprob):
                    raise overflow(pl_module, mask, sample.id)
                if (mask, sample.id) in self._done:
                    continue
                record = {"mask": mask, "sample": sample.id, "image": sample.image_id}
                if (kind := sample.meta.get("question_type")) is not None:
                    record["question_type"] = str(kind)
                record |= self._rate_text(sample, text) if likelihood is None else self._judge(sample, likelihood)
                # a float32 has no more digits, and kernels may differ in the last one
                record["reference_logprob"] = round(logprob, 6) if is_scored else None
                record |= of_sample
                if agreement:
                    record |= agreement[column]
                self._write(record)
                self._keep_running(mask, sample.id, sample.image_id, record.get("score"))
        pl_module.requested_masks = None  # type: ignore[assignment]
        if trainer.received_sigterm:  # only Lightning's own handler sets it
            raise SystemExit(128 + signal.SIGTERM)

    def _lens_columns(self, mask: str, outputs: Any, num_samples: int) -> list[dict[str, Any]]:
        """What the records of a mask's samples tell of the logit lens; it is read of the full model alone."""
        if not self.lens or "0" in mask or outputs.lens is None:
            return [{} for _ in range(num_samples)]
        ranks, logprobs = outputs.lens.ranks.T.tolist(), outputs.lens.logprobs.T.tolist()
        return [
            {"lens_rank": rank, "lens_logprob": [round(value, 6) for value in logprob]}
            for rank, logprob in zip(ranks, logprobs)
        ]

    def _keep_running(self, mask: str, sample: str, image: str, score: float | None) -> None:
        if self.running is not None and score is not None and not math.isnan(score):
            self.running.setdefault(mask, {})[sample] = (image, float(score))

    def _rate_text(self, sample: Any, text: str) -> dict[str, Any]:
        if hasattr(self.metric, "rate"):  # which reads the text as it is
            return self.metric.rate(sample, text)
        if not self._corpus and not hasattr(self.metric, "score"):
            name = type(self.metric).__name__
            raise ValueError(f"expected a metric of generated answers, got {name}, which reads log-probabilities")
        answer = clean_prediction(text)
        record: dict[str, Any] = {"prediction": answer}
        is_rated = not self._corpus and not self._by_full
        record["score"] = self._score(self.metric, text, sample) if is_rated else None
        if hasattr(self.metric, "parses"):
            record["parse_failed"] = not self.metric.parses(_seen(self.metric, text), sample.options)
        for name, second in self.also.items():
            record |= self._read_again(name, second, sample, text, record["score"])
        return record

    def _read_again(self, name: str, second: Any, sample: Any, text: str, score: float | None) -> dict[str, Any]:
        """What a second reading makes of an answer; where there is no option to be read, the first one's score."""
        if not hasattr(second, "parses"):
            return {name: self._score(second, text, sample)}
        if not sample.options:
            return {} if score is None else {name: score, f"{name}_parse_failed": False}
        read = {f"{name}_parse_failed": not second.parses(_seen(second, text), sample.options)}
        return read if score is None else {name: self._score(second, text, sample), **read}

    def _judge(self, sample: Any, likelihoods: Sequence[Any]) -> dict[str, Any]:
        if not hasattr(self.metric, "judge"):
            raise ValueError(
                f"expected a metric of log-probabilities, such as acc or acc_norm, got {type(self.metric).__name__}, "
                "which scores generated answers: give another --data.metric, or --data.answer_by generation"
            )
        record: dict[str, Any] = self.metric.judge(sample, likelihoods)
        if math.isfinite(self.metric.max_score):  # else a log-probability, of no known range
            _check_scores(self.metric, {sample.id: record["score"]})
        return record

    def _score(self, metric: Any, text: str, sample: Any) -> float:
        try:
            score = metric.score(_seen(metric, text), sample.references, sample.options)
        except ValueError as error:
            name = type(metric).__name__
            raise ValueError(f"{name} does not fit sample {sample.id}: {error}; give another --data.metric") from error
        _check_scores(metric, {sample.id: score})
        return score

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_weights(pl_module)
        self._close(pl_module)
        # every process has written its last record before any process reads
        trainer.strategy.barrier("lit_depth: records complete")
        self.read()
        assert self.records is not None
        self.num_new = len(self.records) - sum(mask in self.masks.ids for mask, _ in self._done)
        self.check_bad_samples(self._num_samples)  # over all processes

    def read(self) -> None:
        """Set :attr:`records` and :attr:`bad_samples` from what the folder holds."""
        frame = read_records(sorted(self.folder.glob("rank*.jsonl")), run=self._run)
        self.records = frame[frame["mask"].isin(self.masks.ids)].reset_index(drop=True)
        # a sample that an earlier run could not read, and this one could, is not bad any more
        bad = frame[(frame["mask"] == BAD) & ~frame["sample"].isin(self.records["sample"])]
        self.bad_samples = dict(zip(bad["sample"], bad["prediction"]))
        for name in self.records:
            if name.endswith("parse_failed") and self.records[name].notna().all():
                self.records[name] = self.records[name].astype(bool)
        if self._by_full:
            self.records = _score_agreement(self.records)
        if self._corpus and "references" in frame:
            references = frame[frame["mask"] == REFERENCES].set_index("sample")["references"]
            self.records = _score_corpus(self.records.drop(columns="references"), references, self._corpus)
            _check_scores(self.metric, self.records.set_index("sample")["score"].dropna().to_dict())

    @property
    def told(self) -> dict[str, dict[str, float]]:
        """Means, by mask id, of what a metric tells beside the score.

        Of one that reads choices, ``parse_failed`` is the share of answers in which it found none; of options chosen by
        log-likelihood, ``acc`` and ``acc_norm`` are the scores by either normalisation.
        """
        means: dict[str, dict[str, float]] = {}
        if self.records is None:
            return means
        for name in self._told:
            if name in self.records:
                known = self.records.dropna(subset=[name])
                means[name] = known[name].astype(float).groupby(known["mask"]).mean().to_dict()
        return means

    def check_bad_samples(self, num_samples: int) -> None:
        """Raise ValueError if more of ``num_samples`` are bad than ``max_bad_samples`` allows."""
        check_bad_samples(self.bad_samples, num_samples, self.max_bad_samples)

    def check_complete(self, num_samples: int) -> None:
        """Raise ValueError unless every mask has a record of each of the same ``num_samples`` samples."""
        assert self.records is not None
        check_complete(self.records, list(self.masks.ids), num_samples)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.records is None:  # what comes after the loop every process finds
            exception.process = trainer.global_rank  # type: ignore[attr-defined]
        self._close(pl_module)

    def _check_weights(self, pl_module: LightningModule) -> None:
        """Refuse answers of other weights: something may load a checkpoint on the way, or train."""
        sample = weights_sample(pl_module)
        if self.weights in (None, sample):
            self.weights = sample
            return
        if self._writer is not None:
            self._writer.take_back()
        name = pl_module.hparams.get("checkpoint", type(pl_module).__name__)
        raise ValueError(
            f"the weights of {name} changed after the run had begun, so its answers would be another model's: they are "
            "not recorded, and no result is written"
        )

    def _close(self, pl_module: LightningModule) -> None:
        # an interruption may come between the two
        for opened in (self._writer, self._progress):
            if opened is not None:
                opened.close()
        pl_module.on_mask = lambda: None  # type: ignore[assignment]
        pl_module.reads_lens, pl_module.acceptance = False, 0  # type: ignore[assignment]
        pl_module.requested_masks = None  # type: ignore[assignment]

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(record)

    def _record_bad_samples(self, batch: dict[str, Any]) -> None:
        for bad in batch["bad_samples"]:
            self.bad_samples[bad.id] = bad.reason
            if (BAD, bad.id) not in self._done:
                self._write({"mask": BAD, "sample": bad.id, "prediction": bad.reason})
        self.check_bad_samples(self._num_samples)


def token_columns(row: int, agreement: TokenAgreement | None) -> list[dict[str, Any]]:
    """What the records of a mask's samples tell of its agreement with the full model; nothing where it is not known.

    Args:
        row: Place of the mask.
        agreement: Of all masks.
    """
    if agreement is None:
        return []
    found = []
    for first, share, accepted in zip(*(each[row].tolist() for each in agreement)):
        columns: dict[str, Any] = {"first_difference": first}
        if not math.isnan(share):
            columns["reference_agreement"] = round(share, 6)
        if accepted:
            columns["accepted"] = "".join(str(each) for each in accepted if each >= 0)
        found.append(columns)
    return found


def _seen(metric: Any, text: str) -> str:
    """What a metric sees of a generated text."""
    return text if getattr(metric, "reads_whole", False) else clean_prediction(text)


def _check_scores(metric: Any, scores: Mapping[str, float]) -> None:
    """Refuse what a metric of one's own may not give, by sample."""
    most = metric.max_score
    for sample, score in scores.items():
        if not 0 <= score <= most * (1 + 1e-9):
            raise ValueError(
                f"expected scores of {type(metric).__name__} from 0 to {most:g} (its max_score), got {score} for "
                f"sample {sample}"
            )


def check_bad_samples(bad_samples: Mapping[str, str], num_samples: int, allowed: float) -> None:
    """Raise ValueError if the bad samples (name -> reason) are more than this share of ``num_samples``."""
    if len(bad_samples) > allowed * num_samples:
        name, reason = next(iter(bad_samples.items()))
        raise ValueError(
            f"{len(bad_samples)} of {num_samples} samples cannot be evaluated, allowed are {allowed:.1%} "
            f"(max_bad_samples); the first: {name}: {reason}. Mend them, or leave them out: "
            f"--max_bad_samples {math.ceil(100 * len(bad_samples) / num_samples) / 100:g}"
        )


def _score_corpus(records: pd.DataFrame, references: pd.Series, corpus: Any) -> pd.DataFrame:
    """Fill in the scores of every mask, all against the same references; leave them open where records are missing."""
    samples = sorted(set(records["sample"]))
    counts = records["mask"].value_counts()
    if not samples or (counts != len(samples)).any() or references.index.isin(samples).sum() < len(samples):
        return records
    prepared = corpus([references[sample] for sample in samples])
    predictions = records.pivot(index="mask", columns="sample", values="prediction")[samples]
    scores = {
        (mask, sample): score
        for mask, row in zip(predictions.index, predictions.to_numpy())
        for sample, score in zip(samples, prepared.score(list(row)))
    }
    keys = zip(records["mask"], records["sample"])
    return records.assign(score=[scores[key] for key in keys])


def _score_agreement(records: pd.DataFrame) -> pd.DataFrame:
    """Score 1 where an answer is the full model's; open where that one is missing."""
    is_full = ~records["mask"].astype(str).str.contains("0")
    full = records[is_full].set_index("sample")["prediction"]
    theirs = records["sample"].map(full)
    return records.assign(score=(records["prediction"] == theirs).astype(float).where(theirs.notna()))


def overflow(pl_module: LightningModule, mask: str, sample: str) -> ValueError:
    """What to raise where a model gives no numbers."""
    try:
        precision = pl_module.trainer.precision
    except RuntimeError:  # no trainer
        precision = None
    why = _why(pl_module, precision)
    return ValueError(f"logits are NaN or infinite for mask {mask}, sample {sample}{why}")


@contextmanager
def located(where: str, model: nn.Module, precision: Any) -> Iterator[None]:
    """Say of an error about values that are not finite where that was, and why.

    Args:
        where: Names of samples or prompts.
        precision: That of the trainer which runs the model.
    """
    try:
        yield
    except ValueError as error:
        if not re.search(r"expected (a )?finite", str(error)):
            raise
        raise ValueError(f"{error}, in {where}{_why(model, precision)}") from error


def _why(model: nn.Module, precision: Any) -> str:
    halves = any(weight.dtype is torch.float16 for weight in model.parameters())
    if not halves and str(precision) != "16-mixed":
        return ""
    return ": float16 holds no number above 65,504; give --model.dtype bfloat16 or float32, and no 16-mixed precision"
