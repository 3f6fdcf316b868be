"""Notifications: a command or a webhook on done, fail and alert. A failed hook is logged and has no other effect."""

import json
import logging
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

from vast.host.bounded_http import exchange
from vast.policy import Event, Hooks
from vast.ports import Seconds
from vast.secrets import Redactor
from vast.supervisor.state import RunState, spent

log = logging.getLogger(__name__)

Run = Callable[[list[str], bytes, Mapping[str, str], Seconds], None]


def message(event: Event, why: str, state: RunState, t: Seconds) -> dict[str, Any]:
    """The JSON for a hook: money and machines, no secret."""
    machine = state.machine
    return {
        "event": event,
        "why": why,
        "run": state.run_id,
        "phase": state.phase.value,
        "attempt": state.attempt,
        "machine": None if machine is None else machine.id,
        "dollars": round(spent(state, t), 4),
        "cap_dollars": state.cap_dollars,
        "at_home": state.home,
        "lost": state.lost_artifacts,
    }


class Notifier:
    """Calls the hooks of a policy. `environ`: the environment of commands, without any secret."""

    def __init__(self, hooks: Hooks, redact: Redactor, environ: Mapping[str, str], run: Run | None = None) -> None:
        self._hooks, self._redact, self._environ, self._run = hooks, redact, environ, run or run_command

    def __call__(self, event: Event, content: dict[str, Any]) -> None:
        hook: list[str] | str | None = getattr(self._hooks, event)
        if hook is None:
            return
        data = (self._redact(json.dumps(content, sort_keys=True)) + "\n").encode()
        try:
            if isinstance(hook, str):
                post_json(hook, data, self._hooks.seconds)
            else:
                self._run(hook, data, self._environ, self._hooks.seconds)
        except (OSError, HTTPException, ValueError, subprocess.SubprocessError) as error:
            # the address of a webhook may be a secret by itself, and errors quote it
            log.warning("hook %s: %s %s", event, type(error).__name__, getattr(error, "strerror", None) or "")


def run_command(argv: list[str], data: bytes, environ: Mapping[str, str], seconds: Seconds) -> None:
    """The JSON on standard input. Raises CalledProcessError, TimeoutExpired, OSError."""
    subprocess.run(argv, input=data, env=dict(environ), timeout=seconds, check=True, stdout=subprocess.DEVNULL,
                   start_new_session=True)  # fmt: skip


def post_json(address: str, data: bytes, seconds: Seconds) -> None:
    """Within `seconds` as a whole. Raises OSError, HTTPException; also for an answer that is no success, such as a redirect."""
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", "User-Agent": "prefill-vast"})
    answer = exchange(request, seconds)
    if not 200 <= answer.status < 300:
        raise OSError(None, f"HTTP {answer.status}")
