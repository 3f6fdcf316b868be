"""The market as one account sees it: an answer for another account counts as no answer."""

from typing import Any, cast

from jobs.errors import RunStateError
from vast.ports import Account, Cloud
from vast.records.run_dir import Folder


class AccountGuard:
    """vast.ports.Cloud around another one: only the answer of `account` is changed.

    Another account lists none of the run's machines, which would look like a proof that they are gone.
    """

    def __init__(self, cloud: Cloud, expected: int | None) -> None:
        """expected: the account of the run; None for a market without account numbers."""
        self._cloud, self._expected = cloud, expected

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cloud, name)

    def account(self) -> Account | None:
        found = self._cloud.account()
        return None if found is None or found.id != self._expected else found


def guarded(cloud: Cloud, expected: int, folder: Folder) -> Cloud:
    """`cloud` for that account alone. No answer is no reason to refuse.

    Raises RunStateError if the key is of another account than the run's. An answer without a number is none: its machine must
    still be destroyed, and nothing is proven by it.
    """
    found = cloud.account()
    if found is not None and found.id not in (None, expected):
        fact = f"was begun with account {expected}, and this key is of account {found.id}"
        raise RunStateError(folder.path, fact, "set VAST_API_KEY to the key of the first account")
    return cast(Cloud, AccountGuard(cloud, expected))
