"""A shell whose answers hold no secret: what a host says in its own words goes into the journal, into lines and reports."""

from __future__ import annotations

from dataclasses import replace

from vast.ports import Address, Host, Pulled, Seconds, Shell
from vast.secrets import Redactor


class Hushed:
    """vast.ports.Shell over another one."""

    def __init__(self, shell: Shell, redact: Redactor) -> None:
        self._shell, self._redact = shell, redact

    def look(self, addresses: tuple[Address, ...]) -> Host:
        found = self._shell.look(addresses)
        job = found.job
        if job is not None:
            job = replace(job, fixes=tuple(map(self._redact, job.fixes)))
        fault = None if found.gpu_fault is None else self._redact(found.gpu_fault)
        return replace(found, job=job, gpu_fault=fault, message=self._redact(found.message))

    def start(self, addresses: tuple[Address, ...], command: tuple[str, ...], home: str | None = None) -> bool | None:
        return self._shell.start(addresses, command, home)

    def push(self, addresses: tuple[Address, ...]) -> bool | None:
        return self._shell.push(addresses)

    def stop(self, addresses: tuple[Address, ...]) -> bool | None:
        return self._shell.stop(addresses)

    def renew_lease(self, addresses: tuple[Address, ...], until_deadline: Seconds) -> bool | None:
        return self._shell.renew_lease(addresses, until_deadline)

    def pull(self, addresses: tuple[Address, ...], everything: bool) -> Pulled | None:
        return self._shell.pull(addresses, everything)

    def home(self) -> Pulled | None:
        return self._shell.home()

    def network_is_up(self) -> bool:
        return self._shell.network_is_up()
