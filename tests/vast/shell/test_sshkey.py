"""The key pair of a run, made by the real ssh-keygen."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from vast.shell.sshkey import SshKeyError, make_key, public_key


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
    (tmp_path / "key").write_text("no key\n")
    with pytest.raises(SshKeyError, match="ssh-keygen failed"):
        public_key(tmp_path / "key")
