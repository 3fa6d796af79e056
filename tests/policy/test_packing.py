"""The packed layout: by hand, and that everything points where it should."""

import pytest
import torch

from llmrl.policy.packing import block_attention, branches, pack, packed_tokens
from llmrl.train.collate import collate
from tests.tiny import random_batch, trajectory


def test_the_layout_of_the_docstring():
    # rows P0 P1 a b and P0 P1 c, then a group of one: Q0 d
    rows = [
        trajectory((10, 11), [[20, 21]], group="p"),
        trajectory((10, 11), [[22]], group="p", sample=1),
        trajectory((12,), [[23]], group="q"),
    ]
    packing = pack(collate(rows))
    assert packing.tokens.tolist() == [10, 11, 20, 21, 22, 12, 23]
    assert packing.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert packing.prompt.tolist() == [[0, 1], [5, -1]]
    assert packing.continuation.tolist() == [[[2, 3], [4, -1]], [[6, -1], [-1, -1]]]
    assert packing.source.tolist() == [1, 2, 1, 5]  # both a and c are predicted from P1
    assert packing.target.tolist() == [20, 21, 22, 23]
    assert (packing.row.tolist(), packing.column.tolist()) == ([0, 0, 1, 2], [2, 3, 2, 1])
    assert packing.place.tolist() == [0, 1, 4, 5, 6, 2, 8]
    assert packing.length == 7


def test_what_prompts_begin_with_alike_is_there_once():
    rows = [
        trajectory((10, 12), [[20]], group="q"),
        trajectory((10, 11), [[20, 21]], group="p"),
        trajectory((10,), [[22]], group="r"),
        trajectory((10, 11, 20, 13), [[23]], group="s"),  # the second one's next turn
    ]
    packing = pack(collate(rows))
    #                                   r      p          s          q
    assert packing.tokens.tolist() == [10, 22, 11, 20, 21, 20, 13, 23, 12, 20]
    assert packing.positions.tolist() == [0, 1, 1, 2, 3, 2, 3, 4, 1, 2]
    assert packing.prompt.tolist() == [[0, -1, -1, -1], [0, 2, -1, -1], [0, 2, 5, 6], [0, 8, -1, -1]]
    assert packing.group.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert packing.until.tolist() == [3, 0, 2, 1, 1, 2, 2, 2, 3, 3]
    assert packing.owner.tolist() == [-1, 2, -1, 1, 1, -1, -1, 3, -1, 0]
    assert dict(zip(packing.row.tolist(), packing.source.tolist())) == {0: 8, 1: 3, 2: 0, 3: 6}
    assert packed_tokens(collate(rows)) == packing.length == 10


def test_prompts_whose_tokens_do_not_tell_everything_share_none():
    prompts = [(5, 6, 7), (5, 6), (5, 6, 8), (5, 6, 8)]
    assert branches(prompts) == [(1, 0), (0, 2), (2, 2), (3, 3)]
    assert branches(prompts, whole=[2]) == [(1, 0), (0, 2), (2, 0), (3, 0)]
    assert branches([(5, 6), (5, 6)]) == [(0, 0), (1, 2)]


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_every_token_is_there_once_and_prompts_are_shared(seed, branching):
    batch = random_batch(seed, groups=(4, 3, 1, 2), branching=branching)
    packing = pack(batch)
    own = int((batch.length - batch.prompt_length).sum())
    heads = {
        tuple(row[:size])
        for row, end in zip(batch.tokens.tolist(), batch.prompt_length.tolist(), strict=True)
        for size in range(1, end + 1)
    }  # what prompts begin with
    assert packing.length == own + len(heads) == packed_tokens(batch)
    for row, column, source, target in zip(packing.row, packing.column, packing.source, packing.target, strict=True):
        assert batch.mask[row, column]
        assert target == batch.tokens[row, column]
        assert packing.tokens[source] == batch.tokens[row, column - 1]
        assert packing.positions[source] == column - 1
    assert len(packing.row) == int(batch.mask.sum())


@pytest.mark.parametrize(("window", "cap"), [(None, None), (3, None), (None, 1.5), (1, 1.5), (6, 0.7)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_block_attention_is_attention_with_the_tree_mask(seed, kv_heads, window, cap):
    packing = pack(random_batch(seed, groups=(4, 3, 1, 2), branching=seed == 1))
    draw = torch.Generator().manual_seed(seed)
    heads, width, length = 4, 6, packing.length

    def random(count):
        return torch.randn(count, length, width, generator=draw, dtype=torch.float64, requires_grad=True)

    query, key, value = random(heads), random(kv_heads), random(kv_heads)
    repeated_key, repeated_value = (x.repeat_interleave(heads // kv_heads, dim=0) for x in (key, value))
    scores = query @ repeated_key.transpose(1, 2) * 0.37
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    distance = packing.positions[:, None] - packing.positions
    seen = visible(packing) if window is None else visible(packing) & (distance < window)
    expected = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ repeated_value
    got = block_attention(query, key, value, packing, scale=0.37, window=window, cap=cap)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn(got.shape, generator=draw, dtype=torch.float64)
    ours = torch.autograd.grad(got, (query, key, value), direction)
    theirs = torch.autograd.grad(expected, (query, key, value), direction)
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-10, atol=1e-12)


def visible(packing):
    """[L, L] who sees whom: a prompt itself, causally; a continuation its prompt and itself, causally."""
    seen = torch.zeros(packing.length, packing.length, dtype=torch.bool)
    for prompt, rows in zip(packing.prompt.tolist(), packing.continuation.tolist(), strict=True):
        prompt = [index for index in prompt if index >= 0]
        for row in [[], *rows]:
            chain = prompt + [index for index in row if index >= 0]
            for place, index in enumerate(chain):
                seen[index, chain[: place + 1]] = True
    return seen


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        pack(collate([trajectory((), [[5, 6]], group="p")]))
