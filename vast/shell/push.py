"""Sends files to a host and verifies them there: the inputs of a stage, and a run that continues on another machine.

The file that marks others as complete (complete.json of a checkpoint, summary.json of a run) is sent last, after sha256sum on
the host has verified the others, so that an interrupted push leaves nothing that a job would believe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import RunStateError
from jobs.runs.atomic import is_safe, sha256_of
from vast.host.runs import list_of
from vast.ports import Address, Seconds
from vast.shell import file_list
from vast.shell.local_copy import LocalCopy
from vast.shell.transport import FREELY, Pace, Transport

SLOWEST = 1e5  # slowest accepted rate, bytes/s; it sets the outermost time limit of a transfer, see also rsync.Progress
LEAST: Seconds = 60.0
HASHED = 50e6  # bytes a second that a host hashes at least
# Files of a run that only its writer needs, or that mark its end.
NOT_PUSHED = frozenset({"lock", "heartbeat.json", file_list.MANIFEST, file_list.SUMMARY})
LAST = frozenset({file_list.MARK, file_list.SUMMARY})


@dataclass(frozen=True)
class Input:
    """Files that a stage needs on its machine before it starts.

    source: a directory here. paths: files and directories below it. to: where `source` is on the host, below its root.
    """

    source: Path
    paths: tuple[str, ...]
    to: str = ""

    def files(self) -> list[str]:
        """Every file, by its path below `source`. Raises RunStateError."""
        found = []
        for path in self.paths:
            at = self.source / path
            if not at.exists():
                remedy = "bring it back, or end the run: python -m vast down"
                raise RunStateError(at, "is gone, and the stage starts from it", remedy)
            found += [at] if at.is_file() else sorted(one for one in at.rglob("*") if one.is_file())
        names = [path.relative_to(self.source).as_posix() for path in found if path.name != "lock"]
        if odd := [name for name in names if not is_safe(name)]:
            raise RunStateError(self.source / odd[0], "has letters in its name that are not sent", "rename it")
        return names


def time_for(size: int) -> Seconds:
    return LEAST + size / SLOWEST


def send(
    transport: Transport, address: Address, source: Path, paths: Sequence[str], root: str, pace: Pace = FREELY
) -> bool | None:
    """Send `source`/path to `root`/path on the host, the marks last. None: no answer; False: it failed.

    Raises OSError for what cannot be read here.
    """
    first = [path for path in paths if Path(path).name not in LAST]
    then = [path for path in paths if Path(path).name in LAST]
    for part in (first, then):
        if not part:
            continue
        size = sum((source / path).stat().st_size for path in part)
        reply = transport.send(address, source, root, part, timeout=time_for(size), pace=pace)
        if reply.good:
            lines = "".join(f"{sha256_of(source / path)}  {path}\n" for path in part).encode()
            check = ("env", f"--chdir={root}", "sha256sum", "--check", "--strict", "--quiet")
            reply = transport.run(address, check, stdin=lines, timeout=LEAST + size / HASHED, pace=pace)
        if not reply.good:
            return reply.done
    return True


def of_complete(copy: LocalCopy) -> Input:
    """What shows a campaign on another machine that a run is complete, without its results, and its list of runs."""
    names = ("stage.yaml", file_list.MANIFEST, file_list.SUMMARY)
    paths = [f"{run}/{name}" for run in copy.complete_runs() for name in names]
    if copy.campaign is not None and (copy.runs_dir / list_of(copy.campaign)).is_file():
        paths.append(list_of(copy.campaign))
    return Input(copy.runs_dir, tuple(paths))


def of_run(copy: LocalCopy) -> list[str] | None:
    """The files with which a new host continues the run: its own files, and the newest checkpoint, verified again.

    None if there is nothing to continue: no run, a complete one, neither a whole checkpoint nor the trained model. Paths
    below the runs directory.
    """
    run = copy.receipt.run
    if run is None or (copy.runs_dir / run / file_list.SUMMARY).exists():
        return None
    checkpoint = copy.newest(deep=True)
    # the trained model, if the last pull brought all of it: scoring then continues without training again
    here = sorted(path for path in (copy.runs_dir / run / "final").rglob("*") if path.is_file())
    final = [path.relative_to(copy.runs_dir).as_posix() for path in here]
    known = {path for path in copy.receipt.files if path.startswith(f"{run}/final/")}
    if set(final) != known or not all(copy.is_verified(path, deep=True) for path in final):
        final = []
    if checkpoint is None and not final:
        return None
    files = [path.name for path in (copy.runs_dir / run).iterdir() if path.is_file() and not path.is_symlink()]
    # A name that no host may list was put there by a person.
    sent = (name for name in sorted(files) if name not in NOT_PUSHED and not name.startswith("."))
    own = [f"{run}/{name}" for name in sent if is_safe(name)]
    return [*own, *final, *([] if checkpoint is None else copy.files_of(checkpoint))]
