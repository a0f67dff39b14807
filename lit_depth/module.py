"""The LightningModule: holds a model and its processor, answers batches under masks, and can be trained."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lit_depth.callbacks.holders import check_holders, check_same_batches
from lit_depth.callbacks.mask_sweep import overflow
from lit_depth.functional import find_blocks
from lit_depth.functional.arguments import MAX_TOKENS, check_least, check_range, checked, shorten
from lit_depth.functional.engine.api import answer_masks, score_continuations
from lit_depth.functional.engine.decoding_configuration import decoding_configuration, end_token_ids
from lit_depth.functional.engine.greedy_tokens import GreedyTokens, full_place
from lit_depth.functional.healing.answers import with_answers
from lit_depth.functional.inputs import IGNORE, TEXT_INPUTS, is_image_input, reference_logprob
from lit_depth.functional.lens import LensReading
from lit_depth.functional.masking.blocks import context_length
from lit_depth.functional.masking.skip import Phase, masked
from lit_depth.functional.masks import TOKENS_OF, Granularity, Masks, MaskSet, SkipTokens, units_of
from lit_depth.functional.shards import holders_of
from lit_depth.functional.token_agreement import TokenAgreement, token_agreement
from lit_depth.metrics.likelihood import Likelihood
from lit_depth.models.loading import load_checkpoint, new_model, outline_model
from lit_depth.models.prompting import prompter_for
from lit_depth.models.quantization import Quantization, check_places, is_quantized
from lit_depth.models.router_loss import has_experts, router_loss
from lit_depth.models.serving import check_serves
from lit_depth.models.tensor_parallel import leave_weights


class MaskedPredictions(NamedTuple):
    """What one batch gave under every mask (B samples, M masks)."""

    sample_ids: list[str]
    mask_ids: list[str]
    texts: list[list[str]]  # [M][B]
    reference_logprobs: Tensor  # [M, B]
    likelihoods: list[list[list[Likelihood]]] | None = None  # [M][B], of each continuation; None = answers are texts
    lens: LensReading | None = None  # of the full model, [num_blocks, B]; None = nobody asked
    agreement: TokenAgreement | None = None  # [M, B]; None = the full model was not among them, or wrote nothing


# predictions of a batch that another process has answered already
ANSWERED = "predictions"
# arguments that an evaluation does not read
_OF_TRAINING = ("learning_rate", "betas", "weight_decay", "warmup_steps", "router_loss")


class DepthModule(LightningModule):
    """A vision-language model whose transformer blocks can be skipped.

    Args:
        checkpoint: ``bundled``, a checkpoint folder, or an id on the hub (``organisation/name``).
        revision: Branch, tag or commit on the hub.
        dtype: Number format of the weights: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``.
        quantization: Quantise the weights while they are loaded, by bitsandbytes: ``int8`` or ``nf4`` (4 bits);
            ``none`` = leave them as stored.
        device_map: Where the model lies: ``auto`` (what fits on the GPUs, the rest in memory and on the disk), a
            device, or devices by the names of modules; null = the trainer's device.
        offload_folder: With ``device_map``: folder for weights on the disk that the model holds in another form than
            its files, such as experts; what is written there is removed at the end.
        tp_plan: Split the weights over all processes, which torchrun has started (tensor parallel): ``auto`` by the
            plan that transformers has of the family, or rules by names of modules beside it; null = each process holds
            the whole model. All processes answer the same batches.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``; null = the model's default.
        trust_remote_code: Run code that comes with the checkpoint.
        processor_kwargs: Settings of the processor in place of the checkpoint's own, such as
            ``{"max_pixels": 250000}`` for images of fewer tokens.
        experts_per_token: Experts that each token goes to, in a mixture of experts; null = as the checkpoint says.
        max_crops: Most crops that a picture is cut into, beside its overview; null = as the checkpoint says.
        chat_template_kwargs: Variables of the chat template, such as ``{"enable_thinking": true}``; modes of thinking
            are off unless they are asked for.
        answer_after: Text behind which the answer begins that is scored, such as ``</think>``; an answer without it is
            empty. null = all that is generated.
        from_scratch: Initialise the weights at random instead of loading them; ``checkpoint`` then needs only
            ``config.json`` and the processor's files. For training.
        meta: Make the model from ``config.json`` alone, without weights, on torch's meta device: enough for
            ``latency --plan``, which asks for it itself, and for nothing else.
        blocks: Dotted path of the decoder blocks, where they cannot be found.
        max_new_tokens: Longest answer in tokens; null = what the task asks for.
        max_rows: Most (mask, sample) rows answered at once; null = as many as fit a third of the free memory, and
            about the memory of the weights once more.
        granularity: What one unit of a mask switches: a ``block``, or with ``sublayer`` its attention (unit 2i of
            block i) or its MLP (unit 2i + 1).
        phase: Forwards that a mask applies to: ``both``, ``decode`` (the prompt runs through all blocks) or
            ``prefill`` (as ``both``, because a skipped prompt leaves nothing to decode on, unless
            ``decode_without_prompt``).
        decode_without_prompt: With ``phase=prefill``: run the skipped blocks in decode steps, where they see the
            decoded tokens alone.
        skip_tokens: Tokens that skip the blocks of a mask: ``all``; ``image`` (image tokens pass by, text tokens run
            and see them); ``image_drop`` (text tokens do not see them there; one mask is answered after another).
        learning_rate: Peak learning rate of AdamW.
        betas: Decay rates of AdamW's moments.
        weight_decay: AdamW's weight decay.
        warmup_steps: Steps of linear warm-up before the cosine decay to zero.
        router_loss: Weight of the experts' load-balancing loss of each block.
    """

    @checked
    def __init__(
        self,
        checkpoint: str = "bundled",
        revision: str | None = None,
        dtype: str = "auto",
        quantization: Quantization = "none",
        device_map: str | dict[str, int | str] | None = None,
        offload_folder: str | None = None,
        tp_plan: Literal["auto"] | dict[str, str] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        experts_per_token: int | None = None,
        max_crops: int | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        answer_after: str | None = None,
        from_scratch: bool = False,
        meta: bool = False,
        blocks: str | None = None,
        max_new_tokens: int | None = None,
        max_rows: int | None = None,
        granularity: Granularity = "block",
        phase: Phase = "both",
        decode_without_prompt: bool = False,
        skip_tokens: SkipTokens = "all",
        learning_rate: float = 1.5e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        router_loss: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_range(1, MAX_TOKENS, max_new_tokens=max_new_tokens)
        check_least(1, max_rows=max_rows, experts_per_token=experts_per_token, max_crops=max_crops)
        rates = {"learning_rate": learning_rate, "weight_decay": weight_decay, "router_loss": router_loss}
        check_least(0, **rates, warmup_steps=warmup_steps)
        for beta in betas:
            check_range(0, 1, betas=beta)
        if from_scratch and (dtype, quantization, device_map, tp_plan) != ("auto", "none", None, None):
            raise ValueError(
                "--model.from_scratch true makes new weights and loads none: leave out --model.dtype, "
                "--model.quantization, --model.device_map and --model.tp_plan"
            )
        asked = ("processor_kwargs", "experts_per_token", "max_crops")
        names = ("revision", "attn_implementation", "trust_remote_code", *asked)
        source = {name: self.hparams[name] for name in names}
        if meta:
            check_places(device_map)  # of the machine that is planned for
            self.model, self.processor = outline_model(checkpoint, dtype=dtype, **source)
        elif from_scratch:
            self.model, self.processor = new_model(checkpoint, **source)
        else:
            self.model, self.processor = load_checkpoint(
                checkpoint,
                dtype=dtype,
                quantization=quantization,
                device_map=device_map,
                offload_folder=offload_folder,
                tp_plan=tp_plan,
                **source,
            )
        # it stays where it was put when it was loaded
        self.is_placed = not meta and (device_map is not None or is_quantized(self.model) or self.is_split)
        self._stays = False
        if self.is_split:
            leave_weights(self)
        if self.processor is not None:  # there may be none for a model without weights
            self.prompter = prompter_for(self.model, self.processor, chat_template_kwargs)
            check_serves(self.prompter, self.model, processor_kwargs)
        if answer_after is not None and not answer_after.strip():
            raise ValueError(f"expected answer_after as a text such as </think>, got {answer_after!r}")
        context = context_length(self.model)
        if max_new_tokens is not None and context is not None and max_new_tokens >= context:
            raise ValueError(
                f"expected max_new_tokens below the model's context of {context} tokens, got {max_new_tokens}"
            )
        self.num_blocks = len(find_blocks(self.model, blocks))
        # what a mask switches
        self.num_units = units_of(self.num_blocks, granularity)
        if phase != "both" or decode_without_prompt or granularity != "block" or skip_tokens != "all":
            self.masked(MaskSet.full(self.num_units)[0])  # refuse what cannot be masked so
        # set by whoever knows the task (a study), where the user left it open
        self.max_new_tokens: int = max_new_tokens or 16
        self._new_tokens_before = self.max_new_tokens
        # what the active callbacks want answered (None: nobody asked); and who wants to hear of progress
        self.requested_masks: MaskSet | None = None
        self.on_mask: Callable[[], None] = lambda: None
        # whether a callback wants what the logit lens reads of the full model's answers
        self.reads_lens = False
        # tokens of the full model's own answer to be read under every mask
        self.acceptance = 0

    @property
    def is_split(self) -> bool:
        """Whether the processes of the run hold the model together, and so answer the same batches."""
        return holders_of(self.model) > 1

    @property
    def device(self) -> torch.device:
        """Where inputs belong: of a model on several devices the one that it begins on."""
        if not self.is_placed:
            return super().device
        return next(weight.device for weight in self.model.parameters() if not weight.is_meta)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The base's, unless the model was placed on loading (``is_placed``): then a check that it is there.

        Raises:
            ValueError: If it is on another kind of device, or has no weights.
        """
        self.check_has_weights()
        if not self.is_placed:
            return super().to(*args, **kwargs)
        wanted = torch.empty(0).to(*args, **kwargs).device
        if wanted.type != self.device.type:
            raise ValueError(
                f"expected the model on the trainer's device, {wanted.type}, got it on {self.device.type}: give "
                f"--trainer.accelerator {self.device.type}, or another --model.device_map"
            )
        return self

    def check_has_weights(self) -> None:
        """Raise ValueError for a model that was made without."""
        if self.hparams["meta"]:
            raise ValueError("expected a model with weights, got --model.meta true, which is for latency --plan alone")

    def cpu(self) -> Self:
        """The base's, called after each loop; a model that was placed on loading, or is to stay, is left."""
        return self if self.is_placed or self._stays else super().cpu()

    @contextmanager
    def staying_on_device(self) -> Iterator[None]:
        """Inside, a loop that ends leaves the model on its device, for the next one; at the end it goes to the CPU.

        Lightning moves it to the CPU after every loop else. A search has many short ones.
        """
        self._stays = True
        try:
            yield
        finally:
            self._stays = False
            self.cpu()

    @property
    def hparams_initial(self) -> Any:
        """What loggers keep of the arguments: an optimiser's only where it trains."""
        found = super().hparams_initial
        try:
            trains = self.trainer.state.fn == TrainerFn.FITTING
        except RuntimeError:  # no trainer
            trains = True
        return found if trains else type(found)({k: v for k, v in found.items() if k not in _OF_TRAINING})

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; a text model's processor is its tokenizer."""
        return self.prompter.tokenizer

    @property
    def pad_token_id(self) -> int:
        """Token that fills rows: the tokenizer's pad token, else its end token, else the model's, else 0."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, *self.end_token_ids, 0)
        return next(token for token in known if token is not None)

    @property
    def end_token_ids(self) -> list[int]:
        """Tokens that end an answer: those of the model's generation_config and the tokenizer's."""
        return end_token_ids(self.model, self.tokenizer)

    def decoding_configuration(self) -> dict[str, Any]:
        """What decides about an answer besides the model and its inputs; fit for JSON."""
        return decoding_configuration(self.model, self.max_new_tokens, self.end_token_ids, self.pad_token_id)

    def masked(self, mask: Tensor) -> AbstractContextManager[nn.Module]:
        """Skip blocks inside a ``with`` statement, by the units and in the phase that the module was made for."""
        return masked(self.model, mask, **self._masking())

    def _masking(self) -> dict[str, Any]:
        named = {name: self.hparams[name] for name in ("blocks", "granularity", "phase", "decode_without_prompt")}
        return {**named, "tokens": TOKENS_OF[self.hparams["skip_tokens"]]}

    def use_task(self, max_new_tokens: int) -> None:
        """Answer with at most this many tokens, unless the module was made with its own ``max_new_tokens``."""
        self.max_new_tokens = self.hparams["max_new_tokens"] or max_new_tokens

    @checked
    def request_masks(self, masks: Masks) -> None:
        """Ask `predict_step` to answer under these masks too (see `MaskSet.of`); of an empty `MaskSet`, under none."""
        if not isinstance(masks, MaskSet) or len(masks):
            masks = MaskSet.of(masks, self.num_units, self.hparams["granularity"])
        self.requested_masks = masks if self.requested_masks is None else self.requested_masks.union(masks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what Lightning loads unasked in an evaluation under SLURM: another model may have left it there."""
        try:
            path, fn = str(self.trainer.ckpt_path), self.trainer.state.fn
        except RuntimeError:  # no trainer: `load_from_checkpoint`, which names its file
            return
        if "hpc_ckpt_" in path and fn != TrainerFn.FITTING:
            raise ValueError(f"expected no {path}, which would replace the model: move it away, or use DepthTrainer")

    def setup(self, stage: str) -> None:
        if self.hparams["device_map"] is not None and self.trainer.world_size > 1:
            raise ValueError(
                f"expected one process for a model with --model.device_map, got {self.trainer.world_size}: give "
                "--trainer.devices 1"
            )
        if stage == TrainerFn.FITTING and self.is_placed:
            raise ValueError(
                "cannot train a quantised model, or one with --model.device_map or --model.tp_plan: give "
                "--model.quantization none, an unquantised checkpoint, --model.device_map null and --model.tp_plan null"
            )
        self.check_processes(self.trainer)

    def check_processes(self, trainer: Trainer) -> None:
        """Refuse a trainer whose processes are not those that hold the model together.

        Raises:
            ValueError: If it has fewer or more of them, or would give each process other batches or other numbers.
        """
        if self.is_split:
            check_holders(trainer, holders_of(self.model))

    def on_fit_start(self) -> None:
        self.model.train()  # loaded in evaluation mode, which Lightning would keep

    def on_validation_start(self) -> None:
        if self.is_split:
            check_same_batches(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        if self.is_split:
            check_same_batches(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        if self.is_split:
            check_same_batches(self.trainer.predict_dataloaders)
        self._new_tokens_before = self.max_new_tokens
        # of the batches: the trainer may know a datamodule of an earlier loop
        task = getattr(getattr(self.trainer.predict_dataloaders, "dataset", None), "task", None)
        if task is not None:
            self.use_task(task.max_new_tokens)

    def on_predict_end(self) -> None:
        self.max_new_tokens = self._new_tokens_before

    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0) -> MaskedPredictions:
        """Answer an evaluation batch under every requested mask (the full model where nobody asked)."""
        if isinstance(batch, Mapping) and ANSWERED in batch:
            for _ in batch[ANSWERED].mask_ids:
                self.on_mask()
            return batch[ANSWERED]
        check_batch(batch)
        masks = self.requested_masks
        if masks is None:
            masks = MaskSet.full(self.num_units, self.hparams["granularity"])
        if not len(masks) or not batch["sample_ids"]:  # all done already, or every sample of the batch was bad
            return MaskedPredictions([], list(masks.ids), [[] for _ in masks], torch.zeros(len(masks), 0))
        if "continuation_ids" in batch:
            return self._score(batch, masks)
        is_withheld = "answer_ids" not in batch
        # logits that are no numbers show in the log-probability of any token
        any_token = {"answer_ids": batch["input_ids"].new_zeros(len(batch["sample_ids"]), 1)} if is_withheld else {}
        stop = self._stop(batch["samples"])
        lens: list[LensReading] = []
        on_lens = lens.append if self.reads_lens and not is_withheld else None
        greedy: list[GreedyTokens] = []
        listeners: dict[str, Any] = {"on_lens": on_lens}
        full = full_place(masks)
        if full is not None:
            listeners |= {"on_greedy": greedy.append, "acceptance": self.acceptance}
        tokens, logprobs = self.answer({**batch, **any_token}, masks, self.max_new_tokens, stop, **listeners)
        if is_withheld:
            for mask, sample in logprobs.isnan().nonzero().tolist():
                raise overflow(self, masks.ids[mask], batch["sample_ids"][sample])
            logprobs = torch.full_like(logprobs, torch.nan)
        texts = [self.texts(rows) for rows in tokens]
        found = MaskedPredictions(list(batch["sample_ids"]), list(masks.ids), texts, logprobs)
        if full is not None:
            agreement = token_agreement(tokens, greedy[-1], full)
            if is_withheld:
                agreement = agreement._replace(reference=torch.full_like(logprobs, torch.nan))
            found = found._replace(agreement=agreement)
        return found._replace(lens=lens[-1] if lens else None)

    def texts(self, tokens: Tensor) -> list[str]:
        """What generated tokens ``[rows, tokens]`` say: the part that is scored, without the end token."""
        return self.prompter.decode(tokens, self.hparams["answer_after"], self.end_token_ids)

    def _score(self, batch: Mapping[str, Any], masks: MaskSet) -> MaskedPredictions:
        """Predictions of a batch whose samples have continuations, which are texts already."""
        ids = batch["continuation_ids"]
        places = [place for place, sample in enumerate(batch["samples"]) for _ in sample.continuations]
        lens: list[LensReading] = []
        found = score_continuations(
            self.model,
            model_inputs(batch),
            masks,
            ids,
            batch["continuation_rows"],
            on_lens=lens.append if self.reads_lens else None,
            **self._sweeping(),
        )
        num_tokens = (ids != IGNORE).sum(1).tolist()
        likelihoods: list[list[list[Likelihood]]] = [[[] for _ in batch["samples"]] for _ in masks]
        for of_mask, logprobs, greedy in zip(likelihoods, found.logprobs.tolist(), found.num_greedy.long().tolist()):
            for place, *values in zip(places, logprobs, num_tokens, greedy):
                of_mask[place].append(Likelihood(*values))
        targets = [[each[sample.target] for sample, each in zip(batch["samples"], row)] for row in likelihoods]
        means = torch.tensor([[each.logprob / each.num_tokens for each in row] for row in targets])
        texts = [[sample.continuations[sample.target] for sample in batch["samples"]] for _ in masks]
        firsts = accumulate([len(sample.continuations) for sample in batch["samples"]], initial=0)
        of_target = [first + sample.target for first, sample in zip(firsts, batch["samples"])]
        told = LensReading(*(each[:, of_target] for each in lens[-1])) if lens else None
        return MaskedPredictions(list(batch["sample_ids"]), list(masks.ids), texts, means, likelihoods, told)

    def _sweeping(self) -> dict[str, Any]:
        options = {"pad_token_id": self.pad_token_id, "max_rows": self.hparams["max_rows"], "on_mask": self.on_mask}
        return {**options, **self._masking()}

    def _stop(self, samples: Sequence[Any]) -> Callable[[Tensor], Tensor] | None:
        """What ends answers early where all samples name the same texts; None = nothing but end tokens."""
        until = {getattr(sample, "until", ()) for sample in samples}
        # texts that end an answer may stand in the reasoning before it
        if len(until) > 1 or not any(until) or self.hparams["answer_after"] is not None:
            return None
        return self.prompter.stops(until.pop(), self.end_token_ids)

    def answer(
        self,
        batch: Mapping[str, Any],
        masks: MaskSet,
        max_new_tokens: int,
        stop: Callable[[Tensor], Tensor] | None = None,
        **listeners: Any,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and reference log-probabilities of a batch with samples, see `answer_masks`."""
        return answer_masks(
            self.model,
            model_inputs(batch),
            masks,
            answer_ids=batch.get("answer_ids"),
            max_new_tokens=max_new_tokens,
            eos_token_id=self.end_token_ids,
            stop=stop,
            **listeners,
            **self._sweeping(),
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int = 0) -> Tensor:
        """Cross entropy on answer and end tokens, plus the experts' load-balancing loss of each block that ran."""
        loss, parts = self.training_loss(batch)
        for name, value in parts.items():
            self.log(name, value, prog_bar=name == "train/answer_loss")
        return loss

    def training_loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `training_step` returns, and its parts by the names that they are logged by."""
        mixture = self.hparams["router_loss"] > 0 and has_experts(self.model)
        outputs = self.model(
            **model_inputs(batch), labels=batch["labels"], use_cache=False, output_router_logits=mixture or None
        )
        loss = outputs.loss
        parts = {"train/answer_loss": loss}
        if mixture:
            balance = router_loss(self.model, outputs.router_logits, batch["attention_mask"])
            parts["train/router_loss"] = balance / len(outputs.router_logits)
            loss = loss + self.hparams["router_loss"] * balance
        return loss, parts

    def validation_step(self, batch: dict[str, Any], batch_idx: int = 0) -> None:
        """Log the mean log-probability of the reference answers."""
        check_batch(batch)
        if not batch["sample_ids"]:
            return
        if "continuation_ids" in batch:
            scores = self._score(batch, MaskSet.full(self.num_units, self.hparams["granularity"])).reference_logprobs[0]
        else:
            inputs = model_inputs(batch)
            scores = reference_logprob(self.model, inputs, batch["answer_ids"], pad_token_id=self.pad_token_id)
        self.log("val/reference_logprob", scores.mean(), batch_size=len(scores), prog_bar=True, sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        names = ("learning_rate", "betas", "weight_decay", "warmup_steps")
        return adamw(self, **{name: self.hparams[name] for name in names})


def adamw(
    module: LightningModule, learning_rate: float, betas: tuple[float, float], weight_decay: float, warmup_steps: int
) -> OptimizerLRScheduler:
    """AdamW over the training that a module is in: linear warm-up, then cosine decay to zero."""
    # brings peft and the rest of transformers' own training, which only a training needs
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
    steps = int(module.trainer.estimated_stepping_batches)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_batch(batch: Any) -> None:
    """Raise ValueError for what is no evaluation batch of `lit_depth.data`; one of bad samples only has no tensors."""
    needed = ["sample_ids"]
    if isinstance(batch, Mapping) and batch.get("sample_ids"):
        needed += ["input_ids", "attention_mask"]
        samples = batch.get("samples", ())
        if not samples or any(sample.references for sample in samples):  # else the answers are withheld
            needed += ["answer_ids"]
    missing = [name for name in needed if not isinstance(batch, Mapping) or name not in batch]
    if missing:
        given = ", ".join(map(str, batch)) or "nothing" if isinstance(batch, Mapping) else shorten(batch)
        raise ValueError(f"expected an evaluation batch with {', '.join(missing)} (see EvalCollator), got {given}")


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a batch that are inputs of the model, not labels or bookkeeping."""
    wanted = (name for name in batch if name in TEXT_INPUTS or is_image_input(name))
    return {name: batch[name] for name in wanted if isinstance(batch[name], Tensor)}


def labelled(model: DepthModule, batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """Evaluation batches as `lit_depth.functional.patch` reads them: prompts, answers behind them, and ``labels``.

    They are on the module's device; a batch of bad samples only is left out.
    """
    found = []
    for batch in batches:
        if batch["sample_ids"]:
            rows = with_answers(model_inputs(batch), batch["answer_ids"], model.pad_token_id)
            found.append({name: value.to(model.device) for name, value in rows.items()})
    return found
