"""The way to a rented machine: the system's ssh and rsync, by argv. The port Transport.

Host keys are always checked: a key is trusted at the first contact only (vast/shell/keys.py). Calls in a row share
one connection (ControlMaster), which ends by itself a minute after the last.
"""

import errno
import hashlib
import logging
import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from jobs.errors import UserError
from vast.host import subprocess_run
from vast.host.subprocess_run import Ended
from vast.ports import Address, Seconds
from vast.shell import keys as pins
from vast.shell import rsync
from vast.shell.keys import KEY, PUBLIC, child_environment
from vast.shell.transport import FREELY, Argv, Kind, Pace, Reply

log = logging.getLogger(__name__)

CONNECT: Seconds = 10.0  # for TCP and the server's greeting
PERSIST = 60  # seconds that a connection without use is kept: longer than the shortest pause between two looks
CLOSE: Seconds = 5.0
PINNED = "run/known_hosts"  # host keys, below the private directory
LONGEST_SOCKET = 80  # bytes of a path: 104 fit at most, and ssh adds 17 while it makes one
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
# Messages of ssh and their meaning; the first match counts. Any other message: the host was not reached.
SIGNS: tuple[tuple[str, Kind], ...] = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "wrong-host"),
    ("Host key verification failed", "wrong-host"),
    ("Permission denied (", "denied"),
    ("Too many authentication failures", "denied"),
)


