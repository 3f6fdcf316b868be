"""Secrets that redact themselves, and text made safe to print."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from typing import NoReturn
from urllib.parse import quote

HIDDEN = "***"


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


def printable(words: str) -> str:
    """On one line: JSON can carry line breaks, escape sequences of terminals, and lone surrogates that no file takes."""
    return "".join(character if character.isprintable() else " " for character in words)
