"""The account's key: where it comes from, and how it is kept out of logs and files.

The order is that of the official client: $VAST_API_KEY, $XDG_CONFIG_HOME/vastai/vast_api_key, ~/.vast_api_key. There is no
option of the command line for it: arguments can be seen in `ps`.
"""

from collections.abc import Mapping
from pathlib import Path

from jobs.errors import UserError
from vast.secrets import Secret

REMEDY = "set VAST_API_KEY, or save the key of https://cloud.vast.ai/manage-keys/ in ~/.config/vastai/vast_api_key"


class AccountKeyError(UserError):
    """There is no key, or a malformed one. The message never holds the value."""


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
