"""Every command that the supervisor runs on a rented machine: cd /opt/prefill && python3 -m vast.host ACTION [--root /runs]

Each prints one JSON object. Exit code 0; 2 for a mistake, 75 for what may be asked again in a while, with `error: ...`.
Standard library only, Python 3.11: an ssh session sees nothing of the image's environment.
"""

import argparse
import codecs
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.errors import EXIT_OK, RunStateError, UserError
from vast.host import burnin, jobstate, lease, probe, rental, secretfiles
from vast.host import files as hostfiles
from vast.host import start as hoststart
from vast.host.runner import COMMAND, GRACE, Parser, count, seconds, split
from vast.host.runs import RUNNER, WATCHDOG

ROOT = Path("/runs")
LARGEST = 256 * 1024  # bytes of the log in one answer


def log_text(root: Path, tail: int | None, follow_from: int | None) -> dict[str, Any]:
    """{"offset", "next", "text"}: bytes `offset` to `next` of job.log. A follower asks again from `next`; a log that is
    shorter than `follow_from` is a new one and is read from its start."""
    path = root / RUNNER / jobstate.LOG
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            begin = end - LARGEST if follow_from is None else follow_from if follow_from <= end else 0
            offset = max(0, begin)
            file.seek(offset)
            data = file.read(LARGEST)
    except FileNotFoundError:
        raise RunStateError(path, "no job was started here", "see what there is: python3 -m vast.host look") from None
    if tail is not None:
        kept = b"".join(data.splitlines(keepends=True)[-tail:]) if tail else b""
        offset += len(data) - len(kept)
        data = kept
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    rest = len(decoder.getstate()[0])  # a character of which the end is to come
    return {"offset": offset, "next": offset + len(data) - rest, "text": text}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python3 -m vast.host", description="What a supervisor asks of this rented machine.")
    made = parser.actions({
        "look": "how job, GPU, disk and dead-man's switch are",
        "burnin": "try GPUs, disk and network, within a minute",
        "start": "start the job; what follows -- are its arguments",
        "stop": "ask the job for a checkpoint and an end",
        "lease": "renew the lease of the dead-man's switch",
        "rent": "rent this machine to the run on standard input",
        "rental": "who has this machine",
        "release": "end a rental, its job, its files and its secrets",
        "secrets": "take secrets from standard input into memory",
        "files": "what can be pulled",
        "log": "the job's output",
    })  # fmt: skip
    for one in made.values():
        one.add_argument("--root", type=Path, default=ROOT, help="where runs are kept (default: %(default)s)")
    for name in ("start", "secrets", "rent", "release"):
        made[name].add_argument("--secrets-dir", type=Path, default=secretfiles.DIRECTORY, help="default: %(default)s")
    made["burnin"].add_argument("--python", default=burnin.PYTHON, help="one with torch (default: %(default)s)")
    made["burnin"].add_argument("--download", default=burnin.DOWNLOAD, metavar="URL", help="default: %(default)s")
    made["burnin"].add_argument("--no-gpu", action="store_true", help="the job runs on the CPU")
    made["start"].add_argument("--home", metavar="CHECKPOINT", help="the newest one that is safe elsewhere")
    made["start"].add_argument("--command", default=COMMAND, help="the program (default: %(default)s)")
    made["stop"].add_argument("--grace", type=seconds, default=GRACE, help="seconds (default: %(default).0f)")
    made["lease"].add_argument("--until", type=seconds, required=True, help="seconds to the run's deadline")
    made["release"].add_argument("--id", type=count, required=True, help="of the rental")
    made["files"].add_argument("--everything", action="store_true", help="also the results")
    made["files"].add_argument("--have", metavar="CHECKPOINT", help="the newest one that is safe elsewhere, or none")
    made["files"].add_argument(
        "--done", action="append", default=[], metavar="RUN", help="complete, and safe elsewhere"
    )
    made["log"].add_argument("--tail", type=count, metavar="N", help="the last N lines")
    made["log"].add_argument(
        "--follow-from", type=count, metavar="BYTES", help="what was written after this number of bytes"
    )
    return parser.parse_args(argv)


def _act(options: argparse.Namespace, job_arguments: Sequence[str]) -> dict[str, Any]:
    root: Path = options.root
    match options.action:
        case "look":
            return probe.probe(root)
        case "burnin":
            return burnin.burn_in(root, options.python, options.download, gpus=not options.no_gpu)
        case "start":
            names = secretfiles.environment(options.secrets_dir)
            started = hoststart.start(root, options.command, job_arguments, options.home, names)
            return {"started": started, "attempt": jobstate.observe(root / RUNNER)["attempt"]}
        case "stop":
            state = jobstate.observe(root / RUNNER)
            if not jobstate.over(state):
                hoststart.stop(root, options.grace)
            return {"stopping": not jobstate.over(state), "phase": state["phase"]}
        case "lease":
            lease.renew(root / WATCHDOG, options.until)
            return {"watchdog": lease.view(root / WATCHDOG)}
        case "rent":
            label, number, words = rental.parse(sys.stdin.read(secretfiles.LARGEST))
            rental.take(root, label, number, words, options.secrets_dir)
            return rental.view(root)
        case "rental":
            return rental.view(root)
        case "release":
            return rental.release(root, options.id, options.secrets_dir)
        case "secrets":
            given = secretfiles.parse(sys.stdin.read(secretfiles.LARGEST))
            return {"secrets": secretfiles.store(given, options.secrets_dir)}
        case "files":
            return hostfiles.files(root, options.everything, options.have, options.done)
    return log_text(root, options.tail, options.follow_from)


def main(argv: Sequence[str]) -> int:
    own, job_arguments = split(argv)
    options = _arguments(own)
    try:
        answer = _act(options, job_arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(answer))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
