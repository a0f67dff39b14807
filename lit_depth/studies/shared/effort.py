"""What a run has done since it was started: answers and timed requests per second, and what sharing has saved."""

from dataclasses import dataclass, field
from pathlib import Path

from lit_depth.functional import MaskSet, MaskTrie, find_blocks
from lit_depth.functional.engine.phases import Phases
from lit_depth.functional.masking.support import check_drivable
from lit_depth.functional.masks import TOKENS_OF
from lit_depth.module import DepthModule


@dataclass
class Effort:
    """Counts of one run, added to as it goes; what an earlier start recorded is not among them.

    Attributes:
        seconds: By what was counted, such as ``answers``: seconds that it took.
        counts: The same: how many.
        block_forwards: Forwards of one block on the prompt of one sample that the answers took.
        sequential_block_forwards: The same, of one mask after another.
        recorded: Files of records, and whether they held something of use when they were first looked at.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    block_forwards: float = 0.0
    sequential_block_forwards: float = 0.0
    recorded: dict[Path, bool] = field(default_factory=dict)

    def read(self, path: Path, is_of_use: bool) -> None:
        """Records were looked for; what this start writes and looks at again is none of an earlier one's."""
        self.recorded.setdefault(path, is_of_use)

    def add(self, what: str, count: int, seconds: float) -> None:
        """So many were measured in so many seconds; none at all is no measurement of a speed."""
        if count > 0:
            self.counts[what] = self.counts.get(what, 0) + count
            self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def add_answers(self, model: DepthModule, masks: MaskSet, count: int, seconds: float) -> None:
        """So many answers, alike of every mask, were given in one pass."""
        self.add("answers", count, seconds)
        one_by_one, together = block_forwards(model, masks)
        self.block_forwards += together * count / len(masks)
        self.sequential_block_forwards += one_by_one * count / len(masks)

    def describe(self) -> str:
        """One line; empty where nothing was measured or read.

        >>> effort = Effort(block_forwards=136, sequential_block_forwards=256)
        >>> effort.add("answers", 1280, 10.0)
        >>> effort.describe()
        '1,280 answers in 10.0 s: 128 rows per second; sharing saved 47% of the block forwards on prompts.'
        """
        parts = []
        for what, count in self.counts.items():
            unit = "rows" if what == "answers" else what
            rate = count / max(self.seconds[what], 1e-9)
            parts.append(f"{count:,} {what} in {self.seconds[what]:.1f} s: {rate:.3g} {unit} per second")
        if self.block_forwards < self.sequential_block_forwards:
            saved = 1 - self.block_forwards / self.sequential_block_forwards
            parts.append(f"sharing saved {saved:.0%} of the block forwards on prompts")
        if any(self.recorded.values()):
            parts.append("what an earlier start had recorded was read, not measured again")
        told = "; ".join(parts)
        return f"{told[0].upper()}{told[1:]}." if told else ""


def block_forwards(model: DepthModule, masks: MaskSet) -> tuple[int, int]:
    """Block forwards on a prompt of one mask after another, and of the pass that answers all of them.

    Where masks switch sublayers, forwards of half a block. Masks of decode alone read a prompt with all blocks. The two
    are the same where the masks are answered one after another: masks of dropped image tokens, and models that the
    engine cannot drive.
    """
    tokens = TOKENS_OF[model.hparams["skip_tokens"]]
    phases = Phases(model.hparams["phase"], model.hparams["decode_without_prompt"])
    trie = MaskTrie(phases.of_prompt(MaskSet.of(masks, tokens=tokens)))
    blocks = find_blocks(model.model, model.hparams["blocks"])
    if tokens == "visual_drop" or check_drivable(model.model, blocks) is not None:
        return trie.sequential_block_forwards, trie.sequential_block_forwards
    return trie.sequential_block_forwards, trie.block_forwards
