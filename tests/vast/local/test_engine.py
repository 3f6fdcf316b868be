"""The engine's answers are told apart, and nothing that it does makes a call last longer than its limit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.errors import UserError
from tests.vast.fakes.fake_engine import Box, FakeEngine, Handler
from vast.local.engine import Engine, connect
from vast.local.engine_errors import Missing, Refused, Silent
from vast.shell.transport import Reply


@pytest.fixture
def engine(fake: FakeEngine) -> Engine:
    return fake.client()


@pytest.fixture
def box(fake: FakeEngine) -> Box:
    return fake.box(status="running")


def test_a_container_that_is_not_there_is_missing(engine: Engine) -> None:
    with pytest.raises(Missing):
        engine.inspect("0123456789ab")


@pytest.mark.parametrize("words", ["page not found", "<html>404</html>", ""])
def test_a_404_in_other_words_than_the_engines_is_not_the_engines(fake: FakeEngine, engine: Engine, words: str) -> None:
    fake.odd["GET /containers/.*"] = lambda handler: handler.say(404, content=words.encode())
    with pytest.raises(Silent):
        engine.inspect("0123456789ab")


@pytest.mark.parametrize("status", [400, 409, 500, 503])
def test_a_no_is_a_no_and_carries_its_words(fake: FakeEngine, engine: Engine, box: Box, status: int) -> None:
    fake.odd["GET /containers/.*"] = lambda handler: handler.refuse(status, "for a reason")
    with pytest.raises(Refused, match="for a reason") as caught:
        engine.inspect(box.id)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "odd",
    [
        Handler.drop,
        lambda handler: handler.say(200, content=b"{torn"),
        lambda handler: handler.say(200, content=b""),
        lambda handler: handler.say(200, ["a", "list"]),
        lambda handler: handler.say(200, None, b"null"),
        lambda handler: handler.say(407, {"message": "a proxy"}),
    ],
    ids=["dropped", "torn", "empty", "list", "null", "proxy"],
)
def test_what_cannot_be_understood_is_silence(fake: FakeEngine, engine: Engine, box: Box, odd: object) -> None:
    fake.odd["GET /containers/.*"] = odd  # type: ignore[assignment]
    with pytest.raises(Silent):
        engine.inspect(box.id)


def test_an_engine_that_does_not_answer_is_silent_after_its_limit(fake: FakeEngine, box: Box) -> None:
    fake.odd["GET /containers/.*"] = Handler.hang
    began = time.monotonic()
    with pytest.raises(Silent):
        fake.client(timeout=0.2).inspect(box.id)
    assert time.monotonic() - began < 3


def test_no_engine_at_all_is_a_users_mistake_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no container engine answers \(No such file or directory\); .* set DOCKER_HOST"
    ):
        connect({"DOCKER_HOST": f"unix://{tmp_path}/nothing"}, 1.0)
    with pytest.raises(UserError, match="ssh"):
        connect({"DOCKER_HOST": "ssh://elsewhere"}, 1.0)


@pytest.mark.parametrize(
    ("name", "repository", "tag"),
    [
        ("prefill", "prefill", "latest"),
        ("reg:5000/you/prefill:1", "reg:5000/you/prefill", "1"),
        (
            "reg:5000/you/prefill@sha256:" + "a" * 64,
            "reg:5000/you/prefill",
            "sha256:" + "a" * 64,
        ),  # as make push prints it
    ],
)
def test_an_image_is_pulled_by_tag_or_digest(
    fake: FakeEngine, engine: Engine, name: str, repository: str, tag: str
) -> None:
    asked: list[dict[str, str]] = []
    fake.odd["POST /images/create"] = lambda handler: (
        asked.append(handler.query),
        handler.say(200, {"status": "done"}),
    )[1]
    engine.pull(name)
    assert asked == [{"fromImage": repository, "tag": tag}]


def test_the_identity_is_the_engines_own(fake: FakeEngine, engine: Engine) -> None:
    assert engine.identity() == "engine-1"
    numbers = iter(range(9))
    fake.odd["GET /info"] = lambda handler: handler.say(
        200, {"ID": str(next(numbers)), "Name": "here", "DockerRootDir": "/p"}
    )
    assert engine.identity() == "here:/p"  # as podman answers


# ---- commands -------------------------------------------------------------------------------------------------------------


def test_a_command_gets_its_input_and_gives_output_errors_and_code(fake: FakeEngine, engine: Engine, box: Box) -> None:
    fake.on_exec = lambda box, argv, stdin: (7, b"out:" + stdin, " ".join(argv[3:]).encode())
    assert engine.run(box.id, ("a", "b c"), b"in", 5.0) == Reply("ok", 7, "out:in", "a b c")


def test_the_command_has_its_limit_inside_the_container_too(fake: FakeEngine, engine: Engine, box: Box) -> None:
    seen: list[list[str]] = []
    fake.on_exec = lambda box, argv, stdin: (seen.append(argv) or 0, b"", b"")  # type: ignore[func-returns-value]
    engine.run(box.id, ("job",), b"", 4.5)
    assert seen == [["timeout", "--kill-after=5", "6", "job"]]


def test_output_that_comes_in_one_piece_with_the_head_of_the_answer_is_not_lost(
    fake: FakeEngine, engine: Engine, box: Box
) -> None:
    def at_once(handler: Handler) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
        handler.connection.sendall(head + b"\x01\x00\x00\x00\x00\x00\x00\x05hello")
        handler.close_connection = True

    fake.odd["POST /exec/.*/start"] = at_once
    fake.exit_codes["exec0"] = 0
    assert engine.run(box.id, ("job",), b"", 5.0) == Reply("ok", 0, "hello")


def test_a_command_that_hangs_is_given_up_at_its_limit(fake: FakeEngine, engine: Engine, box: Box) -> None:
    def part(handler: Handler) -> None:
        handler.raw_stream()
        handler.frame(1, b"part")
        handler.hang()

    for odd in (Handler.hang, part):
        fake.odd["POST /exec/.*/start"] = odd
        began = time.monotonic()
        assert engine.run(box.id, ("job",), b"", 0.3).kind == "timeout"
        assert time.monotonic() - began < 3


def test_a_command_that_trickles_is_given_up_at_its_limit(fake: FakeEngine, engine: Engine, box: Box) -> None:
    def trickle(handler: Handler) -> None:
        handler.raw_stream()
        while not handler.engine.hung.wait(0.02):
            handler.frame(1, b".")

    fake.odd["POST /exec/.*/start"] = trickle
    began = time.monotonic()
    assert engine.run(box.id, ("job",), b"", 0.3).kind == "timeout"
    assert time.monotonic() - began < 3


def test_output_that_breaks_off_is_silence_and_no_result(fake: FakeEngine, engine: Engine, box: Box) -> None:
    def torn(handler: Handler) -> None:
        handler.raw_stream()
        handler.wfile.write(b"\x01\x00\x00\x00\x00\x00\x00\x09only")

    fake.odd["POST /exec/.*/start"] = torn
    fake.exit_codes["exec0"] = 0
    with pytest.raises(Silent, match="broke off"):
        engine.run(box.id, ("job",), b"", 5.0)


def test_a_command_without_an_exit_code_did_not_end(fake: FakeEngine, engine: Engine, box: Box) -> None:
    fake.odd["GET /exec/.*"] = lambda handler: handler.say(200, {"Running": True, "ExitCode": None})
    assert engine.run(box.id, ("job",), b"", 0.2).kind == "timeout"


def test_a_paused_container_takes_no_command(engine: Engine, box: Box) -> None:
    box.status = "paused"
    with pytest.raises(Refused, match="paused"):
        engine.run(box.id, ("job",), b"", 1.0)
