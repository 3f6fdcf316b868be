"""The ports as one run may see them: no answer for another account, and no secret in a host's texts."""

from dataclasses import replace
from typing import Any

from jobs.errors import RunStateError
from vast.ports import Account, Addresses, BurnIn, Cloud, Host, Seconds, Shell
from vast.records.run_dir import Folder
from vast.secrets import Redactor


class AccountGuard:
    """vast.ports.Cloud around another one: only an answer for the account of the run is one.

    Another account lists none of the run's machines, which would look like a proof that they are gone.
    """

    def __init__(self, cloud: Cloud, expected: int, folder: Folder) -> None:
        """Raises RunStateError if the key is of another account. No answer, or one without a number, is no reason to refuse: the
        machine must still be destroyed, and nothing is proven by it."""
        self._cloud, self._expected = cloud, expected
        found = cloud.account()
        if found is not None and found.id not in (None, expected):
            fact = f"was begun with account {expected}, and this key is of account {found.id}"
            raise RunStateError(folder.path, fact, "set VAST_API_KEY to the key of the first account")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cloud, name)

    def account(self) -> Account | None:
        found = self._cloud.account()
        return None if found is None or found.id != self._expected else found


class RedactedShell:
    """vast.ports.Shell around another one: only the texts of `probe` and `burn_in` are changed, which go into the journal,
    lines and reports."""

    def __init__(self, shell: Shell, redact: Redactor) -> None:
        self._shell, self._redact = shell, redact

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shell, name)

    def burn_in(self, addresses: Addresses, seconds: Seconds) -> BurnIn | None:
        found = self._shell.burn_in(addresses, seconds)
        return None if found is None else replace(found, problems=tuple(map(self._redact, found.problems)))

    def probe(self, addresses: Addresses) -> Host:
        found = self._shell.probe(addresses)
        job = found.job
        if job is not None:
            job = replace(job, fixes=tuple(map(self._redact, job.fixes)))
        fault = None if found.gpu_fault is None else self._redact(found.gpu_fault)
        return replace(found, job=job, gpu_fault=fault, message=self._redact(found.message))
