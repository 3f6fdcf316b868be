"""A user's own machines in place of the market: VAST_HOSTS names a hosts.yaml, and every command then uses those machines."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from jobs.errors import ConfigError
from jobs.runs.atomic import io_errors_reported
from vast.commands.wiring import ShellContext, Wiring, over_ssh
from vast.host.subprocess_run import Ended
from vast.marketplace.ssh_hosts import Machine, SshHosts, load
from vast.ports import Address, Clock, Cloud, Seconds
from vast.rental.onstart import Switch, without_market
from vast.secrets import Secret
from vast.shell.hostshell import CODE, HostShell
from vast.shell.ssh import SshTransport

VARIABLE = "VAST_HOSTS"
COMMAND: Seconds = 60.0
HOST = ("python3", "-m", "vast.host")


def with_hosts(wiring: Wiring) -> Wiring:
    """`wiring`, or the one over the machines of $VAST_HOSTS. Raises ConfigError."""
    path = wiring.environ.get(VARIABLE)
    if not path:
        return wiring
    hosts = load(Path(path))
    key = Path(hosts.key).expanduser()
    if not key.is_file():
        raise ConfigError(f"{path}: key", f"no such private key: {key}", "name the one that the machines know")

    def root_of(run_id: str) -> str:
        return f"{hosts.root}/{run_id}"

    def market(environ: Mapping[str, str], home: Path, clock: Clock) -> tuple[Cloud, Secret]:
        directory = home / ".cache" / "prefill" / "hosts"  # of the machines' host keys
        with io_errors_reported(directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        transport = SshTransport(directory, key, pin=lambda: "own", user=hosts.user, environ=environ)

        def ask(machine: Machine, words: tuple[str, ...], stdin: bytes) -> Ended | None:
            address = Address(machine.address, machine.port)
            reply = transport.run(address, ("env", f"--chdir={CODE}", *HOST, *words), stdin=stdin, timeout=COMMAND)
            if reply.kind != "ok":
                return None
            transport.settle(address, True)
            return Ended(reply.code, reply.out, reply.err)

        return SshHosts(hosts, ask, clock), Secret("")

    def shell(context: ShellContext) -> HostShell:
        root = root_of(context.folder.run_id)
        machines = [(one.address, one.port) for one in hosts.machines]
        program = ("env", f"--chdir={CODE}", f"PREFILL_RUNS={root}", *HOST)
        return over_ssh(context, key=key, user=hosts.user, probes=machines, root=root, program=program)

    def switch_of(switch: Switch) -> str:
        return without_market(switch, f"{root_of(switch.run_id)}/.watchdog")

    return replace(wiring, connect=market, shell=shell, root=root_of, first_process=switch_of)
