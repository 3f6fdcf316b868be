"""Why a job ended: maps its exit code and the end of its log to a reason of vast/supervisor/reasons.py and a fingerprint.

The exit code decides where this project chose it (jobs/errors.py). Where the code only means "something failed", the log
decides, by messages of libraries, driver and system. Only the last traceback and the lines after it are read, or else the
last lines: a warning that was printed an hour earlier did not end the job.

The fingerprint is a hash of that failure without numbers, addresses, paths and times. The same cause has the same one on
another day and on another machine, and a cause that is new has another one.
"""

import hashlib
import re
import signal
from dataclasses import dataclass

from jobs import errors

CERTAIN = {errors.EXIT_OK, errors.EXIT_NAN, errors.EXIT_NO_LEARNING, errors.EXIT_DISK_FULL, errors.EXIT_STOPPED}
NO_FAILURE = {"done", "stopped"}


@dataclass(frozen=True)
class End:
    reason: str
    fingerprint: str | None  # 16 hex digits; None if nothing failed


def classify(exit_code: int, log: str, otherwise: str) -> End:
    """
    log: the end of the output of this attempt.
    otherwise: the reason that the exit code alone gives.
    """
    if otherwise in NO_FAILURE:
        return End(otherwise, None)
    failure = last_failure(log)
    reason = otherwise
    if exit_code not in CERTAIN:
        text = "\n".join(failure)
        allowed = ONLY.get(exit_code, {name for name, _ in SIGNS})
        reason = next((name for name, sign in SIGNS if name in allowed and sign.search(text)), otherwise)
    return End(reason, None if reason in NO_FAILURE else fingerprint(exit_code, failure))


# ---- reasons ----------------------------------------------------------------------------------------------------------


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# Xid codes of the hardware, see "XID errors" of NVIDIA's documentation. 13, 31, 43, 45 and such are the program's own.
_XIDS = "46|48|54|61|62|63|64|74|79|92|94|95|109|119|120|136|140|143|149|154"

# In this order: a broken GPU explains what follows it, and a full disk breaks downloads and locks.
SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("gpu-fault", _any(
        rf"\bXid\b[^\n]*?: (?:{_XIDS})\b", r"fallen off the bus", r"GPU is lost", r"uncorrectable (?:ECC|NVLink) error",
        r"CUDA error: (?:hardware stack error|uncorrectable|an illegal instruction at hardware)",
        r"CUDA-capable device\(s\) is/are busy or unavailable", r"no CUDA-capable device is detected",
        r"CUDA unknown error", r"CUDA driver initialization failed",
        r"CUDA error: (?:system not yet initialized|initialization error)",
        r"Unable to determine the device handle for GPU", r"couldn't communicate with the NVIDIA driver",
        r"NVIDIA driver on your system is too old", r"No CUDA GPUs are available", r"Found no NVIDIA driver",
        r"forward compatibility was attempted on non supported HW", r"torch sees no CUDA device",
    )),
    ("cuda-oom", _any(
        r"CUDA out of memory", r"OutOfMemoryError: (?!.*shared memory)", r"CUDA error: out of memory",
        r"CUBLAS_STATUS_ALLOC_FAILED", r"CUDNN_STATUS_ALLOC_FAILED", r"HIP out of memory",
    )),
    ("disk-full", _any(
        r"No space left on device", r"Disk quota exceeded", r"\[Errno (?:28|122)\]", r"no space left on the disk",
        r"inline_container\.cc.*(?:file write failed|write file)", r"not enough (?:free )?disk space",
    )),
    ("missing-tool", _any(
        r"Failed to find C compiler", r"No such file or directory: '(?:gcc|g\+\+|cc|c\+\+|clang|ninja|git|make|nvcc|ptxas)'",
        r"(?:gcc|g\+\+|cc|ninja|git|make|nvcc|ptxas): (?:command )?not found", r"Ninja is required to load C\+\+ extensions",
        r"fatal error: Python\.h: No such file",
    )),
    ("stale-lock", _any(
        r"The file lock '[^\n]*' could not be acquired", r"is in use by (?:process \d+|another process)",
    )),
    ("hub-timeout", _any(
        r"Max retries exceeded with url", r"(?:Read|Connect|Pool)Timeout(?:Error)?\b", r"Temporary failure in name resolution",
        r"\b(?:429 (?:Client Error|Too Many Requests)|50[0234] Server Error|Gateway Time-?out)",
        r"LocalEntryNotFoundError", r"We couldn't connect to 'https?://",
        r"IncompleteRead|ChunkedEncodingError|RemoteProtocolError",
        r"httpx?\.(?:ConnectError|RemoteProtocolError)", r"requests\.exceptions\.ConnectionError", r"ConnectionResetError",
        r"[Cc]annot reach the hub|Network is unreachable",
    )),
    ("stopped", _any(r"stopped by a signal")),  # it logged its stop, and a second SIGTERM killed it while it ended
    ("user", _any(r"GatedRepoError", r"RepositoryNotFoundError", r"RevisionNotFoundError")),
    ("killed", _any(r"DataLoader worker \(pid.*\) is killed by signal: Killed", r"SIGKILL")),
)  # fmt: skip

