"""``lit-depth tokens``: what each token of a prompt does for the final position of every block."""

from typing import Any

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import checked
from lit_depth.module import DepthModule

RESULT = "tokens.json"


@checked
def tokens(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    prompt: str | None = None,
    prompt_file: str | None = None,
    prompts: str | None = None,
    image: str | None = None,
    num_samples: int | None = None,
    num_output_tokens: int | None = None,
    after_end: bool = False,
    spans: bool = False,
    knockout: bool = False,
    span: list[str] | None = None,
    device: str | None = None,
    output_dir: str = "results",
    name: str = "default",
) -> dict[str, Any]:
    """Hide one token at a time from one block's attention: how far does the block's residual update change?

    Measured at the final position of the prompt, for every block: the update as a whole (Full), the attention's
    output (Attn) and that of each head (Head_N), as L2 and cosine distance from the unmasked model.

    Args:
        trainer: Runs the loops.
        model: Holds the model.
        datamodule: Gives the questions where no prompt is given, from the validation split.
        prompt: A question or text, which the model's processor wraps as it wraps every question.
        prompt_file: UTF-8 file that is the prompt as a whole, special tokens included: nothing is wrapped around
            it, and its last line feed counts.
        prompts: YAML file of many prompts: a list of texts, or of {prompt: ..., image: ..., name: ...}; images are
            looked up from the file's folder. Averages over them are written too. Or a mapping with ``prompts``, of
            which one may be ``enabled: false``, and ``max_image_resolution`` in pixels. ``num_tokens``, ``device`` and
            ``model: {path: ...}`` in it stand for --num_output_tokens, --device and --model.checkpoint where those are
            not given; from Python, the model is the caller's.
        image: Image file that goes with --prompt or --prompt_file.
        num_samples: Questions of the task to take, instead of prompts; null = the first one.
        num_output_tokens: 1 analyses the prompt; N also the prompt with each of the first N - 1 tokens that the
            model generates behind it, up to an end token; null = that of --prompts, else 1.
        after_end: Go on after an end token.
        spans: Also hide the image as a whole, and the text as a whole (but for the start and the final token).
        knockout: Also hide spans from each block *and all later ones*, without giving these their own input back: what
            it costs the log-probability of the answer that the model generates, and how far every later position
            moves. The image is one span, each word another.
        span: Positions to hide in place of the image and the words, such as ``3-7`` (both ends included) or ``5``, one
            span each; with --knockout.
        device: Where to compute: cpu, cuda, cuda:1; null = that of --prompts, else the trainer's
            device.
        output_dir: Results go to ``<output_dir>/tokens/<name>/``.
        name: Name of the run. A run of that name with the same arguments is continued where it was; with other
            arguments it is refused.

    Returns:
        The content of ``tokens.json``. Beside it stand ``masking_results.csv``, ``.json`` and ``.parquet`` with one
        row per generation step, block, hidden token and variant, and one page per prompt; of knockouts
        ``knockout_results.csv`` and ``knockout_positions.csv``.

    Raises:
        ValueError: If several sources of prompts are given, or a prompt is empty, too long for the model, or its
            file or image cannot be read.
    """
    from lit_depth.functional.token_masking.prompt import token_kinds
    from lit_depth.studies.shared.checks import check_all_tokens, check_one_process
    from lit_depth.studies.shared.publish import publish
    from lit_depth.studies.shared.run_folder import open_run
    from lit_depth.studies.tokens.analysis import describe
    from lit_depth.studies.tokens.knockout_spans import knockout_spans
    from lit_depth.studies.tokens.measurements import find_device, measure, spans_of
    from lit_depth.studies.tokens.prompts import TokensArguments, encode, find_prompts, fingerprint
    from lit_depth.studies.tokens.report import report
    from lit_depth.studies.tokens.settings import Settings, chosen, read_settings
    from lit_depth.studies.tokens.token_page import write_files

    settings = Settings(None) if prompts is None else read_settings(prompts)
    num_output_tokens = chosen("--num_output_tokens", num_output_tokens, settings.num_tokens, prompts, default=1)
    device = chosen("--device", device, settings.device, prompts)
    arguments = TokensArguments(
        prompt=prompt,
        prompt_file=prompt_file,
        prompts=prompts,
        image=image,
        num_samples=num_samples,
        num_output_tokens=num_output_tokens,
        after_end=after_end,
        spans=spans,
        knockout=knockout,
        span=span,
    )
    check_one_process(trainer, "tokens is run by one process")
    check_all_tokens(model, "tokens")
    where = find_device(device, trainer)
    options = {"num_output_tokens": num_output_tokens, "blocks": model.hparams["blocks"]}
    if arguments.from_task:
        datamodule = datamodule.take("validation", num_samples or 1)
    wanted, bad = find_prompts(arguments, model, datamodule, options)
    inputs = [encode(model, each, options) for each in wanted]
    token_ids = [each["input_ids"][0].tolist() for each in inputs]
    kinds = [token_kinds(model.processor, ids, model.model.config) for ids in token_ids]
    if spans and not any(map(spans_of, kinds)):
        raise ValueError("--spans needs an image, or text between the start token and the final one")
    hidden = knockout_spans(arguments, wanted, kinds, token_ids, model.tokenizer) if knockout else None
    measured_on = {
        "prompts": [[each.name, each.text, each.raw, fingerprint(each.image)] for each in wanted],
        "num_output_tokens": num_output_tokens,
        "after_end": after_end,
        "spans": spans,
    } | ({} if hidden is None else {"knockout": [[each.positions for each in of_prompt] for of_prompt in hidden]})
    splits = ["validation"] if arguments.from_task else []
    options |= {"after_end": after_end, "end_tokens": model.end_token_ids}
    with open_run(trainer, model, datamodule, splits, measured_on, output_dir, "tokens", name) as run:
        measured = measure(run, wanted, inputs, kinds, spans, options, where, hidden)
        result = {
            "command": "tokens",
            **run.model_entry,
            **describe(measured, model.num_blocks),
            "bad_samples": [{"id": each.id, "reason": each.reason} for each in bad],
        }
        written = write_files(run.folder, result, measured, model.prompter)
        publish(run, report(result, written), RESULT, result)
    return result
