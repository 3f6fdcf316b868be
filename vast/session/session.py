"""One supervisor of one run: connects journal, loop, view, hooks, signals and requests of a person.

The process may be killed at any line: the next `supervise` continues at the end of the journal.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import cast

from jobs import errors
from jobs.errors import DiskFull, RunStateError, UserError
from jobs.runs.atomic import write_text_atomically
from vast.policy import Event, Policy
from vast.ports import Clock, Cloud, Contract, Host, Offer, Pulled, Shell
from vast.records import report
from vast.records.run_dir import Folder
from vast.rental.onstart import Switch, onstart
from vast.secrets import Redactor, Secret
from vast.session import notify
from vast.session.clock import WakingClock
from vast.session.guards import AccountGuard, RedactedShell
from vast.session.notify import Notifier
from vast.session.view import View, line_of, warnings_shown
from vast.supervisor.journal import FileJournal, MemoryJournal, Superseded, records
from vast.supervisor.loop import CLOSED, Supervisor
from vast.supervisor.reasons import REASONS, SUCCESS
from vast.supervisor.schedule import ALERTS
from vast.supervisor.state import Observation, Plan, RunState, left

ABOUT_CONTACT = frozenset({"unreachable", "key-denied", "ssh", "host-lost", "away"})


@dataclass
class Session:
    """Everything one supervisor uses. `login` and the instance keys are never logged or stored."""

    folder: Folder
    policy: Policy
    cloud: Cloud
    shell: Shell
    clock: Clock
    view: View
    redact: Redactor
    notifier: Notifier
    url: str  # of the marketplace's API, for the dead-man's switch
    login: Secret | None = None
    first_process: Callable[[Switch], str] = onstart  # starts the dead-man's switch; vast/local has its own
    asked: Callable[[], bool] = lambda: False  # a signal
    ending: bool = False  # `vast down`: the end is asked for from the start, and a full disk does not prevent it
    supervisor: Supervisor | None = field(default=None, init=False)
    _contact: str = field(default="", init=False)  # why the last poll did not reach the host; "": it did

    def supervise(self, plan: Plan | None = None, begun: Callable[[], None] = lambda: None) -> RunState:
        """Supervise the run to its end. `plan`: for a new run; `begun` is called once the journal is locked and started.

        Raises RunStateError if another supervisor holds the run or took it over, or if there is no run to continue.
        """
        journal, no_record = self._journal()
        try:
            last = self.folder.last()
            chosen = plan if last is None else last.plan
            if chosen is None:
                raise self.folder.never_begun()
            cloud = self.cloud
            if chosen.account is not None:
                cloud = cast(Cloud, AccountGuard(cloud, chosen.account, self.folder))
            make = partial(
                Supervisor, chosen, self.policy, cloud, cast(Shell, RedactedShell(self.shell, self.redact)),
                WakingClock(self.clock, self._asked, self._serve_pull),
                last=last, contract=self._contract, asked=self._asked, tell=self._notify, on_look=self._on_look,
            )  # fmt: skip
            try:
                self.supervisor = make(journal)
            except (DiskFull, OSError) as error:
                if not self.ending:
                    raise
                self.supervisor, no_record = make(MemoryJournal(self.folder.path, held=True)), _reason(error)
            begun()
            with warnings_shown(self.say):
                with self.view:
                    state, lost = self._run(self.supervisor)
                no_record = no_record or lost
                self._finish(state, keep=no_record is None)
            if no_record is not None:
                fact = f"no record can be written ({no_record}), so the run was ended and its machine destroyed"
                remedy = f"make room; then close it: python -m vast down {self.folder.run_id}"
                raise DiskFull(self.folder.path, fact, remedy)
            return state
        except Superseded as error:
            remedy = f"follow it: python -m vast attach {self.folder.run_id}"
            raise RunStateError(self.folder.path, "another supervisor took this run over", remedy) from error
        except UserError:
            raise
        except Exception as error:  # a bug: notify, since a machine may still run
            if self.supervisor is not None:
                self._call_hook("alert", f"supervisor: {type(error).__name__}", self.supervisor.state)
            raise
        finally:
            journal.close()

    def machine_id(self) -> int | None:
        machine = None if self.supervisor is None else self.supervisor.state.machine
        return None if machine is None else machine.id

    def _journal(self) -> tuple[FileJournal, str | None]:
        """The journal, and why it is not on the disk: for `vast down` that is no reason to leave a machine alive.

        Raises RunStateError, DiskFull.
        """
        try:
            return FileJournal(self.folder.path), None
        except (UserError, OSError) as error:
            if self.ending:
                return MemoryJournal(self.folder.path), _reason(error)
            if isinstance(error, UserError) and not isinstance(error, DiskFull):
                raise
            remedy = f"make room; or end the run, which needs none: python -m vast down {self.folder.run_id}"
            raise DiskFull(self.folder.path, f"its journal cannot be written ({_reason(error)})", remedy) from None

    def _run(self, supervisor: Supervisor) -> tuple[RunState, str | None]:
        """The run to its end. If no record can be written any more, the run is ended from memory: then also the reason."""
        try:
            return supervisor.run(), None
        except (DiskFull, OSError) as error:
            reason = _reason(error)
        self.ending = True
        supervisor.journal = MemoryJournal(self.folder.path, held=True)
        self.say(f"alert: local-disk-full: the journal cannot be written ({reason}); the run is ended from memory")
        self._call_hook("alert", "local-disk-full", supervisor.state)
        return supervisor.run(), reason

    # ---- callbacks of the supervisor

    def _asked(self) -> bool:
        """A request by signal is stored on disk, so that it survives this process."""
        if self.ending or self.folder.down.exists():
            return True
        if self.asked():
            self.ending = True
            with suppress(UserError, OSError):  # a full disk must not keep a machine alive
                self.folder.ask(self.folder.down, "a signal")
        return self.ending

    def _contract(self, label: str, offer: Offer) -> Contract:
        assert self.supervisor is not None
        plan, bounds = self.supervisor.plan, self.policy.watchdog
        dollars, seconds = left(self.supervisor.state, self.supervisor.run_clock.t())
        switch = Switch(
            run_id=plan.run_id,
            nonce=self.folder.nonce(),
            hard=seconds + 60 * bounds.slack_minutes,
            silent=bounds.silent,
            grace=bounds.grace,
            max_dollars=dollars,
            dollars_per_hour=offer.dollars_per_hour if plan.bid is None else plan.bid,
            url=self.url,
        )
        return Contract(
            label, plan.image, plan.query.disk_gb, self.first_process(switch), bid=plan.bid,
            registry_login=None if self.login is None else self.login.reveal(),
        )  # fmt: skip

    # ---- output

    def _on_look(self, seen: Observation, state: RunState) -> None:
        assert self.supervisor is not None
        line = line_of(seen, state, self.clock.now())
        with suppress(OSError), self.folder.lines.open("a", encoding="utf-8") as file:  # a full disk ends no run
            file.write(f"{line}\n")
        self._show(lambda: self.view.look(line))
        if state.machine is not None and (not state.machine.denied or "key-denied" in state.alerts):
            self._show_contact(seen.host)

    def _show_contact(self, host: Host | None) -> None:
        """Why the host cannot be used, such as ssh's own message or another host key: once for each new reason."""
        if host is None:
            return
        reason = "" if host.contact == "ok" else f"{host.contact}: {host.message or 'no reason given'}"
        if reason and reason != self._contact:
            self.say(f"host {reason}")
        self._contact = reason

    def _notify(self, what: str, state: RunState) -> None:
        if what == CLOSED:
            return  # _finish notifies, after the report is written
        verdict = f"verdict: {what}: "  # with the host's own message
        notes = (note for _, note in reversed(state.history) if note.startswith(verdict))
        message = next(notes, "").removeprefix(verdict)
        meaning = ALERTS.get(what) or REASONS[what].meaning
        if what in ABOUT_CONTACT and not message:
            message = self._contact
        maker = "the engine" if self.folder.local.exists() else "the market"
        source = maker if what == "refused" else "the host"
        self.say(f"alert: {what}: {meaning}" + (f"; {source}: {message}" if message else ""))
        self._call_hook("alert", what, state)

    def _call_hook(self, event: Event, why: str, state: RunState) -> None:
        assert self.supervisor is not None
        self.notifier(event, notify.message(event, why, state, self.supervisor.run_clock.t()))

    def say(self, text: str) -> None:
        when = datetime.fromtimestamp(self.clock.now(), UTC)
        self._show(lambda: self.view.say(f"[{when:%Y-%m-%dT%H:%M:%SZ}] {self.redact(text)}"))

    def _show(self, show: Callable[[], None]) -> None:
        with suppress(OSError, ValueError):  # the terminal was closed, or does not know a letter
            show()

    def _serve_pull(self) -> None:
        """`vast pull` while a supervisor runs: it fetches, since only one process may write the local copy."""
        if not self.folder.pull.exists():
            return
        supervisor = self.supervisor
        assert supervisor is not None
        machine = supervisor.state.machine
        with suppress(OSError):
            self.folder.pull.unlink()
        if machine is None or not machine.starts or not machine.addresses:
            return self.say("pull: no host has anything to fetch")
        supervisor.journal.check()
        got = self.shell.pull(machine.addresses, everything=False, proceed=supervisor.transfer_proceeds)
        self.say(f"pull: {'the host does not answer' if got is None else pull_outcome(got)}")

    def _finish(self, state: RunState, keep: bool) -> None:
        """Write the report and call the hook, both at least once: report.json is written last and marks the end.

        keep: whether the journal on disk has the end, so that a report can be made from it.
        """
        if not keep:
            return self._call_hook("fail", "local-disk-full", state)
        run_report = report.RunReport(list(records(self.folder.path)), self.folder.request())
        self._call_hook("done" if state.result == SUCCESS else "fail", str(state.result), state)
        write_text_atomically(self.folder.report_text, self.redact(report.text(run_report)))
        plain = json.dumps(vars(run_report), indent=2, default=asdict)
        write_text_atomically(self.folder.report, self.redact(plain + "\n"))


def _reason(error: Exception) -> str:
    return error.fact if isinstance(error, UserError) else getattr(error, "strerror", None) or type(error).__name__


def pull_outcome(got: Pulled) -> str:
    return (
        f"{got.bytes / 1e6:.1f} MB fetched and verified{got.message and f'; {got.message}'}"
        if got.verified
        else f"not whole: {got.message or 'try again'}"
    )


def exit_code(state: RunState) -> int:
    reason = REASONS.get(str(state.result))  # None: of another version's journal
    return errors.EXIT_BUG if reason is None else reason.exit_code