# The other reasons that an exit code allows. A program may report a fault of the machine or the network as a mistake of its
# user. After a signal from outside the last lines of the log are about something else.
ONLY = {
    errors.EXIT_USER: {"gpu-fault", "disk-full", "stale-lock", "hub-timeout"},
    128 + signal.SIGKILL: {"gpu-fault"},
    128 + signal.SIGTERM: {"gpu-fault", "stopped"},
}

# ---- the failure ------------------------------------------------------------------------------------------------------

_TRACEBACK = "Traceback (most recent call last):"
_OURS = re.compile(r"\[runner \d{4}-")
_ERROR = re.compile(r"error|fatal|exception|xid|killed|failed|abort|cannot|not found|fault", re.IGNORECASE)
_MARKS = re.compile(r"\s*[~^]+\s*")  # under a line of code
_AFTER = 20  # lines after a traceback that may belong to it
_FAR = 60  # with more lines after it a traceback was a handled one
_LAST = 20  # lines that are looked at where there is none


def last_failure(log: str) -> list[str]:
    """The lines of the last traceback and what follows, or the last lines that name an error, or the last line."""
    lines = [line.rstrip() for line in log.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line and not _OURS.match(line) and not _MARKS.fullmatch(line)]
    starts = [number for number, line in enumerate(lines) if line.endswith(_TRACEBACK)]
    if starts:
        end = _body_end(lines, starts[-1])
        if len(lines) - end <= _FAR:
            return lines[starts[-1] : end + _AFTER]
    named = [line for line in lines[-_LAST:] if _ERROR.search(line)]
    return named or lines[-1:]


def _body_end(lines: list[str], start: int) -> int:
    """The index of the line with the exception: the first line after the frames that is not indented."""
    for number in range(start + 1, len(lines)):
        if not lines[number].startswith(" "):
            return number
    return len(lines) - 1


def fingerprint(exit_code: int, failure: list[str]) -> str:
    """`failure`: see `last_failure`."""
    kept = failure
    if failure and failure[0].endswith(_TRACEBACK):
        kept = failure[1 : _body_end(failure, 0) + 1]  # what is printed after the exception comes in any order
    normal = []
    for line in kept:
        for pattern, word in _NORMAL:
            line = pattern.sub(word, line)
        normal.append(" ".join(line.split()))
    text = "\n".join([str(exit_code), *normal])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_NORMAL = (
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"), "TIME"),
    (re.compile(r"\b\d{8}-\d{6}(?:-\d+)?\b"), "RUN"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE), "ID"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "N"),
    (re.compile(r"(?<![\w.])(?:/[^\s/'\",:;()]+)*/([^\s/'\",:;()]+)"), r"\1"),  # a path's last part
    (re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,}\b", re.IGNORECASE), "ID"),  # commits, hashes
    (re.compile(r"\d+(?:[.,]\d+)*"), "N"),
)
