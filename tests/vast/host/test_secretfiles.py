"""Secrets lie in memory, for one user; no value is in an environment, an argument, a message or on a disk."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from jobs.errors import RunStateError, UserError
from tests.vast.fakes.rented import Rented
from vast.host import secretfiles

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


def give(machine: Rented, **secrets: str) -> list[str]:
    return list(machine.ask("secrets", "--secrets-dir", str(machine.secrets), stdin=json.dumps(secrets))["secrets"])


def test_each_is_a_file_of_this_user_alone_and_unlisted_ones_go(machine: Rented) -> None:
    assert give(machine, HF_TOKEN=TOKEN, WANDB_API_KEY="w") == ["HF_TOKEN", "WANDB_API_KEY"]
    assert stat.S_IMODE(machine.secrets.stat().st_mode) == 0o700
    assert {path.name: (path.read_text(), stat.S_IMODE(path.stat().st_mode)) for path in machine.secrets.iterdir()} == {
        "HF_TOKEN": (TOKEN, 0o600),
        "WANDB_API_KEY": ("w", 0o600),
    }
    assert give(machine, HF_TOKEN="another") == ["HF_TOKEN"]
    assert [path.read_text() for path in machine.secrets.iterdir()] == ["another"]
    assert give(machine) == [] and not list(machine.secrets.iterdir())


def test_the_job_gets_the_path_of_a_secret_and_never_its_value(machine: Rented) -> None:
    machine.arm()
    give(machine, HF_TOKEN=TOKEN, WANDB_API_KEY="wandb-value-0123456789")
    code = "import os; print({n: v for n, v in os.environ.items() if n[:2] in ('HF', 'WA')}); print(len(open(os.environ['HF_TOKEN_PATH']).read()))"
    machine.start(code, "run", "stage3b")
    assert machine.ended()["end_reason"] == "done"
    assert f"'HF_TOKEN_PATH': '{machine.secrets}/HF_TOKEN'" in machine.log() and f"\n{len(TOKEN)}\n" in machine.log()
    assert f"'WANDB_API_KEY_FILE': '{machine.secrets}/WANDB_API_KEY'" in machine.log()
    for path in machine.root.rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert TOKEN not in text and "wandb-value" not in text, path


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", json.dumps({"hf_token": TOKEN}), json.dumps({"../HF": TOKEN}), json.dumps({"HF_TOKEN": 7}),
     json.dumps({"HF_TOKEN": ""}), json.dumps({"HF_TOKEN": f"{TOKEN}\0"}), '{"HF_TOKEN": "' + TOKEN, '{"' + TOKEN + '": "x"}'],
)  # fmt: skip
def test_a_mistake_is_named_without_the_value(text: str, machine: Rented) -> None:
    done = machine.call("secrets", "--secrets-dir", str(machine.secrets), stdin=text)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: secrets")
    assert TOKEN not in done.stderr and not list(machine.secrets.iterdir())


def test_a_disk_is_no_place_for_them(machine: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert secretfiles.store({"A": "x"}, machine.secrets) == ["A"]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for answer in ("echo ext2/ext3", "exit 1"):
        (tmp_path / "stat").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "stat").chmod(0o755)
        with pytest.raises(RunStateError, match="is on a disk"):
            secretfiles.store({"B": "x"}, machine.secrets)
    assert [path.name for path in machine.secrets.iterdir()] == ["A"]


def test_a_link_that_somebody_else_put_there_is_refused(machine: Rented, tmp_path: Path) -> None:
    (machine.secrets / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(RunStateError, match="not a directory of this user"):
        secretfiles.store({"A": "x"}, machine.secrets / "elsewhere")
    (machine.secrets / "A").symlink_to(tmp_path / "target")
    secretfiles.store({"A": "x"}, machine.secrets)
    assert not (tmp_path / "target").exists() and not (machine.secrets / "A").is_symlink()


def test_a_path_that_cannot_be_written_is_reported(machine: Rented) -> None:
    with pytest.raises(UserError, match="cannot hold secrets"):
        secretfiles.store({"A": "x"}, machine.secrets / "no" / "such")
    assert secretfiles.environment(machine.secrets / "no") == {}
    assert os.environ.get("A_FILE") is None
