"""Secrets that redact themselves, and text made safe to print."""

import json
import shlex
from itertools import pairwise, takewhile
from operator import eq
from typing import NoReturn, Self
from urllib.parse import quote

HIDDEN = "***"
LEAST_PART = 8  # characters of a secret that are hidden alone; less occurs in ordinary words


class Secret:
    """A string that only `reveal` returns: print, format, json, pickle, copy and repr hide it."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        """Call it inside the expression that uses the value: a local variable can appear in a traceback."""
        return self.__value

    def hidden_in(self, text: str) -> str:
        """`text` with HIDDEN in place of this, and of half of it and more from its start: texts are cut."""
        whole = len(self.__value)
        least, parts, at = max(LEAST_PART, (whole + 1) // 2), list[str](), 0
        while whole and (begin := text.find(self.__value[:least], at)) >= 0:
            parts += [text[at:begin], HIDDEN]
            alike = map(eq, text[begin : begin + whole], self.__value)
            at = begin + sum(1 for _ in takewhile(bool, alike))
        return "".join([*parts, text[at:]])

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return HIDDEN

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled: pass it in memory")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # so that dataclasses.asdict and replace work


class Redactor:
    """Removes secrets from text. More can be added later: an instance's key, a registry's password."""

    def __init__(self, *secrets: Secret) -> None:
        self._forms: list[Secret] = []
        for secret in secrets:
            self.learn(secret)

    def learn(self, secret: Secret) -> None:
        """Add a secret, also in its URL and JSON forms. Forms below 4 characters are skipped: they occur in ordinary words."""
        known = {form.reveal() for form in self._forms}
        forms = {secret.reveal(), quote(secret.reveal(), safe="", errors="replace"), json.dumps(secret.reveal())[1:-1]}
        self._forms += [Secret(form) for form in forms if len(form) >= 4 and form not in known]
        self._forms.sort(key=lambda form: -len(form.reveal()))  # longest first: one may contain another

    def learn_login(self, login: Secret) -> None:
        """Add a registry's login, "-u NAME -p PASSWORD HOST", and its password alone."""
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
        return any(form.reveal() in text for form in self._forms)

    def __call__(self, text: str) -> str:
        """The text without secrets, whole or cut (`Secret.hidden_in`)."""
        for form in self._forms:
            text = form.hidden_in(text)
        return text


def printable(words: str, keep: str = "") -> str:
    """One printable line: JSON can hold line breaks, terminal escapes and lone surrogates, which files reject.

    keep: characters that stay although they are not printable.
    """
    return "".join(character if character.isprintable() or character in keep else " " for character in words)
