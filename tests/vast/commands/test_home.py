"""A path that begins with `~` is below the home directory, wherever a person writes it: no shell reads a file or a variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.errors import ConfigError
from vast.__main__ import cli
from vast.commands.options import JobOptions, Named
from vast.commands.wiring import Wiring, with_hosts
from vast.local import container_spec
from vast.local.container_spec import Asked, ContainerSpec
from vast.rental import plan


def decided(asked: Asked, **environ: str) -> ContainerSpec:
    return container_spec.decide(asked, {}, "engine-1", "sha256:" + "1" * 64, environ, (1234, 5678), lambda: False)


def test_options_and_a_profile_of_ones_own(home: Path) -> None:
    assert Named(path_type=Path).convert("~/runs", None, None) == home / "runs"
    asked = JobOptions(stage="stage1", profile="~/mine.yaml")
    assert asked.profile_file == f"{home}/mine.yaml"
    assert f"/there/{plan.INPUTS}/mine.yaml" in asked.command("/there")


def test_directories_of_a_container(home: Path) -> None:
    (home / "data").mkdir()
    spec = decided(Asked(cache="~/cache", readable=("~/data",)), PREFILL_WHEELS="~/data")
    assert (spec.cache, spec.readable, spec.wheels) == (f"{home}/cache", (f"{home}/data",), f"{home}/data")
    assert (home / "cache").is_dir() and [path.name for path in Path.cwd().iterdir()] == ["alice"]


def test_machines_of_ones_own(home: Path) -> None:
    (home / "key").write_text("a private key")
    (home / "hosts.yaml").write_text("root: /srv\nkey: ~/key\nmachines:\n  - {address: a.example, gpu: RTX_4090, gpus: 1, memory_gb: 24.0}\n")  # fmt: skip
    given = Wiring(environ={"VAST_HOSTS": "~/hosts.yaml"}, home=home)
    assert with_hosts(given) is not given
    with pytest.raises(ConfigError, match=r"VAST_HOSTS=~/none\.yaml: no such file"):
        with_hosts(Wiring(environ={"VAST_HOSTS": "~/none.yaml"}, home=home))


def test_the_home_of_nobody_is_one_line_and_makes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = CliRunner().invoke(cli, ["status", "--runs-dir", "~nobody-of-this-name/runs"], standalone_mode=False)
    assert isinstance(found.exception, ConfigError)
    assert "begins with the home directory of nobody" in str(found.exception)
    assert [path.name for path in Path.cwd().iterdir()] == ["alice"]
