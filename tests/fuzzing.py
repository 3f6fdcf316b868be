"""What the fuzzing tests share: how many inputs, what is put into them, and what a mistake must look like."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from jobs.errors import UserError

COUNT = int(os.environ.get("FUZZ") or 200)
fuzzed = settings(
    max_examples=COUNT, derandomize="FUZZ" not in os.environ, deadline=None, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if "FUZZ" in os.environ else [])],
)  # fmt: skip

STACK = 200  # frames that a fuzzed reader has
DEEP = 250  # levels: of two frames each for PyYAML, of one for the JSON that Python reads. PyYAML's time grows with their square
# What has broken readers of YAML and JSON before: depth, size, types, keys given twice, characters.
SNIPPETS = [
    b"[" * DEEP, b"{" * DEEP, b"- " * DEEP, b'{"a":' * DEEP, b"1" * 5000, b"1e400", b"-0", b"0x10", b"1_000", b"010", b"1:30", b".nan", b"NaN",
    b"-Infinity", b"null", b"~", b"true", b"yes", b"2026-13-01", b"2026-01-01", b"&a [*a]", b"*a", b"<<: *a", b"!!binary aGk=", b"!!set {a}",
    b"!!python/object:os.system x", b"? [a]\n: b", b"---\n", b"%YAML 1.2\n", b"\t", b"\r\n", b"\r", b"\x00", b"\x85", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"\xed\xa0\x80", b'"\\ud800"', b"\\u0000", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"#", b"|", b">", b"- ", b"\n", b"\n\n", b" ",
    b"train: ", b"model: {", b'"messages": ', b'"role": "assistant"', b'"content": null', b'"text": "a b"', b'"weight": 0', b'"tools": "[1]"',
    b'"context": "a"', b'"context": ', b'"logprob": 1', b"99999999999999999999999999", b"1" * 400,
]  # fmt: skip


SHALLOW = SNIPPETS[4:]  # a YAML of so many levels takes a while; two kinds of it are enough


@st.composite
def edited(draw: st.DrawFn, seeds: list[bytes], snippets: list[bytes] = SNIPPETS) -> bytes:
    """One of `seeds` with pieces cut out, doubled, or put in."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.sampled_from([0, 0, 1, 3, 20, 200]))
        piece = draw(st.one_of(st.sampled_from(snippets), st.binary(max_size=6), st.just(text[at : at + cut] * 2)))
        text = text[:at] + piece + text[at + cut :]
    return text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**40) | st.floats() | st.text(max_size=8) | st.sampled_from(["a b", "assistant", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "name", "a"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@contextmanager
def little_stack() -> Iterator[None]:
    """A recursion ends after STACK frames more than there are now."""
    frame, depth, before = sys._getframe(), 0, sys.getrecursionlimit()
    while (outer := frame.f_back) is not None:
        frame, depth = outer, depth + 1
    sys.setrecursionlimit(depth + STACK)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@contextmanager
def directory() -> Iterator[Path]:
    """One for the files of an input, which are read on a little stack."""
    path = Path(tempfile.mkdtemp(prefix="prefill-fuzz-"))
    try:
        with little_stack():
            yield path
    finally:
        shutil.rmtree(path)


def one_line(error: UserError) -> None:
    """A user's mistake can be printed, and names a place and a fact."""
    text = str(error)
    text.encode("utf-8", "surrogateescape")
    assert error.where and error.fact and len(text) < 5000, text[:300]
