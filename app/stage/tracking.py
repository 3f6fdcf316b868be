"""Trackers beside a run's own logs: TensorBoard, Trackio, Weights & Biases, MLflow, by accelerate's adapters.

A run never waits for a tracker and never ends by one: numbers go through a bounded queue to a thread, and whatever a tracker
raises is one warning. Everything local lies in RUNS_DIR/tracking; only a key or an address in the environment has numbers sent.
Source: accelerate/tracking.py (1.10 and later).
"""

import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from jobs.config.job import flat
from jobs.config.profile import Tracker
from jobs.errors import ConfigError, expanded
from jobs.runs.atomic import finite

log = logging.getLogger(__name__)
WAITING = 10_000  # steps whose numbers may wait for a slow tracker; later ones are dropped and counted
FINISH_SECONDS = 30.0  # for what still waits at the end
PROJECT = "prefill"
_PREFIX = {"train_log.jsonl": "train", "eval_log.jsonl": "eval", "estimate.json": "estimate",
           "metrics.json": "final"}  # fmt: skip
Maker = Callable[[str, Path, MutableMapping[str, str]], Any]


def require_installed(names: Sequence[Tracker]) -> None:
    """Raises ConfigError for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            package = "mlflow-skinny" if name == "mlflow" else name
            fact = f"{name} is not installed"
            raise ConfigError("report_to", fact, f"pip install {package}, or take it out of the list")


class Tracking:
    """Sends what a run writes to trackers. Use with `with`; `note` is the run's `on_write`."""

    def __init__(self, names: Sequence[Tracker], run: Path, runs_dir: Path, config: Mapping[str, Any], *, cpu: bool = False,
                 environ: MutableMapping[str, str] = os.environ, make: Maker | None = None) -> None:  # fmt: skip
        """config: the run's job, nested; it is stored flat, as train.mask. cpu: no GPU is used, although there may be one."""
        self._cpu = cpu
        self._names, self._run, self._store, self._config = names, run, (runs_dir / "tracking").resolve(), config
        self._environ, self._make = environ, make or tracker
        self._queue: queue.Queue[tuple[int | None, dict[str, float]] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Queue the numbers of a line of a log, of the metrics or of the estimate. Never blocks, never raises."""
        if self._thread is None or (prefix := _PREFIX.get(name)) is None:
            return
        step = value.get("step")
        # Lists and texts are left out.
        numbers = {f"{prefix}/{key}": n for key, n in flat(value, "/") if key != "step" and finite(n) is not None}
        try:
            self._queue.put_nowait((step if isinstance(step, int) else None, numbers))
        except queue.Full:
            self.dropped += 1

    def __enter__(self) -> Self:
        if self._names:
            from accelerate import PartialState

            PartialState(cpu=self._cpu)  # accelerate's adapters want it; here, since other threads may make it too
            self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        with suppress(queue.Full):  # it is too slow anyway: the wait below gives up
            self._queue.put_nowait(None)
        self._thread.join(FINISH_SECONDS)
        left = ""
        if slow := self._thread.is_alive():
            left = f"; {self._queue.qsize()} more had not been taken {FINISH_SECONDS:.0f} s after the end"
        if self.dropped or slow:
            fact = f"trackers were too slow for {self.dropped} lines{left}"
            log.warning(f"report_to: {fact}; the run's own logs have them all")

    def _work(self) -> None:
        ready: dict[str, Any] = {}
        names: list[str] = list(self._names)
        for name in names:
            with _one_warning(name, ready):
                one = self._make(name, self._run, _in(self._store, self._environ))
                one.main_process_only = False  # this is rank 0, and nothing need be asked for it
                one.start()
                one.store_init_configuration({key: value if isinstance(value, str | int | float | bool) else str(value)
                                              for key, value in flat(self._config)})  # fmt: skip
                ready[name] = one
        while (entry := self._queue.get()) is not None:
            step, numbers = entry
            for name, one in list(ready.items()):
                with _one_warning(name, ready):
                    one.log(numbers, step=step)
        for name, one in list(ready.items()):
            with _one_warning(name, ready):
                one.finish()


@contextmanager
def _one_warning(name: str, ready: dict[str, Any]) -> Iterator[None]:
    """Turns whatever a tracker raises into one line, and drops the tracker."""
    try:
        yield
    except BaseException as error:
        ready.pop(name, None)
        # Not the error's text: a client may put a key or an address with a password into it.
        log.warning(f"report_to: {name} failed with {type(error).__name__} and gets nothing more; the run goes on")


def _in(store: Path, environ: MutableMapping[str, str]) -> MutableMapping[str, str]:
    store.mkdir(parents=True, exist_ok=True)
    environ.setdefault("TRACKIO_DIR", str(store / "trackio"))
    environ.setdefault("WANDB_DIR", str(store))
    environ.setdefault("WANDB_SILENT", "true")
    if not environ.get("WANDB_API_KEY") and (file := environ.get("WANDB_API_KEY_FILE")):
        # On a rented host, see vast/host/secretfiles.py.
        environ["WANDB_API_KEY"] = expanded(file).read_text(encoding="utf-8").strip()
    if not environ.get("WANDB_API_KEY"):
        environ.setdefault("WANDB_MODE", "offline")
    environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    return environ


def tracker(name: str, run: Path, environ: MutableMapping[str, str]) -> Any:
    """accelerate's adapter, not started. A resumed run goes on under its name."""
    from accelerate import tracking

    about = f"{run.parent.name}/{run.name}"
    if name == "tensorboard":
        return tracking.TensorBoardTracker(about, logging_dir=Path(environ["WANDB_DIR"]) / "tensorboard")
    if name == "trackio":
        return tracking.TrackioTracker(PROJECT, name=about, resume="allow")
    if name == "wandb":
        return tracking.WandBTracker(PROJECT, name=about, id=about.replace("/", "-"), resume="allow")
    return tracking.MLflowTracker(experiment_name=PROJECT, run_name=about)