class SshTransport:
    """The machines of one run.

    directory: of the run; it holds known_hosts and, if `key` is None, the run's own key (vast/shell/keys.py).
    pin: the name of the instance that is used now. An address that a later instance is given is a first contact again.
    Raises UserError if ssh or rsync is not installed.
    """

    def __init__(
        self,
        directory: Path,
        key: Path | None = None,
        *,
        pin: Callable[[], str] = str,
        user: str = "root",
        connect: Seconds = CONNECT,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        for program in ("ssh", "rsync"):
            if shutil.which(program, path=environ.get("PATH")) is None:
                raise UserError(program, "is not installed", f"install it, as by: apt-get install {program}")
        self._pin, self._connect, self._user = pin, connect, user
        self._env = child_environment(environ)
        self._directory, self._key = directory.absolute(), (key or directory / KEY).absolute()
        self._agent = key is not None  # the user's own may have a passphrase
        self._used: dict[Path, Address] = {}  # sockets, and where they lead

    @cached_property
    def _private(self) -> Path:
        """Short, without blanks and nobody else's: sockets must fit, and options split what they are given at blanks."""
        return _private_directory()

    def _link(self) -> None:
        """Also again, since systems remove temporary files after some days while a supervisor still runs.

        Raises PermissionError where another user has put a directory or a link there meanwhile, with host keys of their own.
        """
        self._private.mkdir(mode=0o700, exist_ok=True)
        found = self._private.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "is not a directory of this user", str(self._private))
        public = self._key.with_name(self._key.name + PUBLIC)
        for name, target in (("run", self._directory), (KEY + PUBLIC, public), (KEY, self._key)):
            with suppress(FileExistsError):
                (self._private / name).symlink_to(target)

    # ---- calls

    def run(self, address: Address, argv: Argv, *, stdin: bytes = b"", timeout: Seconds, pace: Pace = FREELY) -> Reply:
        def command() -> list[str]:
            return [*self.argv(address), "--", f"{self._user}@{address.host}", shlex.join(argv)]

        watch = None if pace is FREELY else lambda printed: None if pace.proceed() else rsync.ENDED
        return self._dropping(address, outcome(self._program(address, command, timeout, stdin, watch)))

    def fetch(
        self, address: Address, paths: Sequence[str], root: str, into: Path, *, timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        into.mkdir(parents=True, exist_ok=True)
        source = f"{self._at(address)}:{root}"
        return self._rsync(address, rsync.FETCH, source, str(into.absolute()), paths, timeout, pace)

    def send(
        self, address: Address, source: Path, root: str, paths: Sequence[str], *, timeout: Seconds, pace: Pace = FREELY
    ) -> Reply:
        target = f"{self._at(address)}:{root}"
        return self._rsync(address, rsync.SEND, str(source.absolute()), target, paths, timeout, pace)

    def _rsync(self, address: Address, mode: Sequence[str], source: str, target: str, paths: Sequence[str],
               timeout: Seconds, pace: Pace) -> Reply:  # fmt: skip
        def command() -> list[str]:
            ssh = self.argv(address, "no")  # it uses the connection that is there; one it made itself would die with it
            return rsync.argv(ssh, mode, source, target, pace.mbit)

        ended = self._program(address, command, timeout, rsync.listing(paths), rsync.Progress(pace, time.monotonic))
        return self._dropping(address, rsync.reply(ended, outcome))

    def _program(self, address: Address, argv: Callable[[], list[str]], timeout: Seconds, stdin: bytes,
                 watch: subprocess_run.Watch | None = None) -> Ended:  # fmt: skip
        if not HOST.fullmatch(address.host):
            return Ended(rsync.SSH_FAILED, err=f"{address.host!r} is no address")
        try:
            words = argv()
        except OSError as error:  # the directory of the connections, on a full disk
            return Ended(None, err=f"{error.filename}: {error.strerror}")
        return subprocess_run.run(words, timeout=timeout, env=self._env, stdin=stdin, watch=watch)

    def settle(self, address: Address, ours: bool) -> None:
        if not ours:
            return self._distrust(address)
        try:
            pins.adopt(self._private / PINNED, self._candidates(address), pins.alias(self._pin(), address))
        except (UserError, OSError, ValueError) as error:
            log.warning("the host key of %s is not pinned: %s", address.host, error)

    def _distrust(self, address: Address) -> None:
        """Drop the connection, and the host key that it showed."""
        self._drop(address)
        with suppress(OSError):
            self._candidates(address).unlink(missing_ok=True)

    def close(self) -> None:
        for address in list(self._used.values()):
            self._drop(address)
        if "_private" in self.__dict__:
            shutil.rmtree(self._private, ignore_errors=True)

    # ---- argv

    def argv(self, address: Address, master: str = "auto") -> list[str]:
        """ssh and its options, without the host. Nothing is read from the user's or the system's configuration."""
        self._link()
        name = pins.alias(self._pin(), address)
        known = bool(pins.keys(self._private / PINNED, name))
        options = {
            "BatchMode": "yes",  # a question would wait for ever
            "ConnectTimeout": f"{self._connect:.0f}",
            "ConnectionAttempts": "1",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "StrictHostKeyChecking": "yes" if known else "accept-new",
            "UserKnownHostsFile": str(self._private / PINNED if known else self._candidates(address)),
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": name,
            "CheckHostIP": "no",
            "HashKnownHosts": "no",
            "UpdateHostKeys": "no",  # the host must not change what is pinned
            "IdentitiesOnly": "yes",
            "PreferredAuthentications": "publickey",
            "ForwardAgent": "no",
            "RequestTTY": "no",
            "LogLevel": "ERROR",
            "ControlMaster": master,
            "ControlPath": str(self._socket(address)),
            "ControlPersist": str(PERSIST),
        }
        if not self._agent:
            options["IdentityAgent"] = "none"
        pairs = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", "-i", str(self._private / KEY), "-p", str(address.port), *pairs]

    def _at(self, address: Address) -> str:
        return f"{self._user}@[{address.host}]" if ":" in address.host else f"{self._user}@{address.host}"

    def _socket(self, address: Address) -> Path:
        """By what the keys are pinned under: a connection to an earlier instance is never used for a later one."""
        path = self._private / hashlib.sha256(pins.alias(self._pin(), address).encode()).hexdigest()[:12]
        self._used[path] = address
        return path

    def _candidates(self, address: Address) -> Path:
        """Host keys of a machine that has not shown the nonce."""
        return self._socket(address).with_suffix(".keys")

    # ---- outcomes

    def _dropping(self, address: Address, reply: Reply) -> Reply:
        """After a failure the next call makes a new connection, since this one may hang for minutes. The host key that it
        showed proves nothing yet."""
        if reply.kind != "ok":
            self._distrust(address)
        return reply

    def _drop(self, address: Address) -> None:
        for path in [path for path, where in self._used.items() if where == address]:
            if path.exists():
                argv = ["ssh", "-F", "/dev/null", "-o", f"ControlPath={path}", "-O", "exit", "--", address.host]
                subprocess_run.run(argv, timeout=CLOSE, env=self._env)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            del self._used[path]


def outcome(ended: Ended) -> Reply:
    """ssh ends with 255 for its own errors; any other exit code is that of the program on the host."""
    if ended.timed_out:
        return Reply("timeout", err=ended.err)
    if ended.code is None or ended.code < 0:
        return Reply("not-run" if ended.code is None else "unreachable", err=ended.err)
    if ended.code != rsync.SSH_FAILED:
        return Reply("ok", ended.code, ended.out, ended.err)
    unreachable: Kind = "unreachable"
    return Reply(next((kind for sign, kind in SIGNS if sign in ended.err), unreachable), err=ended.err)


def _private_directory() -> Path:
    """Made with mode 0700; in /tmp where the usual place for temporary files is too deep or has odd letters."""
    usual = tempfile.gettempdir()
    plain = len(usual) + len("/prefill-12345678/123456789012") <= LONGEST_SOCKET and re.fullmatch(r"[\w./-]+", usual)
    return Path(tempfile.mkdtemp(prefix="prefill-", dir=usual if plain else "/tmp"))
