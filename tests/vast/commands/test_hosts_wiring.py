"""VAST_HOSTS: the same commands over machines of one's own."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import ConfigError, UserError
from tests.vast.fakes.command_line import KILLED, World, die_at
from vast import policy as policies
from vast.commands.wiring import ShellContext, Wiring, over_ssh, with_hosts
from vast.records.run_dir import Folder, RunRequest
from vast.rental.onstart import Switch
from vast.shell.hostshell import HostShell

HOSTS = (
    "root: /srv/runs\nkey: {key}\nmachines:\n  - {{address: anna.example, gpu: RTX_4090, gpus: 2, memory_gb: 24.0}}\n"
)


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    (tmp_path / "key").write_text("a private key")
    (tmp_path / "hosts.yaml").write_text(HOSTS.format(key=tmp_path / "key"))
    for program in ("ssh", "rsync"):  # looked for, and not called
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    return with_hosts(
        Wiring(environ={"VAST_HOSTS": str(tmp_path / "hosts.yaml"), "PATH": str(tmp_path)}, home=tmp_path)
    )


def test_a_profile_file_is_sent_to_where_the_job_looks_for_it(wiring: Wiring, world: World, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(Path("jobs/profiles/ci.yaml").read_text())
    folder = Folder(tmp_path / "runs", "stage1-20261123-101500-3f9a")
    folder.make(RunRequest("stage1", "mine", "image", profile_file=str(own)), policies.text(policies.load()))
    shell = wiring.shell(ShellContext(folder, folder.request(), {}, wiring.clock, wiring.environ, lambda: None))
    assert isinstance(shell, HostShell)
    (sent,) = shell.inputs
    on_host = f"{shell.root}/{sent.to}/{sent.files()[0]}"
    shell.close()
    assert on_host == "/srv/runs/stage1-20261123-101500-3f9a/.inputs/mine.yaml"

    world.change = lambda made: replace(made, root=wiring.root)
    assert world.vast("up", "stage3b", "--profile", str(own), "--yes").exit_code == 0
    named = f"/srv/runs/{world.folder.run_id}/.inputs/mine.yaml"
    assert f"start run stage3b --profile {named} --continue" in world.shell.calls


def test_the_switch_of_a_machine_watches_in_the_directory_of_its_run_and_ends_with_the_machine(wiring: Wiring) -> None:
    words = shlex.split(wiring.first_process(Switch("stage1-a", "n", 3600.0, 1800.0, 5.0, 1.0, 0.0, "https://market")))
    assert words[words.index("--dir") + 1] == "/srv/runs/stage1-a/.watchdog"
    assert words[-1] == "--local" and words[words.index("--url") + 1] == ""


def test_an_open_run_of_the_same_profile_file_is_found_although_its_path_differs(
    wiring: Wiring, world: World, tmp_path: Path
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(Path("jobs/profiles/ci.yaml").read_text())
    world.change = lambda made: replace(made, root=wiring.root)

    world.shell.on_look = die_at(1)
    words = ("up", "stage3b", "--profile", str(own), "--yes")
    assert world.vast(*words).exit_code == KILLED
    refused = world.vast(*words)
    assert refused.exit_code == 2 and "is a rented run of the same job, and open" in refused.stderr, refused.output
    assert len(world.fake.market.rentals) == 1


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("key: /no/such/key", "no such private key: /no/such/key"),
        ("key: ~nobody-here/id", "no such private key: ~nobody-here/id"),
        ("ports: 3", "ports"),
        (None, "no such file; name the list of machines, or unset it"),
    ],
)
def test_a_mistake_in_the_list_is_one_line(tmp_path: Path, text: str | None, fact: str) -> None:
    path = tmp_path / "hosts.yaml"
    if text is not None:
        path.write_text(HOSTS.replace("key: {key}", text if text.startswith("key") else f"key: k\n{text}").format())
    with pytest.raises(ConfigError) as raised:
        with_hosts(Wiring(environ={"VAST_HOSTS": str(path)}, home=tmp_path))
    assert str(path) in str(raised.value) and fact in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "console.vast.ai"])
def test_an_address_of_the_market_that_is_none_is_one_line_for_commands_that_only_ask_the_host(
    world: World, url: str
) -> None:
    folder = world.left_running()
    environ = {"VAST_URL": url, "PATH": "/usr/bin"}
    context = ShellContext(folder, folder.request(), {}, world.clock, environ, lambda: None)
    with pytest.raises(UserError, match="^VAST_URL: .*; such as https://console.vast.ai$"):
        over_ssh(context)


@pytest.mark.parametrize(("asked", "stage"), [("stage1", "stage1"), ("campaign mine", None), ("unknown", None)])
def test_a_host_is_held_to_the_stage_that_was_asked_for(
    wiring: Wiring, tmp_path: Path, asked: str, stage: str | None
) -> None:
    """A campaign has runs of several; of a damaged request the stage is not known, and its run is ended all the same."""
    folder = Folder(tmp_path / "runs", "stage1-20261123-101500-3f9a")
    folder.make(RunRequest(asked, "ci", "image"), policies.text(policies.load()))
    shell = wiring.shell(ShellContext(folder, folder.request(), {}, wiring.clock, wiring.environ, lambda: None))
    assert isinstance(shell, HostShell) and shell.copy.stage == stage
    shell.close()
