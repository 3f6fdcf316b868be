"""The loop: poll, decide, journal the intent, act, journal the result, advance. All judgement is in vast/supervisor/decide.py.

The supervisor may die between any two lines of this file, and is then restored from the end of its journal.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace

from vast.policy import Policy
from vast.ports import GONE, Clock, Cloud, Contract, Offer, Seconds, Shell, Status, label_text
from vast.supervisor.advance import advance
from vast.supervisor.clocks import corrected, jumped, missed_by_us, put_back
from vast.supervisor.decide import decide, transfer_proceeds
from vast.supervisor.journal import Journal, Last, RunClock
from vast.supervisor.reasons import REASONS
from vast.supervisor.state import Action, Do, Observation, Phase, Plan, Result, RunState, begin, changed, with_zero

SHORTEST_WAIT = 1.0  # seconds: rounding must not make the loop spin
PURE = frozenset({Do.LOOK, Do.WAIT, Do.VERDICT, Do.PROCEED, Do.CLOSE})  # what acts on nothing outside
UNSEEN = Observation(0.0)  # nothing was polled; each step puts its time in
MOST_ACTS = 32  # between two sleeps: no policy can make the loop call the market without a pause

CLOSED = "closed"  # the notification at the end of every run
Tell = Callable[[str, RunState], None]  # an alert, a verdict's reason, or CLOSED; never a secret
OnLook = Callable[[Observation, RunState], None]  # after each poll, with the state that it changed


@dataclass(eq=False)
class Supervisor:
    """One run. Raises Superseded when another supervisor took it over; a network failure raises nothing."""

    plan: Plan
    policy: Policy
    cloud: Cloud
    shell: Shell
    clock: Clock
    journal: Journal
    _: KW_ONLY
    # For a label and an offer, whose price the dead-man's switch needs. The Contract may hold the registry's login, so it is made
    # when needed and never journalled.
    contract: Callable[[str, Offer], Contract]
    last: InitVar[Last | None] = None
    asked: Callable[[], bool] = lambda: False  # whether a person wants the run to end
    tell: Tell = lambda what, state: None  # may be called twice with the same word, after a crash
    on_look: OnLook = lambda seen, state: None
    state: RunState = field(init=False)
    _seen: Observation = field(default=UNSEEN, init=False)
    _acts: int = field(default=0, init=False)
    _differs_since: Seconds | None = field(default=None, init=False)  # the service's clock, from the run's

    def __post_init__(self, last: Last | None) -> None:
        self.run_clock = RunClock(self.clock, None if last is None else last.stamp)
        if last is None:
            here = self.shell.local_copy()  # an earlier run of this job may have left a checkpoint
            home = None if here is None else here.checkpoint
            self.state = changed(begin(self.plan, self.clock.now()), home=home)
            self.journal.write(self.state, self.run_clock.stamp(), plan=self.plan)
        else:
            self.state = self._resumed(last)

    def run(self) -> RunState:
        while self.state.phase is not Phase.CLOSED:
            self.step()
        return self.state

    def step(self) -> None:
        """Poll if it is due, then do one thing: act, change the phase, or sleep."""
        t = self.run_clock.t()
        if t >= self.state.look_at:
            settled = self.state.settled
            self._seen = self._look(t)
            t = self._seen.t
            self._advance(Action(Do.LOOK, t), self._seen)
            if self.state.settled != settled:  # after a crash, a machine that is proven gone must not cost on
                self.journal.write(self.state, self.run_clock.stamp())
            self.on_look(self._seen, self.state)
        else:
            self._seen = changed(self._seen, t=t, asked=self.asked())
        action = decide(self._seen, self.state, self.policy)
        self._acts += 1
        if action.do is Do.WAIT or self._acts > MOST_ACTS:
            until = action.until if action.do is Do.WAIT else t + self.policy.cadence.urgent
            self._acts = 0
            self._seen = UNSEEN  # after a sleep the last poll is old
            self.clock.sleep(max(SHORTEST_WAIT, until - self.run_clock.t()))
            return
        self.journal.check()
        if action.do in PURE:
            self._advance(action, None)
        else:
            action = changed(action, t=self.run_clock.t())  # the poll that it follows from may have taken minutes
            self.journal.write(self.state, self.run_clock.stamp(), action)
            result = self._act(action)
            self._advance(changed(action, ended=self.run_clock.t()), result)
            if result is None or result is False:
                self._seen = UNSEEN  # the act failed although the poll allowed it: poll again first
        self.journal.write(self.state, self.run_clock.stamp())
        if self.state.phase is Phase.CLOSED:
            self.tell(CLOSED, self.state)

    def _resumed(self, last: Last) -> RunState:
        """An act without a result in the journal lost its answer. The next thing is a poll."""
        state = last.state
        if last.pending is not None:
            # Only a pull can be checked, on the disk of this machine: a complete copy proves that it succeeded.
            here = self.shell.local_copy() if last.pending.do is Do.PULL else None
            answer = here if here is not None and here.complete else None
            state = advance(state, last.pending, answer, self.policy)
        state = self._unwatched(state)
        if self.run_clock.rebooted:
            before = last.stamp.t if state.before_reboot is None else state.before_reboot
            state = jumped(changed(state, before_reboot=before), self.run_clock.t())
        self.journal.write(state, self.run_clock.stamp())
        return state

    def _unwatched(self, state: RunState) -> RunState:
        """After a time in which nothing was polled: deadlines restart, and an answer that we lost is no fault of the host."""
        state = changed(state, look_at=0.0, waits_from=self.run_clock.t(), unlisted_since=None, unsearched_since=None)
        if state.machine is not None and not state.machine.starts:
            state = changed(state, machine=changed(state.machine, ran_at=None, burn_in_lost=0))
        return state

    def _advance(self, action: Action, result: Result) -> None:
        """Tell what is new before it is journalled: after a crash in between it is told twice, and never not at all."""
        before = self.state
        self.state = advance(before, action, result, self.policy)
        new = [alert for alert in self.state.alerts if alert not in before.alerts]
        reason = action.why if action.do is Do.VERDICT else self.state.verdict
        if reason is not None and (action.do is Do.VERDICT or reason != before.verdict) and REASONS[reason].alert:
            new.append(reason)
        for what in new:
            self.tell(what, self.state)

    # ---- polling: reads only ---------------------------------------------------------------------------------------

    def _look(self, t: Seconds) -> Observation:
        account = self.cloud.account()
        if account is not None and account.at is not None:
            t = self._on_time(t, account.at)
        state, machine = self.state, self.state.machine
        instances = self.cloud.instances() if account is not None else None
        listed = {one.id: one for one in instances or ()}
        single = []
        if account is not None:
            single = [(one, self.cloud.instance(one)) for one in state.ids() if one not in listed]
        host = None
        if machine is not None and machine.ran_at is not None:
            host = self.shell.probe(machine.addresses) if machine.addresses else None
        elif machine is not None and (found := listed.get(machine.id)) is not None and found.status is Status.RUNNING:
            host = self.shell.probe(found.addresses) if found.addresses else None
        reached = host is not None and host.contact == "ok"
        gone = [one for one in state.doomed if one.accepted and (one.id, GONE) in single]
        # the market shows it as gone, and it answers over ssh
        answered = tuple(one.id for one in gone if one.addresses and self.shell.probe(one.addresses).contact == "ok")
        network = reached or (account is not None and host is None) or self.shell.network_is_up()
        ended = self.run_clock.t()
        return Observation(t, True, self.asked(), account, instances, tuple(single), host, answered, network, ended)

    def _on_time(self, t: Seconds, at: Seconds) -> Seconds:
        """`t`, moved if the service's clock, which shows `at`, is believed: vast/supervisor/clocks.py."""
        state = self.state
        since = t if self._differs_since is None else self._differs_since

        def missed() -> Seconds | None:
            if state.machine is None or not state.machine.addresses:
                return None
            host = self.shell.probe(state.machine.addresses)
            return missed_by_us(state, host, self.run_clock.t())

        found = corrected(state, t, at, self.clock.now(), since, missed, self.policy)
        self._differs_since = since if found.differs else None
        if found.move < 0:
            state = put_back(state, found.move)
        state = changed(state, before_reboot=None)
        if found.move:
            self.run_clock.move_on(found.move)
            state = jumped(self._unwatched(state), self.run_clock.t())
        self.state = with_zero(state, at - t) if found.zero else state
        return t + found.move

    # ---- acting ------------------------------------------------------------------------------------------------------

    def _act(self, action: Action) -> Result:
        machine = self.state.machine
        addresses = () if machine is None else machine.addresses
        match action.do:
            case Do.SEARCH:
                banned = frozenset({*self.state.banned, *self.policy.market.banned_machines})
                return self.cloud.search(replace(self.plan.query, banned_machines=banned))
            case Do.CREATE:
                assert action.offer is not None
                return self.cloud.create(action.offer.id, self.contract(self.label, action.offer))
            case Do.DESTROY:
                return self.cloud.destroy(action.instance_id)
            case Do.ATTACH_KEY:
                return self.cloud.attach_key(action.instance_id, self.plan.public_key)
            case Do.RELABEL:
                return self.cloud.set_label(action.instance_id, self.label)
            case Do.BURN_IN:
                return self.shell.burn_in(addresses, self.policy.burn_in.seconds)
            case Do.PUSH:
                return self.shell.push(addresses, self.transfer_proceeds)
            case Do.START:
                return self.shell.start(addresses, self.plan.command, self.state.home, self.transfer_proceeds)
            case Do.STOP:
                return self.shell.stop(addresses)
            case Do.RENEW:
                return self.shell.renew_lease(addresses, action.until)
            case Do.PULL:
                began = self.run_clock.t()
                return self.shell.pull(addresses, action.everything, lambda: self.transfer_proceeds(began))
        raise AssertionError(action.do)

    def transfer_proceeds(self, pull_began: Seconds | None = None) -> bool:
        """Called during a transfer, which may take hours; the shell renews the lease meanwhile."""
        t = self.run_clock.t()
        pulled_for = 0.0 if pull_began is None else t - pull_began
        return transfer_proceeds(t, self.asked(), self.state, self.policy, pulled_for)

    @property
    def label(self) -> str:
        return label_text(self.state.run_id, self.state.deadline)
