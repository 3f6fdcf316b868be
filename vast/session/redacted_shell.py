"""A redacting shell: text from a host goes into the journal, lines and reports, so secrets are removed from it first."""

from dataclasses import replace

from vast.ports import Address, BurnIn, Host, Seconds, Shell
from vast.secrets import Redactor


class RedactedShell:
    """vast.ports.Shell around another one: only the texts of `probe` and `burn_in` are changed."""

    def __init__(self, shell: Shell, redact: Redactor) -> None:
        self._shell, self._redact = shell, redact
        self.start, self.push, self.stop, self.pull = shell.start, shell.push, shell.stop, shell.pull
        self.renew_lease, self.local_copy, self.network_is_up = shell.renew_lease, shell.local_copy, shell.network_is_up

    def burn_in(self, addresses: tuple[Address, ...], seconds: Seconds) -> BurnIn | None:
        found = self._shell.burn_in(addresses, seconds)
        return None if found is None else replace(found, problems=tuple(map(self._redact, found.problems)))

    def probe(self, addresses: tuple[Address, ...]) -> Host:
        found = self._shell.probe(addresses)
        job = found.job
        if job is not None:
            job = replace(job, fixes=tuple(map(self._redact, job.fixes)))
        fault = None if found.gpu_fault is None else self._redact(found.gpu_fault)
        return replace(found, job=job, gpu_fault=fault, message=self._redact(found.message))
