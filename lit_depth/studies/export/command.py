"""``lit-depth export``: a checkpoint without the blocks that a mask skips, and the proof that it is the same."""

from typing import Any

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import checked
from lit_depth.module import DepthModule
from lit_depth.studies.export.healing import Heal

RESULT = "export.json"
# of the questions that a healed model is measured on
MAX_BAD_SAMPLES = 0.01


@checked
def export(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    skip: list[int] | None = None,
    mask: str | None = None,
    from_run: str | None = None,
    num_active_blocks: int | None = None,
    policy: str | None = None,
    out: str | None = None,
    weights: bool = True,
    in_memory: bool = False,
    heal: Heal = "none",
    heal_steps: int | None = None,
    heal_learning_rate: float | None = None,
    lora_rank: int | None = None,
    num_questions: int = 8,
    push_to_hub: str | None = None,
    public: bool = False,
    output_dir: str = "results",
    name: str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint without the blocks that a mask skips, and prove that it answers as the masked model does.

    The proof is a fresh process that loads the new folder from disk with plain transformers: it has to hold the masked
    model's weights, give its logits and its greedy answers, in a left-padded batch and one by one. Without the proof
    no folder is left, and the exit code is 1.

    Args:
        trainer: Says on which device.
        model: Holds the model.
        datamodule: Gives the questions of the proof, from the validation split; those to heal by, from the calibration
            split.
        skip: Blocks to remove. Exactly one of this, ``mask`` and ``from_run`` is given.
        mask: The same as a bit for each block, ``1110...``: 1 = it stays.
        from_run: Folder of a run of ``select``, ``search`` or ``compare`` (``--from`` for short), whose choice is taken
            and whose quality and latency the model card tells. Of a search that patched its masks it is the best after
            patching if ``heal`` is given, else the best before.
        num_active_blocks: Number of blocks that stay, of a search (null = the fewest) or a comparison.
        policy: Of a comparison.
        out: Folder of the new checkpoint, which must not exist; null = ``checkpoint`` in the run's folder.
        weights: Write a checkpoint. false = only the files for other tools, which masks of halves of blocks have too.
        in_memory: Write the weights as they are in memory, such as those of a model that was trained since it was
            loaded; false = copy them from the files, unless ``--model.dtype`` converts them.
        heal: Give back some of the lost quality before writing, and measure the healed model on the validation split.
            ``patch`` fits weights in closed form to the calibration split's ``--data.calibration_samples`` questions;
            from there ``full`` trains all weights of the blocks that stay, and ``lora`` low-rank adapters, which are
            merged (``pip install 'lit_depth[lora]'``), on ``--data.train_batch_size`` images of the train split a step.
            A training that was interrupted begins anew. ``none`` = weights stay as they are.
        heal_steps: Steps of ``lora`` and ``full``; null = 150.
        heal_learning_rate: Their peak learning rate; null = 0.001.
        lora_rank: Rank of the adapters of ``lora``; null = 16.
        num_questions: Questions of the proof.
        push_to_hub: Repository on the hub (``organisation/name``) to upload the new folder to; null = stay here.
        public: Let everybody read that repository; false = it is private.
        output_dir: The report goes to ``<output_dir>/export/<name>/``.
        name: Name of the run; null = that of the folder ``out``, or ``default``. A run of that name with other
            arguments is refused.

    Returns:
        The content of ``export.json``. Beside the weights stand ``certificate.json``, a model card, and in ``handoff/``
        files for mergekit, llama.cpp and engines that leave out halves of blocks.

    Raises:
        ValueError: If an argument does not fit, blocks of the family cannot be removed or healed, the task or the model
            cannot be trained on, or the folder is there already.
        ImportError: ``lora`` without peft.
        NotCertifiedError: If the new checkpoint is not the masked model.
    """
    from pathlib import Path

    from lit_depth.functional.arguments import check_least
    from lit_depth.models.export import check_new
    from lit_depth.studies.export.analysis import describe
    from lit_depth.studies.export.arguments import choose
    from lit_depth.studies.export.healing import check_heal, healed, is_patched
    from lit_depth.studies.export.push import check_repository, push
    from lit_depth.studies.export.report import report
    from lit_depth.studies.export.training import Training, check_training
    from lit_depth.studies.export.writing import check_beside, check_exportable, write
    from lit_depth.studies.shared.checks import check_all_tokens, check_asks, check_one_process, check_one_task
    from lit_depth.studies.shared.publish import publish
    from lit_depth.studies.shared.run_folder import open_run

    check_least(1, num_questions=num_questions, heal_steps=heal_steps, lora_rank=lora_rank)
    check_least(0, heal_learning_rate=heal_learning_rate)
    check_one_process(trainer, "export writes one checkpoint in one process")
    check_one_task(datamodule, "export takes its questions from one task")
    check_asks(datamodule, "export")
    check_all_tokens(model, "export")
    choice = choose(model, skip, mask, from_run, num_active_blocks, policy, healed=heal != "none")
    check_exportable(trainer, model, choice.masks, weights)
    check_heal(heal, choice.masks, weights)
    training = Training.of(heal, heal_steps, heal_learning_rate, lora_rank, model, datamodule)
    if training is not None:
        check_training(training, model, datamodule)
    if push_to_hub is not None:
        check_repository(push_to_hub, weights)
    name = name or (Path(out).resolve().name if out else "default")
    folder = Path(out).expanduser() if out else Path(output_dir) / "export" / name / "checkpoint"
    check_beside(folder, Path(output_dir) / "export" / name)
    check_new(folder)
    arguments = {"mask": choice.masks.ids[0], "origin": choice.origin, "weights": weights, "in_memory": in_memory}
    arguments |= {"num_questions": num_questions, "out": str(folder), "heal": heal}
    arguments |= {} if training is None else {"training": training.entry()}
    heals = heal != "none"
    splits = ["calibration", "validation"] if is_patched(heal, choice.masks) else ["validation"]
    with open_run(
        trainer, model, datamodule, splits, arguments, output_dir, "export", name, MAX_BAD_SAMPLES, scores=heals
    ) as run:
        with healed(run, choice, heal, training) as (choice, healing):
            written = write(run, choice, folder, weights, in_memory, num_questions, healing)
        pushed = None if push_to_hub is None else push(folder, push_to_hub, private=not public)
        result = describe(run, choice, folder, written, pushed, healing)
        publish(run, report(result), RESULT, result)
    return result
