"""A stream: each example once a pass, an order of the seed alone, read from any number on."""

from __future__ import annotations

import pytest

from app.data.examples import TokenExample
from app.data.stream import Stream
from jobs.errors import DataError


def example(number: int) -> TokenExample:
    return TokenExample((number,), (1,), f"{number:064x}", str(number))


def stream(count: int, buffer: int, seed: str = "0") -> Stream:
    return Stream(lambda turn: map(example, range(count)), seed, "here", buffer)


@pytest.mark.parametrize("buffer", [1, 7, 100])
def test_a_stream_gives_each_example_once_a_pass_whatever_its_buffer(buffer: int) -> None:
    one = stream(50, buffer)
    passes = [[one[at].prompt_ids[0] for at in range(start, start + 50)] for start in (0, 50)]
    assert all(sorted(some) == list(range(50)) for some in passes)
    assert (passes[0] == passes[1]) == (buffer == 1)
    assert all(number <= at + buffer for at, number in enumerate(passes[0])), "nothing from beyond the buffer"


def test_a_stream_read_from_any_number_on_is_the_same() -> None:
    whole, beats = stream(20, 5), []
    numbers = [whole[at].key for at in range(70)]
    other = stream(20, 5)
    other.skip_to(33, lambda: beats.append(1))
    assert [other[at].key for at in range(33, 70)] == numbers[33:] and len(beats) == 33
    assert whole[3].key == numbers[3], "back again"
    assert [stream(20, 5, "1")[0].key, [stream(20, 5, "1")[at].key for at in range(20)]] != [numbers[0], numbers[:20]]


def test_a_stream_without_examples_ends() -> None:
    with pytest.raises(DataError, match="here: no training example is left of it; use other data"):
        stream(0, 5)[0]
