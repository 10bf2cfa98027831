"""Where answers are read, as people type it."""

import pytest
import torch
from conftest import make_token_model

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import TokenPrompts, sample_tokens


@pytest.mark.parametrize(
    ("read_at", "tokens"),
    [
        (None, range(5)),
        (2, [2]),
        (-1, [4]),
        ([-1, 0], [4, 0]),
        (slice(-2, None), [3, 4]),
        (slice(None, None, 2), [0, 2, 4]),
    ],
)
def test_positions_are_read_as_they_are_typed(read_at, tokens):
    model, prompts = make_token_model(), torch.tensor([[5, 0, 1, 2, 4]])
    with torch.no_grad():
        everything, read = model(prompts), model(prompts, read_at=read_at)
    torch.testing.assert_close(read, everything[:, :, list(tokens)])


@pytest.mark.parametrize("read_at", [5, [-6], [], slice(3, 3)])
def test_positions_that_are_not_there_are_refused_in_one_line(read_at):
    with pytest.raises(LoopprobeError, match="position") as error:
        make_token_model()(torch.tensor([[5, 0, 1, 2, 4]]), read_at=read_at)
    assert "\n" not in str(error.value)


def test_prompts_made_by_hand_are_corrupted_at_their_own_length():
    task = TaskConfig(name="parity")
    tokens = torch.tensor([[3, 0, 1, 1, 2]])
    prompts = TokenPrompts(tokens, task.rules.solve(tokens), task)
    other = prompts.corrupted("token", torch.Generator().manual_seed(0))
    assert (other.tokens != tokens).sum() == 1
    assert other.answers.item() == 1 - prompts.answers.item()
    with pytest.raises(LoopprobeError, match="no prompts of reverse have 4 tokens"):
        TokenPrompts(tokens[:, :4], tokens[:, :1], TaskConfig(name="reverse")).corrupted("token", torch.Generator())


def test_two_symbols_are_too_few_for_hops():
    with pytest.raises(LoopprobeError, match="at least 3 for p_hop"):
        TaskConfig(name="p_hop", symbols=2)
    neighbours = sample_tokens(TaskConfig(name="p_hop", symbols=3), 50, 4, torch.Generator().manual_seed(0)).tokens[
        :, 2:
    ]
    assert (neighbours[:, 1:] != neighbours[:, :-1]).all()
