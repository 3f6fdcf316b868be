"""The port Shell over a Transport: the commands that run on a host, and which of its answers are believed.

Both pairs of address and port are tried in turn, beginning with the one that worked last. Before anything is sent to a machine
or taken from it, the machine has to show the nonce of the run. This proof lasts a minute; the pinned host key covers the rest.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

from jobs.errors import EXIT_USER, UserError
from vast.host.runs import list_of
from vast.ports import Address, Addresses, BurnIn, Clock, Contact, Host, Proceed, Pulled, Seconds, always
from vast.secrets import Secret
from vast.shell import burn_in, host_reports, push
from vast.shell.file_list import Listing, ListingRefused
from vast.shell.local_copy import LocalCopy
from vast.shell.pull import LEAST, free_bytes, pull
from vast.shell.push import Input
from vast.shell.transport import FREELY, Pace, Reply, Transport

log = logging.getLogger(__name__)

CODE, ROOT = "/opt/prefill", "/runs"  # on the host
PROBE: Seconds = 25.0
COMMAND: Seconds = 60.0
RENEW: Seconds = 300.0  # between two renewals of the lease while a transfer runs
HASH: Seconds = 900.0  # a host hashes a checkpoint of many GB once; what it hashed is remembered
MOST_RUNS = 1000  # of a campaign, in one pull
FRESH: Seconds = 60.0  # how long a nonce that was seen is believed
# Of several failed tries the first of these is reported: a person can act on it.
WORST = ("denied", "wrong-host", "unreachable")
MEANINGS = {
    "denied": "refuses the ssh key of this run",
    "wrong-host": "shows another host key than at the first contact: another machine, or one that was made anew",
    "timeout": "does not answer",
    "not-run": "was not asked: ssh cannot be started on this machine",
}


@dataclass(eq=False)
class HostShell:
    """One run's way to its machine."""

    transport: Transport
    copy: LocalCopy
    nonce: str  # what the machine's dead-man's switch was given
    clock: Clock
    network: Callable[[], bool]  # whether our own network works; it must not ask the host
    _: KW_ONLY
    secrets: Callable[[], Mapping[str, Secret]] = dict  # those of the job by their names, asked for before each start
    inputs: Sequence[Input] = ()  # what the stage needs on the machine before it starts
    grace: Seconds | None = None  # for the job's checkpoint when it is asked to end; None: what the host gives it
    gpus: int | None = None  # of the contract, for the burn-in; None: not known
    mbit: float | None = None  # bandwidth limit of transfers, Mbit/s
    root: str = ROOT
    program: Sequence[str] = ("env", f"--chdir={CODE}", "python3", "-m", "vast.host")  # how vast.host is called there
    _worked: Address | None = field(default=None, init=False)
    _failure: str = field(default="", init=False)  # of the last probe
    _not_run: bool = field(default=False, init=False)  # the last probe could not start ssh on this machine
    # when it was renewed last, and what was left to the deadline
    _lease: tuple[Seconds, Seconds] | None = field(default=None, init=False)
    # where the nonce was seen, when, in which boot
    _proven: tuple[Address, Seconds, str] | None = field(default=None, init=False)
    _sent: str | None = field(default=None, init=False)  # the boot of the machine that has the inputs

    def __post_init__(self) -> None:
        self.local_copy, self.close = self.copy.read_again, self.transport.close

    # ---- probing

    def probe(self, addresses: Addresses) -> Host:
        return self._find(addresses)[1]

    def _find(self, addresses: Addresses) -> tuple[Address | None, Host]:
        """The first pair at which our machine answers, with its report; or the most useful failure."""
        failures: dict[str, Host] = {}
        self._not_run = False
        for address in sorted(dict.fromkeys(addresses), key=lambda one: one != self._worked):
            found = self._probe_at(address)
            if found.contact == "ok":
                self._worked, self._failure = address, ""
                self._proven = (address, self.clock.monotonic(), found.boot)
                if found.job is not None and found.job.phase == "absent":
                    self._sent = None  # another machine, or one of one's own that was released meanwhile
                return address, found
            failures.setdefault(found.contact, found)
        self._proven = None
        known = (failures[contact] for contact in WORST if contact in failures)
        worst = next(known, Host("unreachable", message="no address is known"))
        if worst.message != self._failure:
            log.warning("no contact: %s", worst.message)  # once, however often it is tried again
        self._failure = worst.message
        return None, worst

    def _probe_at(self, address: Address) -> Host:
        reply = self.transport.run(address, self._argv("look"), timeout=PROBE)
        self._not_run |= reply.kind == "not-run"
        if reply.kind != "ok":
            contact: Contact = reply.kind if reply.kind in ("denied", "wrong-host") else "unreachable"
            return Host(contact, message=_cause(address, reply))
        found = host_reports.host(host_reports.parse(reply.out) if reply.code == 0 else None, self.nonce)
        if found.contact == "unreachable" and reply.code != 0:
            found = Host("unreachable", message=_cause(address, reply))
        self.transport.settle(address, found.contact == "ok")
        return found

    def _reach(self, addresses: Addresses) -> Address | None:
        """A pair at which our machine answered within the last minute."""
        if self._proven is not None:
            address, seen, _ = self._proven
            if address in addresses and 0 <= self.clock.monotonic() - seen < FRESH:
                return address
        return self._find(addresses)[0]

    # ---- commands

    def burn_in(self, addresses: Addresses, seconds: Seconds) -> BurnIn | None:
        no_gpu = ["--no-gpu"] if self.gpus == 0 else []
        reply = self._run(self._reach(addresses), "burnin", *no_gpu, timeout=seconds)
        if reply.kind == "ok" and reply.code == EXIT_USER and "invalid choice" in reply.err:
            return BurnIn(True, ("vast.host of the image has no burn-in",), ran=False)
        found = host_reports.parse(reply.out) if reply.good else None
        return burn_in.judged(found, self.gpus, self.clock.now())

    def start(
        self, addresses: Addresses, command: tuple[str, ...], home: str | None = None, proceed: Proceed = always
    ) -> bool | None:
        """Inputs and secrets go first. False: the host refuses, for one because its dead-man's switch is not armed."""
        address = self._reach(addresses)
        if address is None:
            return None
        if (done := self._send_inputs(address, proceed)) is not True:
            return done
        # Also an empty set: it removes the secrets of an earlier start.
        values = json.dumps({name: secret.reveal() for name, secret in self.secrets().items()}).encode()
        sent = self._run(address, "secrets", stdin=values)
        if not sent.good:
            return sent.done
        known = () if home is None else ("--home", home)
        return self._run(address, "start", *known, "--", *command).done

    def stop(self, addresses: Addresses) -> bool | None:
        grace = () if self.grace is None else ("--grace", f"{self.grace:g}")
        return self._run(self._reach(addresses), "stop", *grace).done

    def renew_lease(self, addresses: Addresses, until_deadline: Seconds) -> bool | None:
        return self._renew(self._reach(addresses), until_deadline)

    def _renew(self, address: Address | None, until_deadline: Seconds) -> bool | None:
        self._lease = (self.clock.monotonic(), until_deadline)
        return self._run(address, "lease", "--until", f"{max(0.0, until_deadline):.0f}").done

    def _pace(self, address: Address, proceed: Proceed) -> Pace:
        """Of a transfer, which may take hours: the lease of the machine is renewed meanwhile, as its supervisor would do."""

        def going() -> bool:
            if self._lease is not None:
                at, until = self._lease
                passed = self.clock.monotonic() - at
                if passed >= RENEW:
                    self._renew(address, until - passed)
            return proceed()

        return Pace(going, self.mbit)

    def log(
        self, addresses: Addresses, tail: int | None = None, follow_from: int | None = None
    ) -> tuple[str, int] | None:
        """Output of the job, and the byte at which the rest begins (vast/host/__main__.py); None: no answer, or no log yet."""
        options = [("--tail", tail), ("--follow-from", follow_from)]
        words = [word for name, value in options if value is not None for word in (name, str(value))]
        reply = self._run(self._reach(addresses), "log", *words)
        answer = (host_reports.parse(reply.out) if reply.good else None) or {}
        text, following = answer.get("text"), host_reports.count(answer.get("next"))
        return None if following is None or not isinstance(text, str) else (text, following)

    def _run(
        self, address: Address | None, *words: str, stdin: bytes = b"", timeout: Seconds = COMMAND, pace: Pace = FREELY
    ) -> Reply:
        """address: of our machine; None: it was not reached."""
        if address is None:
            return Reply("unreachable")
        reply = self.transport.run(address, self._argv(*words), stdin=stdin, timeout=timeout, pace=pace)
        if not reply.good:
            # Its error may quote its standard input.
            log.warning("%s: %s", words[0], "failed" if stdin else reply.reason)
        if reply.kind != "ok":
            self._proven = None
        return reply

    def _argv(self, action: str, *words: str) -> tuple[str, ...]:
        return (*self.program, action, "--root", self.root, *words)

    # ---- to the host

    def _send_inputs(self, address: Address, proceed: Proceed) -> bool | None:
        boot = None if self._proven is None else self._proven[2]
        if boot is not None and boot == self._sent:
            return True
        try:
            for one in (*self.inputs, push.of_complete(self.copy)):
                root = f"{self.root}/{one.to}" if one.to else self.root
                done = self._send(address, one.source, one.files(), root, proceed)
                if done is not True:
                    return done
        except (UserError, OSError) as error:
            log.error("the inputs of the stage: %s", error)
            return False
        self._sent = boot
        return True

    def push(self, addresses: Addresses, proceed: Proceed = always) -> bool | None:
        """True also if there is nothing here to go on with: then the job begins anew."""
        address = self._reach(addresses)
        if address is None:
            return None
        try:
            paths = push.of_run(self.copy)
            if paths is None:
                log.warning("nothing is pushed: no whole checkpoint of an unfinished run is here")
                return True
            return self._send(address, self.copy.runs_dir, paths, self.root, proceed)
        except OSError as error:
            log.error("push: %s", error)
            return False

    def _send(self, address: Address, source: Path, paths: Sequence[str], root: str, proceed: Proceed) -> bool | None:
        done = push.send(self.transport, address, source, paths, root, self._pace(address, proceed))
        if done is None:
            self._proven = None
        return done

    # ---- from the host

    def pull(self, addresses: Addresses, everything: bool, proceed: Proceed = always) -> Pulled | None:
        """None: no answer. The next pull continues an incomplete one."""
        address = self._reach(addresses)
        if address is None:
            return None

        def going() -> bool:
            return proceed() and free_bytes(self.copy.runs_dir) >= LEAST

        def fetch(paths: Sequence[str], size: int) -> Reply:
            limit, pace = push.time_for(size), self._pace(address, going)
            return self.transport.fetch(address, paths, self.root, self.copy.staging, timeout=limit, pace=pace)

        came, copy, done, pulled = 0, self.copy, False, Pulled(False)
        for _ in range(MOST_RUNS):
            listed = self._listing(address, everything, proceed)
            if not isinstance(listed, Listing):
                return listed
            pulled = pull(copy, listed, fetch)
            came, done = came + pulled.bytes, listed.done
            if pulled.message:
                log.warning("pull: %s", pulled.message)
            if not pulled.verified:
                return replace(pulled, bytes=came)
            if not listed.more or listed.run not in copy.complete_runs():
                break
        if copy.campaign is not None:
            pulled = replace(pulled, complete=done and copy.is_complete(), bytes=came)
        return pulled

    def _listing(self, address: Address, everything: bool, proceed: Proceed) -> Listing | Pulled | None:
        """Of the run that the job writes; of a campaign first of those that are complete there and not here. None: no answer."""
        have = self.copy.newest()
        words = [*(["--everything"] if everything else []), *([] if have is None else ["--have", have])]
        words += [word for run in self.copy.complete_runs() for word in ("--done", run)]
        reply = self._run(address, "files", *words, timeout=HASH, pace=self._pace(address, proceed))
        if reply.kind != "ok":
            return None
        if not reply.good:
            return Pulled(False, message=reply.reason)
        shared = None if self.copy.campaign is None else list_of(self.copy.campaign)
        try:
            return Listing(host_reports.parse(reply.out), self.copy.name, shared, self.copy.stage)
        except ListingRefused as error:
            log.warning("pull: %s", error)
            return Pulled(False, message=str(error))

    def network_is_up(self) -> bool:
        """False also where ssh cannot be started here: then no host is judged by its silence."""
        return not self._not_run and self.network()


def _cause(address: Address, reply: Reply) -> str:
    """Why nothing came of a probe, on one printable line: the address, what it means, and the words of ssh."""
    at = f"{address.host}:{address.port}" if address.port else address.host  # a container has none
    return host_reports.word(f"{at} {MEANINGS.get(reply.kind, 'cannot be reached')} ({reply.reason})") or ""
