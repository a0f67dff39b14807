"""Agreement of tokens, by loops; and tokens per check against speculative decoding played out."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional.engine.greedy_tokens import GreedyTokens
from lit_depth.functional.token_agreement import token_agreement, tokens_per_check


def random_tokens(seed: int) -> tuple[torch.Tensor, GreedyTokens]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, (4, 5, 6), generator=generator)
    lengths = torch.randint(1, 5, (5,), generator=generator)
    along = [torch.randint(2, (4, 5, 4), generator=generator) for _ in range(2)]
    ended = (torch.arange(4) >= lengths[:, None]).expand(4, 5, 4)
    return tokens, GreedyTokens(*(each.masked_fill(ended, -100) for each in along))


@pytest.mark.parametrize("seed", range(5))
def test_agreement_by_loops(seed):
    tokens, greedy = random_tokens(seed)
    found = token_agreement(tokens, greedy, full=2)
    for mask in range(4):
        for row in range(5):
            pairs = list(zip(tokens[mask, row].tolist(), tokens[2, row].tolist()))
            first = next((place for place, (ours, full) in enumerate(pairs) if ours != full), -1)
            assert found.first_difference[mask, row] == first
            reference, own = (
                [
                    int(ours == full)
                    for ours, full in zip(each[mask, row].tolist(), each[2, row].tolist())
                    if full != -100
                ]
                for each in greedy
            )
            assert found.reference[mask, row] == pytest.approx(sum(reference) / len(reference))
            assert found.accepted[mask, row].tolist() == own + [-1] * (4 - len(own))
    assert (found.first_difference[2] == -1).all() and (found.reference[2] == 1).all()


def test_nothing_generated_and_nothing_read():
    nothing = torch.zeros(2, 3, 0, dtype=torch.long)
    found = token_agreement(nothing, GreedyTokens(nothing, nothing), full=0)
    assert (found.first_difference == -1).all() and found.reference.isnan().all() and found.accepted.shape == (2, 3, 0)


def played_out(answer: list[int], drafts: list[int], num_draft: int) -> int:
    """Forwards of the full model until its own answer stands, with a drafter that is right at some places."""
    done: list[int] = []
    checks = 0
    while len(done) < len(answer):
        draft: list[int] = []
        while len(draft) < num_draft and len(done) + len(draft) < len(answer):
            on_track = draft == answer[len(done) : len(done) + len(draft)]
            draft.append(drafts[len(done) + len(draft)] if on_track else -1)
        for token in draft:
            if token != answer[len(done)]:
                break
            done.append(token)
        done += answer[len(done) : len(done) + 1]  # the full model's own next token
        checks += 1
    return checks


@pytest.mark.parametrize("num_draft", [1, 2, 4])
def test_tokens_per_check_is_that_of_speculative_decoding(num_draft):
    generator = torch.Generator().manual_seed(num_draft)
    for length in (1, 2, 3, 7, 16):
        for _ in range(20):
            answer = torch.randint(2, (length,), generator=generator).tolist()
            drafts = torch.randint(2, (length,), generator=generator).tolist()
            accepted = [ours == full for ours, full in zip(drafts, answer)]
            expected = length / played_out(answer, drafts, num_draft)
            assert tokens_per_check(accepted, num_draft) == pytest.approx(expected)


def test_mistakes():
    with pytest.raises(ValueError, match="at least one token"):
        tokens_per_check([], 4)
    with pytest.raises(ValueError, match="num_draft"):
        tokens_per_check([True], 0)
