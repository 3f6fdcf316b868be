"""The key pair of a run, made by the real ssh-keygen."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.vast.fakes.host import until
from vast.shell.keys import SshKeyError, adopt, keys, make_key, public_key, require_usable


def test_a_run_has_a_key_of_its_own_made_once(tmp_path: Path) -> None:
    text = make_key(tmp_path)
    assert text.startswith("ssh-ed25519 ") and text.endswith(f" prefill {tmp_path.name}")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert make_key(tmp_path) == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub"]
    (tmp_path / "key.pub").unlink()
    assert make_key(tmp_path).split()[:2] == text.split()[:2], "what is lost is read from the key itself"


def test_a_key_that_cannot_work_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SshKeyError, match="no such private key"):
        public_key(tmp_path / "none")
    make_key(tmp_path)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(SshKeyError, match=r"others may read it, and ssh refuses such a key; chmod 600"):
        public_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key.pub").write_text("two\nlines\n")
    with pytest.raises(SshKeyError, match="is no public key"):
        public_key(tmp_path / "key")
    (tmp_path / "key.pub").unlink()
    (tmp_path / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(SshKeyError, match="ssh-keygen failed"):
        public_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("text", "fact"),
    [("root:x:0:0\n", "is no private key"), ("ssh-ed25519 AAAA me\n", "is a public key; give the private")],
)
def test_the_error_for_a_file_that_is_no_private_key_does_not_mention_its_mode(
    tmp_path: Path, text: str, fact: str
) -> None:
    path = tmp_path / "id.pub"
    path.write_text(text)
    path.chmod(0o644)
    with pytest.raises(SshKeyError, match=fact):
        public_key(path)


def test_a_key_with_a_passphrase_needs_an_agent_that_holds_it(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a phrase", "-f", str(key)], check=True, timeout=30)
    environ = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    with pytest.raises(SshKeyError, match="has a passphrase, and no agent runs; start one and: ssh-add"):
        require_usable(key, environ)
    environ["SSH_AUTH_SOCK"] = str(tmp_path / "agent")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", environ["SSH_AUTH_SOCK"]], stdout=subprocess.DEVNULL)
    try:
        until(lambda: (tmp_path / "agent").exists(), "the agent")
        with pytest.raises(SshKeyError, match="no agent holds it"):
            require_usable(key, environ)
        asks = tmp_path / "asks"
        asks.write_text("#!/bin/sh\necho a phrase\n")
        asks.chmod(0o700)
        given = environ | {"SSH_ASKPASS": str(asks), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
        subprocess.run(["ssh-add", "-q", str(key)], env=given, check=True, timeout=30)
        require_usable(key, environ)
    finally:
        agent.terminate()
        agent.wait(timeout=10)


def test_a_key_without_a_passphrase_needs_no_agent(tmp_path: Path) -> None:
    make_key(tmp_path)
    require_usable(tmp_path / "key", {"PATH": os.environ["PATH"]})


@pytest.mark.parametrize("damaged", [b"", b"other ssh-ed25519 AAAA", b"\xff\x00{"])
def test_a_host_key_is_pinned_once_in_a_file_that_was_torn_too(tmp_path: Path, damaged: bytes) -> None:
    """Never pinned, it was written again at every poll, and any other key would have passed."""
    pinned, candidates = tmp_path / "known_hosts", tmp_path / "candidates"
    pinned.write_bytes(damaged)
    candidates.write_text("host ssh-ed25519 BBBB\n")
    for _ in range(2):
        adopt(pinned, candidates, "host")
        assert keys(pinned, "host") == ["host ssh-ed25519 BBBB"]
    assert len(pinned.read_text().splitlines()) == 1 + bool(damaged)
