"""The account's key: where it comes from, and how it stays out of all that is written.

The order is that of the official client: $VAST_API_KEY, $XDG_CONFIG_HOME/vastai/vast_api_key, ~/.vast_api_key. There is no
option of the command line for it: arguments can be seen in `ps`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from jobs.errors import UserError

HIDDEN = "***"
REMEDY = "set VAST_API_KEY, or save the key of https://cloud.vast.ai/manage-keys/ in ~/.config/vastai/vast_api_key"


class AccountKeyError(UserError):
    """There is no key, or what is there cannot be one. The message never holds the value."""


class Secret:
    """A string that shows itself only to `reveal`: not to print, format, json, pickle, copy or a debugger's repr."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        """Call it inside the expression that needs the value: a local variable can end up in a traceback."""
        return self.__value

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return HIDDEN

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled: pass it in memory")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self  # so that dataclasses.asdict and replace work on what holds one


class Redactor:
    """Takes secrets out of text. It learns more of them on the way: an instance's key, a registry's password."""

    def __init__(self, *secrets: Secret) -> None:
        self._forms: list[Secret] = []
        for secret in secrets:
            self.learn(secret)

    def learn(self, secret: Secret) -> None:
        """From now on; also as it stands in a URL and in JSON. Less than 4 characters would blot out ordinary words."""
        known = {form.reveal() for form in self._forms}
        forms = {secret.reveal(), quote(secret.reveal(), safe="", errors="replace"), json.dumps(secret.reveal())[1:-1]}
        self._forms += [Secret(form) for form in forms if len(form) >= 4 and form not in known]
        self._forms.sort(key=lambda form: -len(form.reveal()))  # the whole before a part of it

    def learn_login(self, login: Secret) -> None:
        """A registry's login as `docker login` takes it: "-u NAME -p PASSWORD HOST"; the password also by itself."""
        self.learn(login)
        try:
            words = shlex.split(login.reveal())
        except ValueError:  # an open quote
            words = login.reveal().split()
        for before, word in pairwise(words):
            if before in ("-p", "--password"):
                self.learn(Secret(word))
        for word in words:
            if word.startswith(("--password=", "-p=")):
                self.learn(Secret(word.partition("=")[2]))

    def holds(self, text: str) -> bool:
        """Whether `text` holds a secret that is known."""
        return any(form.reveal() in text for form in self._forms)

    def __call__(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form.reveal(), HIDDEN)
        return text


def places(environ: Mapping[str, str], home: Path) -> tuple[Path, Path]:
    """The files that may hold the key, in order."""
    config = environ.get("XDG_CONFIG_HOME") or str(home / ".config")
    return Path(config) / "vastai" / "vast_api_key", home / ".vast_api_key"


def find_key(environ: Mapping[str, str], home: Path) -> Secret:
    """The key, from the first place that has one. Raises AccountKeyError."""
    if environ.get("VAST_API_KEY"):
        return _checked("VAST_API_KEY", Secret(environ["VAST_API_KEY"]))
    files = places(environ, home)
    for path in files:
        try:
            text = Secret(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except UnicodeDecodeError:
            raise AccountKeyError(path, "holds bytes that are no text", REMEDY) from None
        except OSError as error:
            raise AccountKeyError(path, f"cannot be read: {error.strerror}", REMEDY) from None
        if text.reveal().strip():
            return _checked(str(path), text)
    tried = ", ".join(str(path) for path in files)
    raise AccountKeyError("Vast.ai", f"no key of the account in $VAST_API_KEY, {tried}", REMEDY)


def _checked(where: str, found: Secret) -> Secret:
    """Without blanks around it. A line break inside would make the HTTP library raise with the key in its message."""
    key = Secret(found.reveal().strip())
    if not key.reveal() or not all("!" <= character <= "~" for character in key.reveal()):
        raise AccountKeyError(where, "holds blanks, line breaks or letters outside ASCII, so it is no key", REMEDY)
    return key
