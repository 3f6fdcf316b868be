"""Hooks: a command or a webhook on done, fail and alert, which can hurt neither the run nor a secret."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from jobs.errors import ConfigError
from tests.vast.fakes.command_line import UP, World
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast import policy as policies
from vast.policy import Policy
from vast.secrets import Redactor, Secret
from vast.session.notify import Notifier, post_json, run_command


def policy_with(**hooks: object) -> Policy:
    return policies.load(None, {"test": {"hooks": hooks}})


@pytest.fixture
def posts() -> Iterator[tuple[str, list[dict[str, object]]]]:
    got: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(302 if self.path == "/moved" else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()
    thread.join()


def policy_file(tmp_path: Path, **hooks: object) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(json.dumps({"hooks": hooks}))  # JSON is YAML
    return str(path)


@pytest.mark.parametrize(("script", "events"), [
    ([running(60), ended()], ["done"]),
    ([running(60), ended("nan", 3, complete=False)], ["alert", "fail"]),
])  # fmt: skip
def test_a_webhook_hears_how_a_run_ended(
    world: World, tmp_path: Path, posts: tuple[str, list[dict[str, object]]], script: list[object], events: list[str]
) -> None:
    url, got = posts
    world.shell = ScriptedShell(script)  # type: ignore[arg-type]
    world.vast(*UP, "--policy", policy_file(tmp_path, done=url, fail=url, alert=url))
    assert [one["event"] for one in got] == events
    assert got[-1]["run"] == world.folder.run_id
    assert float(str(got[-1]["dollars"])) > 0


def test_a_command_gets_json_and_no_secret_in_its_environment(world: World, tmp_path: Path) -> None:
    out = tmp_path / "told"
    code = f"import os, sys; open({str(out)!r}, 'w').write(sys.stdin.read() + repr(dict(os.environ)))"
    path = tmp_path / "policy.yaml"
    path.write_text(json.dumps({"hooks": {"done": [sys.executable, "-c", code]}, "secrets": ["HF_TOKEN"]}))
    world.environ = {"HF_TOKEN": "hf-secret-77", "HOME": "/nowhere"}
    assert world.vast(*UP, "--policy", str(path)).exit_code == 0
    told = out.read_text()
    assert json.loads(told.splitlines()[0])["event"] == "done"
    assert "/nowhere" in told and "hf-secret-77" not in told and "VAST_API_KEY" not in told


@pytest.mark.parametrize(
    "hook",
    [["no-such-program-anywhere"], [sys.executable, "-c", "raise SystemExit(3)"], "https://127.0.0.1:9/x-secret-path"],
)
def test_a_hook_that_fails_changes_nothing(world: World, tmp_path: Path, hook: object) -> None:
    done = world.vast(*UP, "--policy", policy_file(tmp_path, done=hook))
    assert done.exit_code == 0
    assert "hook done: " in done.stderr
    assert "x-secret-path" not in done.stderr


def test_a_hook_that_hangs_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    policy = policy_with(alert=[sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.2)
    with caplog.at_level(logging.WARNING):
        Notifier(policy.hooks, Redactor(), {}, run_command)("alert", {})
    assert "TimeoutExpired" in caplog.text


def test_what_is_told_is_redacted() -> None:
    seen: list[bytes] = []

    def run(argv: list[str], data: bytes, environ: Mapping[str, str], seconds: float) -> None:
        seen.append(data)

    Notifier(policy_with(alert=["x"]).hooks, Redactor(Secret("key-0123")), {}, run)("alert", {"why": "the key-0123"})
    assert json.loads(seen[0]) == {"why": "the ***"}


def test_a_webhook_is_not_redirected(posts: tuple[str, list[dict[str, object]]]) -> None:
    url, got = posts
    with pytest.raises(OSError, match="302"):
        post_json(f"{url}/moved", b"{}", 5.0)
    assert len(got) == 1


@pytest.mark.parametrize(
    ("hook", "said"), [("http://example.org/x", "expected https://"), ([], "hooks.alert"), (3, "hooks.alert")]
)
def test_a_hook_that_cannot_be_one_is_refused(hook: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        policy_with(alert=hook)
