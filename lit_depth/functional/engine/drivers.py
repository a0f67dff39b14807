"""Drive the blocks of a decoder inside its own forward: many masks at once, or one mask per row.

The model around the blocks (embedding, vision tower, masks and positions, final norm, head) runs as it is. While a
driver is attached, the ``forward`` of every block is the driver's, which decides on which rows the real one runs:

- `TrieDriver` (prefill): all rows share their hidden state until masks diverge; a unit runs once per distinct prefix.
- `RowDriver` (decoding, and prefill with per-row masks): rows that keep a unit are gathered, run and scattered back.

A unit is what a mask switches: a block, or its attention and its MLP (`lit_depth.functional.engine.units`).

Both write keys and values to a `RowCache`, whose layer of a block holds only the rows that run it.

Forward hooks on the blocks themselves see a stand-in for the hidden states and cannot change them; those on the modules
inside a block see the rows that it runs on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.engine.decoding_configuration import CannotDriveError
from lit_depth.functional.engine.row_cache import RowCache
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.engine.units import Forward, Unit, units_in
from lit_depth.functional.masking.forwards import num_outputs
from lit_depth.functional.masking.skip import unmasked
from lit_depth.functional.masking.visual import SplitBlock, explicit_mask, hide_columns, visual_output


@contextmanager
def driven(blocks: nn.ModuleList, make_forward: Callable[[int, Forward], Forward]) -> Iterator[None]:
    """Replace the blocks' instance ``forward`` by ``make_forward(block index, real forward)``; restore exactly.

    A mask that the model is under (`masked`) is replaced, as an inner mask replaces it. Where blocks return tuples,
    the drivers see the first value alone, and so does the model: nobody reads the weights of an attention here.
    """
    with unmasked(blocks):
        for block_idx, block in enumerate(blocks):
            returned = num_outputs(type(block).forward)
            forward = make_forward(block_idx, block.forward if returned is None else _first_output(block.forward))
            block.__dict__["forward"] = forward if returned is None else _in_tuple(forward, returned)
        yield


def _first_output(real: Callable[..., Any]) -> Forward:
    return lambda *args, **kwargs: real(*args, **kwargs)[0]


def _in_tuple(forward: Forward, length: int) -> Callable[..., tuple[Tensor | None, ...]]:
    return lambda *args, **kwargs: (forward(*args, **kwargs), *(None,) * (length - 1))


class Front(NamedTuple):
    """What the part of a model before its blocks made of a batch."""

    embeddings: Tensor  # input of block 0, [batch, seq, hidden]
    calls: list[list[Tensor]]  # tensors among the other arguments of every block
    added: list[Tensor | None]  # what is added to the hidden states in front of every block


class TrieDriver:
    """Run a trie of masks through one forward of the decoder (see the module's docstring).

    Hidden states travel beside the decoder, one tensor per group, so a group that passes a unit by costs nothing. The
    last block returns the states of all masks, mask after mask. Where a group meets its last unit, only the positions
    that are kept go through the MLP, if the block can be halved (`lit_depth.functional.masking.sublayers`): nobody
    reads the others.

    A decoder may add features of an image to the hidden states between two blocks (DeepStack, Meng et al. 2024). It is
    handed zeros, so that it gives back what it adds; that goes to every group of masks, whether or not the block before
    it was skipped.

    Args:
        trie: The plan.
        width: How many groups share a call; None = all.
        cache: Filled with each group's keys and values; None = no cache.
        keep: Positions from the end that the last block returns; 0 = all.
        front: What an earlier pass over the same batch gave to the blocks; this one then needs no image tensors.
        shape: ``(batch, seq)`` of the hidden states that are expected; None = any.
        adds: Whether the decoder adds features between blocks.
        lens: Which mask, of all blocks, has its states behind every block but the last handed on too, as further rows
            behind those of the masks, one block after another; None = none.
        is_image: Which tokens of the prompt are image tokens, bool ``[batch, seq]``, for masks of these; what stands
            behind the prompt is text. None = no mask is.
    """

    def __init__(
        self,
        trie: MaskTrie,
        width: int | None,
        cache: RowCache | None,
        keep: int = 0,
        front: Front | None = None,
        shape: tuple[int, int] | None = None,
        adds: bool = False,
        lens: int | None = None,
        is_image: Tensor | None = None,
    ) -> None:
        self.lens, self.is_image = lens, is_image
        self.trail: list[Tensor] = []
        self.trie, self.width, self.keep, self.shape, self.adds = trie, width, keep, shape, adds
        self.front = front
        self.groups: list[Tensor] = []
        self.calls: list[list[Tensor]] = []
        self.added: list[Tensor | None] = []
        self.compared: set[tuple[int, int]] = set()
        # what the block before has handed on, beside the groups
        self.handed: Tensor | None = None
        # rows and positions that the last block handed on; None = it was not reached yet
        self.returned: tuple[int, int] | None = None
        if cache is not None:
            for layer in cache.layers:
                layer.parts = []  # type: ignore[union-attr]

    def make_forward(self, block_idx: int, real: Forward) -> Forward:
        """The ``forward`` of block ``block_idx``."""
        units = units_in(block_idx, real, self.trie.masks.units_per_block)
        last = units[-1].place == len(self.trie.levels) - 1
        at_end = [unit.cut(self.keep) if self.keep else unit.forward for unit in units]
        for_text = self._for_text(real) if any(self.trie.levels[units[0].place].for_text) else real

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._check_call(block_idx, hidden_states, args, kwargs)
            for unit, cut in zip(units, at_end):
                outputs = self._run_unit(unit, cut, for_text, *((args, kwargs) if unit.attends else ((), {})))
            if self.lens is not None and not last:
                own = outputs[int(self.trie.places[self.lens, units[-1].place])]
                self.trail.append(own[:, -self.keep :].clone())  # a view would hold all positions
            if not last:
                assert self.handed is not None
                return self.handed
            leaves = [self.groups[leaf] for leaf in self.trie.leaves]
            self.groups = []  # the driver lives on while rows are decoded
            if self.front is None:
                self.front = Front(self.embeddings, self.calls, self.added)
            kept = torch.cat([states[:, -self.keep :] for states in [*leaves, *self.trail]])
            self.trail = []
            self.returned = kept.shape[0], kept.shape[1]
            return kept

        return forward

    @contextmanager
    def driving(self, blocks: nn.ModuleList) -> Iterator[None]:
        """Drive ``blocks`` in one forward of the decoder.

        Raises:
            CannotDriveError: What follows the last block cannot take what it returns (GPT-2 views it as the prompt).
        """
        with driven(blocks, self.make_forward):
            try:
                yield
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as cause:
                if self.returned is None:
                    raise
                raise self._other_shape() from cause

    def check_logits(self, logits: Tensor) -> None:
        """Refuse logits ``[rows, positions, vocabulary]`` of other rows or positions than the last block returned."""
        if logits.shape[:2] != self.returned:
            raise self._other_shape()

    def _other_shape(self) -> CannotDriveError:
        prompt, returned = list(self.embeddings.shape[:2]), list(self.returned or ())
        return CannotDriveError(
            f"what follows its last block takes states of the prompt's shape {prompt} alone, got {returned}"
        )

    def _check_call(self, block_idx: int, hidden_states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a decoder that does more with hidden states than to hand them on and to add to them."""
        if block_idx == 0:
            _check_shape(hidden_states, self.shape)
            self.embeddings = hidden_states if self.front is None else self.front.embeddings
            self.groups, self.calls, self.added, self.trail = [self.embeddings], [], [], []
            self.handed = hidden_states.new_zeros(()).expand_as(hidden_states) if self.adds else hidden_states
        is_handed = block_idx == 0 or hidden_states is self.handed
        if len(self.calls) != block_idx or not (is_handed or self.adds):
            raise CannotDriveError(f"block {block_idx} is not given what the block before it returned")
        self.calls.append(list(_tensors((args, kwargs))))
        self.added.append(None if is_handed else hidden_states)
        if self.front is not None and not _same_tensors(self.calls[-1], self.front.calls[block_idx], self.compared):
            raise CannotDriveError("its attention masks or positions depend on the image tensors")
        added = (self.added if self.front is None else self.front.added)[block_idx]
        if added is not None:
            self.groups = [states + added[:, -states.shape[1] :] for states in self.groups]

    def _for_text(self, real: Forward) -> Forward:
        """``real`` of a block that image tokens skip."""
        block, is_image = getattr(real, "__self__", None), self.is_image
        if not isinstance(block, nn.Module) or is_image is None:
            raise CannotDriveError("a block that image tokens skip has a forward of its own, or returns a tuple")
        split = SplitBlock(block) if "forward" not in block.__dict__ and SplitBlock.fits(block) else None

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            rows, seq = hidden_states.shape[:2]
            places = nn.functional.pad(is_image, (0, seq - is_image.shape[1])).repeat(rows // len(is_image), 1)
            arguments = _by_name(block, args, kwargs)
            found: Tensor = visual_output(hidden_states, places, None, arguments, real, split, block)
            return found

        return forward

    def _run_unit(
        self, unit: Unit, cut: Forward, for_text: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """States of the groups that a unit runs on; with those that pass it by they become the next groups.

        Args:
            cut: Its forward for groups that no later unit runs on.
            for_text: Its forward for groups that image tokens pass by.
        """
        level, outputs = self.trie.levels[unit.place], []
        split = level.num_continued
        for start, stop, whole in ((0, split, unit.forward), (split, len(level.run), cut)):
            # each part has the groups that image tokens skip behind the others
            turn = start + level.for_text[start:stop].count(False)
            outputs += self._run([self.groups[group] for group in level.run[start:turn]], whole, args, kwargs)
            outputs += self._run([self.groups[group] for group in level.run[turn:stop]], for_text, args, kwargs)
        self.groups = [
            self.groups[parent] if place is None else outputs[place]
            for place, parent in zip(level.sources, level.parents)
        ]
        return outputs

    def _run(self, groups: list[Tensor], real: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        outputs: list[Tensor] = []
        for start in range(0, len(groups), self.width or max(1, len(groups))):
            members = groups[start : start + self.width] if self.width else groups
            count = len(members)
            if count == 1:
                output = real(members[0], *args, **kwargs)
            else:
                repeat = partial(_repeat, count=count)
                repeated = _map_rows((args, kwargs), len(members[0]), repeat)
                output = real(torch.cat(members), *repeated[0], **repeated[1])
            if not isinstance(output, Tensor):
                raise CannotDriveError(f"a block returned {type(output).__name__} instead of a tensor")
            outputs += output.chunk(count) if count > 1 else [output]
        return outputs


class RowDriver:
    """Run every unit on the rows whose mask keeps it.

    Args:
        masks: Bool ``[rows, num_units]``.
        shape: ``(rows, seq)`` of the hidden states that are expected at first; None = any.
        per_block: Units of a block, see `MaskSet`.

    Attributes:
        without_prompt: Rows in which a block goes on without having read the prompt, bool ``[rows, num_blocks]``, and
            the prompt's length: they attend to what stands behind it alone.
        lens: Rows of all blocks whose states behind every block but the last are handed on too, see `TrieDriver`.
    """

    def __init__(self, masks: Tensor, shape: tuple[int, int] | None = None, per_block: int = 1) -> None:
        self.masks, self.shape, self.per_block = masks, shape, per_block
        self.without_prompt: tuple[Tensor, int] | None = None
        self.lens: slice | None = None
        self.trail: list[Tensor] = []
        self._index()

    def _index(self) -> None:
        every = self.masks.all(dim=0).tolist()
        self.rows = [None if all_rows else column.nonzero().flatten() for all_rows, column in zip(every, self.masks.T)]

    @property
    def ran(self) -> list[bool]:
        """Which blocks' attention runs on any row."""
        return [rows is None or len(rows) > 0 for rows in self.rows[:: self.per_block]]

    def keep_rows(self, kept: Tensor, cache: RowCache) -> None:
        """Drop all rows but ``kept`` (indices among the present rows), here and in the cache."""
        chosen = torch.zeros(len(self.masks), dtype=torch.bool, device=self.masks.device)
        chosen[kept] = True
        for layer, rows in zip(cache.layers, self.rows[:: self.per_block]):
            layer.keep_rows(kept if rows is None else chosen[rows].nonzero().flatten())  # type: ignore[union-attr]
        self.masks = self.masks[kept]
        if self.without_prompt is not None:
            self.without_prompt = self.without_prompt[0][kept], self.without_prompt[1]
        self._index()

    def make_forward(self, block_idx: int, real: Forward) -> Forward:
        """The ``forward`` of block ``block_idx``."""

        units = units_in(block_idx, real, self.per_block)

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if block_idx == 0:
                _check_shape(hidden_states, self.shape)
                self.shape = None
            if self.without_prompt is not None:
                args, kwargs = self._hide_prompt(block_idx, real, hidden_states, args, kwargs)
            output = hidden_states
            for unit in units:
                output = self._run_unit(unit, output, *((args, kwargs) if unit.attends else ((), {})))
            return output if self.lens is None else self._with_trail(block_idx, output, output[self.lens])

        return forward

    def _hide_prompt(
        self, block_idx: int, real: Forward, hidden_states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a block under which rows that have not read the prompt there do not see it."""
        assert self.without_prompt is not None
        is_blind, length = self.without_prompt
        if not is_blind[:, block_idx].any():
            return args, kwargs
        block = getattr(real, "__self__", None)
        if not isinstance(block, nn.Module):
            raise CannotDriveError("a block that decodes without the prompt returns a tuple")
        arguments = _by_name(block, args, kwargs)
        mask = explicit_mask(block, hidden_states, arguments)
        if mask is None or any(arguments.get(name) is not None for name in ("alibi", "position_bias")):
            raise CannotDriveError("a block that decodes without the prompt takes no attention mask for each query")
        columns = is_blind[:, block_idx, None].expand(-1, length)
        columns = nn.functional.pad(columns, (0, mask.shape[-1] - length))
        return (), {**arguments, "attention_mask": hide_columns(mask, columns, None)}

    def _run_unit(self, unit: Unit, states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        rows = self.rows[unit.place]
        if rows is None:
            return unit.forward(states, *args, **kwargs)
        if not len(rows):
            return states
        selected = _map_rows((args, kwargs), len(states), lambda values: values.index_select(0, rows))
        return states.index_copy(0, rows, unit.forward(states.index_select(0, rows), *selected[0], **selected[1]))

    def _with_trail(self, block_idx: int, output: Tensor, states: Tensor) -> Tensor:
        if block_idx < self.masks.shape[1] // self.per_block - 1:
            self.trail = [*(self.trail if block_idx else ()), states]
            return output
        return torch.cat([output, *self.trail])


def _by_name(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a block's call but its hidden states."""
    names = list(inspect.signature(type(block).forward).parameters)[2:]  # after self and hidden_states
    return dict(zip(names, args)) | kwargs


def _repeat(rows: Tensor, count: int) -> Tensor:
    return rows.repeat(count, *[1] * (rows.ndim - 1))


def _check_shape(hidden_states: Tensor, expected: tuple[int, int] | None) -> None:
    found = hidden_states.shape[0], hidden_states.shape[1]
    if expected is not None and found != expected:
        # an image, or a soft prompt, that the model puts in front of the tokens
        raise CannotDriveError(
            f"its blocks see {found[0]} rows of {found[1]} tokens, got {expected[0]} of {expected[1]}"
        )


def _map_rows(value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to every tensor with a row per sample; a leading dimension of 1 broadcasts and stays."""
    shape: Sequence[int] = getattr(value, "shape", ())
    if len(shape) and shape[0] not in ((1, batch) if isinstance(value, Tensor) else (1,)):
        raise CannotDriveError(f"a block is called with a {type(value).__name__} of {list(shape)} for {batch} rows")
    if isinstance(value, Tensor):
        return value if value.ndim == 0 or value.shape[0] == 1 else change(value)
    if isinstance(value, tuple | list):
        mapped = [_map_rows(item, batch, change) for item in value]
        return tuple(mapped) if isinstance(value, tuple) else mapped
    if isinstance(value, dict):
        return {name: _map_argument(name, item, batch, change) for name, item in value.items()}
    return value


def _map_argument(name: str, value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """`_map_rows`, but for biases per key that are told by their name: their first axis is no row per sample."""
    if name == "position_bias":  # [heads, 1, keys], one for all rows
        return value
    if name == "alibi" and isinstance(value, Tensor) and value.ndim == 3:  # [rows * heads, 1, keys]
        return change(value.unflatten(0, (batch, -1))).flatten(0, 1)
    return _map_rows(value, batch, change)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors inside tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _same_tensors(some: list[Tensor], others: list[Tensor], compared: set[tuple[int, int]]) -> bool:
    """Whether tensors are equal, pair by pair; blocks share theirs, and no pair is compared twice."""
    for pair in zip(some, others):
        key = (id(pair[0]), id(pair[1]))
        if key not in compared and not torch.equal(*pair):
            return False
        compared.add(key)
    return len(some) == len(others)
