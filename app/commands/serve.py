"""`serve`: a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.commands import options
from jobs.config.load import resolve
from jobs.config.schema import NOT_LEAKING, Mask, mask_by_layer
from jobs.errors import ConfigError

if TYPE_CHECKING:
    from app.serve.worker import Worker

_GRACE = 10  # seconds for answers in the making once a signal came


@click.command()
@options.profile
@options.model
@click.option("--mask", type=click.Choice(NOT_LEAKING), help="How prompts are read. Default: as the model was trained; causal "
              "for the profile's own model.")  # fmt: skip
@options.layers
@click.option("--listen", default="8001", show_default=True, metavar="[HOST:]PORT", help="This machine's own address unless "
              "another HOST is named. Port 0: a free one.")  # fmt: skip
@click.option("--key-file", type=options.FILE, envvar="PREFILL_SERVE_KEY_FILE", show_envvar=True,
              help="A file with the key that clients must send. Default: none is asked for.")  # fmt: skip
@options.count("--max-new-tokens", 1024, "The most that a request may ask for.")
@options.count("--waiting", 64, "Prompts that may wait; more get status 429.")
@click.option("--seconds", type=options.Finite(min=0, min_open=True), default=300.0, show_default=True, metavar="S",
              help="That a request may take; a longer one gets status 504.")  # fmt: skip
@options.batch(16384, "of prompts and answers in ")
@options.runs
def serve(profile: str, model: str | None, mask: Mask | None, layers: str | None, listen: str, key_file: Path | None,
          max_new_tokens: int, waiting: int, seconds: float, batch_tokens: int, runs_dir: Path) -> None:  # fmt: skip
    """Answer requests in OpenAI's form, under any mask. Completions, chat, log-probabilities, streams: see docs/serve.md."""
    chosen = resolve("stage1", profile).profile
    from app.report.server import parse_address

    host, port = parse_address(listen, "--listen")
    key = None if key_file is None else _key(key_file)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        fact = f"needs {' and '.join(missing)}, which are not installed"
        raise ConfigError("serve", fact, "pip install starlette uvicorn, or make serve")
    import uvicorn

    from app.attention import selfcheck
    from app.attention.layers import restrict, trained_layers
    from app.model.load import find_checkpoint, load
    from app.serve.server import Served, application
    from app.serve.worker import Worker

    checkpoint = None if model is None else find_checkpoint(model, runs_dir, chosen.name)
    listening = _bound(host, port)
    loaded = load(chosen.model, checkpoint=checkpoint)
    about = getattr(loaded.model.config, "prefill", None) or {}  # of a run's final model
    trained = str(about.get("mask", "causal")).partition("@")[0]
    chosen_mask: Mask = mask or trained  # type: ignore[assignment]
    layers = layers or trained_layers(loaded.model)
    restrict(loaded.model, layers)
    selfcheck.require(loaded.model, [chosen_mask], loaded.origin)
    is_local = checkpoint is not None or chosen.model.local is not None  # its path is not the clients' business
    own = about.get("run") or (Path(loaded.origin).name if is_local else loaded.origin)
    names = (own, model) if model else (own,)
    facts = {"layers": layers, "run": about.get("run"), "trained_mask": about.get("mask")}
    served = Served(loaded, chosen_mask, names, facts, int(time.time()), max_new_tokens, seconds, key)
    with listening, Worker(loaded, chosen_mask, most=waiting, batch_tokens=batch_tokens) as worker:
        config = uvicorn.Config(application(served, worker), log_config=None, access_log=False, server_header=False,
                                timeout_graceful_shutdown=2 * _GRACE)  # fmt: skip
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises the signal again when it has ended
        signal.signal(signal.SIGINT, signal.default_int_handler)
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"{names[0]} under {mask_by_layer(chosen_mask, layers)} is served at "
                   f"http://{shown}:{listening.getsockname()[1]}/v1; Ctrl-C ends it")  # fmt: skip
        with suppress(KeyboardInterrupt):
            server = uvicorn.Server(config)
            server.handle_exit = partial(_ending, worker, server.handle_exit)  # type: ignore[method-assign]
            server.run(sockets=[listening])


def _ending(worker: Worker, handle_exit: Callable[[int, Any], None], number: int, frame: Any) -> None:
    """Once a signal came, answers have some seconds to be finished."""
    timer = threading.Timer(_GRACE, worker.end)
    timer.daemon = True
    timer.start()
    handle_exit(number, frame)


def _key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--key-file {path}", f"cannot be read: {error}", "name a file with the key in it") from None
    if not key:
        raise ConfigError(f"--key-file {path}", "is empty", "write the key into it")
    return key


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address: before the model is loaded, so that a wrong one is reported at once. It does not listen yet:
    until the model is loaded, clients are refused and need not wait."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        fact = f"cannot listen there: {error.strerror}"
        raise ConfigError(f"--listen {host}:{port}", fact, "choose another port") from None
    return listening
