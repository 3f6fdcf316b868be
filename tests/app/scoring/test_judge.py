"""The judge of two answers over a real HTTP server: both orders, ties, bias, bounds, and a key that is told to nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from app.scoring import judge as judging
from app.scoring.judge import KEY, Judge
from jobs.errors import ConfigError
from tests.app.fakes.judge_endpoint import Endpoint, served

SECRET = "sk-very-secret-123"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with served() as found:
        yield found


def judge(endpoint: Endpoint, pauses: list[float] | None = None) -> Judge:
    return Judge(endpoint.url, "m", {KEY: SECRET}, pause=(pauses if pauses is not None else []).append)


def answers_in(content: str) -> tuple[str, str]:
    first, _, rest = content.partition("[First answer]\n")[2].partition("\n\n[Second answer]\n")
    return first, rest.partition("\n\n[Better")[0]


def test_a_win_is_one_in_both_orders(endpoint: Endpoint) -> None:
    def longer(content: str) -> tuple[int, str]:
        first, second = answers_in(content)
        return 200, "TIE" if len(first) == len(second) else "First." if len(first) > len(second) else " second\n"

    endpoint.reply = longer
    found = judge(endpoint).compare(["q1", "q2", "q3"], ["long one", "s", "same"], ["short", "longer", "also"])
    assert found == {"wins": 1, "losses": 1, "ties": 1, "unsure": 0, "firsts": 2, "decided": 4, "p_position": 1.0}
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {SECRET}"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 8) and len(endpoint.requests) == 6


def test_a_judge_that_prefers_a_place_decides_nothing_and_shows_it(endpoint: Endpoint) -> None:
    endpoint.reply = lambda content: (200, "FIRST")
    found = judge(endpoint).compare(["q"] * 4, list("abcd"), list("efgh"))
    assert found == {"wins": 0, "losses": 0, "ties": 4, "unsure": 4, "firsts": 8, "decided": 8,
                     "p_position": pytest.approx(2 / 2**8)}  # fmt: skip


@pytest.mark.parametrize(
    ("firsts", "decided", "want"), [(5, 10, 1.0), (9, 10, 0.021484375), (1, 10, 0.021484375), (0, 0, 1.0)]
)
def test_the_p_value_is_the_exact_binomial_one(firsts: int, decided: int, want: float, endpoint: Endpoint) -> None:
    replies = iter(["FIRST"] * firsts + ["SECOND"] * (decided - firsts))
    endpoint.reply = lambda content: (200, next(replies))
    pairs = ["x"] * (decided // 2)
    assert judge(endpoint).compare(pairs, pairs, pairs)["p_position"] == pytest.approx(want)


def test_a_busy_endpoint_is_asked_again_and_a_broken_one_is_not_asked_for_ever(endpoint: Endpoint) -> None:
    pauses: list[float] = []
    replies = iter([(429, b"slow down"), (503, b""), (200, "TIE")])
    endpoint.reply = lambda content: next(replies)
    assert judge(endpoint, pauses).choose("q", "a", "b") == "tie" and pauses == [2.0, 4.0]
    endpoint.reply = lambda content: (500, b"broken")
    with pytest.raises(ConfigError, match="--judge http://127.0.0.1: answered HTTP 500: 'broken'"):
        judge(endpoint).choose("q", "a", "b")
    assert len(endpoint.requests) == 6


@pytest.mark.parametrize(
    ("status", "reply", "said"),
    [
        (401, f"bad key {SECRET}".encode(), "answered HTTP 401.*set PREFILL_JUDGE_KEY"),
        (302, f"go {SECRET}".encode(), "answered HTTP 302"),
        (200, f"<html>{SECRET}".encode(), "is no chat completion"),
        (200, b"[" * 100000, "is no chat completion"),
        (200, f"neither {SECRET}", "expected FIRST, SECOND or TIE"),
        (200, "FIRST or SECOND", "expected FIRST, SECOND or TIE"),
        (200, b"x" * 2_000_000, "does not answer"),
    ],
)
def test_an_odd_answer_is_one_line_without_the_key(
    endpoint: Endpoint, status: int, reply: str | bytes, said: str
) -> None:
    endpoint.reply = lambda content: (status, reply)
    with pytest.raises(ConfigError, match=said) as caught:
        judge(endpoint).choose("q", "a", "b")
    assert SECRET not in str(caught.value) and len(str(caught.value)) < 400
    assert all(path == "/v1/chat/completions" for path, _, _ in endpoint.requests)  # no redirect is followed


def test_a_silent_endpoint_is_given_up(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "TIMEOUT", 0.05)
    held = threading.Event()
    endpoint.reply = lambda content: (held.wait(5), (200, "TIE"))[1]
    with pytest.raises(ConfigError, match="does not answer: 'TimeoutError'"):
        judge(endpoint).choose("q", "a", "b")
    held.set()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/v1", "is no address of an endpoint"),
        ("host/v1", "is no address of an endpoint"),
        (f"https://me:{SECRET}@host/v1", "is no address of an endpoint"),
        (f"https://host/v1?key={SECRET}", "is no address of an endpoint"),
        ("https://host:port/v1", "its port is no number"),
        ("http://host/v1", "would be sent unencrypted to host; use https"),
    ],
)
def test_an_address_that_would_give_the_key_away_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^--judge: .*{said}") as caught:
        Judge(url, "m", {KEY: SECRET})
    assert SECRET not in str(caught.value)


def test_a_key_that_no_header_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"^{KEY}: holds characters that no key has; set it anew$"):
        Judge("https://host/v1", "m", {KEY: "two\nlines"})


def test_without_a_key_none_is_sent(endpoint: Endpoint) -> None:
    Judge(endpoint.url, "m", {}).choose("q", "a", "b")
    assert "Authorization" not in endpoint.requests[0][1]
    Judge("http://somewhere/v1", "m", {})  # nothing to give away
