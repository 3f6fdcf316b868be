"""`vast local` before its container: the policy of this machine, the image, the engine of a run that is taken up again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jobs.errors import ConfigError, RunStateError, UserError
from tests.vast.fakes.fake_engine import FakeEngine
from tests.vast.fakes.fake_market import ManualClock
from vast import policy as policies
from vast.__main__ import cli
from vast.commands import local
from vast.commands import wiring as wirings
from vast.commands.wiring import ShellContext, Wiring, wiring_of_run
from vast.host.watchdog import _arguments
from vast.local import container_spec
from vast.local.container_spec import Asked, ContainerSpec
from vast.local.local_cloud import LocalCloud
from vast.local.transport import LocalTransport
from vast.records.overview import as_text, overview
from vast.records.run_dir import Folder, RunRequest
from vast.records.status import status
from vast.rental.onstart import Switch, without_market
from vast.shell.hostshell import HostShell
from vast.supervisor import schedule

GIVEN = ContainerSpec(engine="engine-1", image_id="sha256:" + "1" * 64, user="1000:1000")
OURS = {local.POLICY_NAME: local.POLICY}
SWITCH = Switch("stage1-1", "n" * 32, 3600.0, 1800.0, 300.0, 20.0, 0.0, "https://market")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "s")
    monkeypatch.setattr(wirings, "reach", lambda environ: (engine.client(), engine.identity))
    yield engine
    engine.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "runs", "stage1-20261123-101500")
    made.make(RunRequest("stage1", "ci", "prefill:test"), policies.text(policies.load()))
    return made


# ---- the policy -----------------------------------------------------------------------------------------------------------


def test_looks_are_seconds_apart_on_this_machine() -> None:
    ours, theirs = policies.load(over=OURS), policies.load()
    assert max([*ours.cadence.early_minutes, ours.cadence.stable_minutes]) <= 0.25
    assert ours.attempts == theirs.attempts  # what it does not name stays


def test_layers_lie_over_each_other_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("caps: {hours: 5.0}\nabsence_spacing: 1.0\n")
    policy = policies.load(path, {"--max-hours 2": {"caps": {"hours": 2.0}}}, OURS)
    assert (policy.caps.hours, policy.absence_spacing, policy.reconcile.spacing) == (2.0, 1.0, 2.0)
    path.write_text("cadense: {}\n")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        policies.load(path, over=OURS)


def test_every_section_of_the_local_policy_has_a_reason() -> None:
    lines = local.POLICY.read_text(encoding="utf-8").splitlines()
    names = {line.split(":")[0] for line in lines if re.match(r"\w+:", line)}
    assert names <= set(policies.Policy.model_fields) and sum("#" in line for line in lines) >= len(names) // 2


# ---- before anything is made ------------------------------------------------------------------------------------------------


def test_the_image_is_pinned_to_what_its_name_means_now(fake: FakeEngine) -> None:
    made = local.decide(fake.client(), "engine-1", Asked(gpu="none"), "prefill:test", {})
    assert (made.image_id, made.engine) == (fake.images["prefill:test"], "engine-1")


def test_an_image_that_is_nowhere_is_named_with_its_remedy(fake: FakeEngine) -> None:
    with pytest.raises(UserError, match=r"--image prefill:none: no such image here, .* make image"):
        local.decide(fake.client(), "engine-1", Asked(gpu="none"), "prefill:none", {})


# ---- pid 1 --------------------------------------------------------------------------------------------------------------------


def test_pid_one_is_what_the_watchdog_understands() -> None:
    words = shlex.split(without_market(SWITCH))
    assert words[:3] == ["/usr/bin/python3", "-m", "vast.host.watchdog"]
    options = _arguments(words[3:])
    assert options.local and options.url == "" and options.nonce == SWITCH.nonce and options.hard == 3600.0


# ---- taken up again -----------------------------------------------------------------------------------------------------------


def test_a_run_of_containers_is_taken_up_with_the_engine_and_needs_no_key(fake: FakeEngine, folder: Folder) -> None:
    container_spec.write(folder.local, GIVEN)
    wiring = wiring_of_run(folder, Wiring(environ={}, home=folder.path))
    cloud, _ = wiring.connect({}, folder.path, wiring.clock)
    assert isinstance(cloud, LocalCloud) and wiring.first_process is without_market
    shell = wiring.shell(ShellContext(folder, folder.request(), {}, wiring.clock, {}, lambda: None))
    assert isinstance(shell, HostShell) and isinstance(shell.transport, LocalTransport)
    assert shell.network_is_up()
    fake.identity = "engine-2"
    assert not shell.network_is_up()  # another engine is no way to the run's container
    shell.close()
    assert wiring_of_run(folder, wiring) is wiring


def test_a_rented_run_asks_for_no_engine(folder: Folder) -> None:
    wiring = Wiring(environ={}, home=folder.path)
    assert wiring_of_run(folder, wiring) is wiring


def test_another_engine_does_not_take_a_run_up(fake: FakeEngine, folder: Folder) -> None:
    container_spec.write(folder.local, GIVEN)
    fake.identity = "engine-2"
    with pytest.raises(RunStateError, match=r"is on the engine engine-1, and engine-2 answers; set DOCKER_HOST"):
        wiring_of_run(folder, Wiring(environ={}, home=folder.path))


# ---- in words of this machine -----------------------------------------------------------------------------------------------


def _local(runs: Path, clock: ManualClock) -> Result:
    words = ["local", "stage1", "--profile", "ci", "--image", "prefill:test", "--gpu", "none", "--runs-dir", str(runs)]
    wiring = Wiring(environ={}, home=runs / "nobody", clock=clock)
    return CliRunner().invoke(cli, words, obj=wiring)


def test_an_engine_that_refuses_is_no_market(
    fake: FakeEngine, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "reach", lambda environ: (fake.client(), fake.identity))
    fake.odd[r"POST /containers/create"] = lambda handler: handler.refuse(400, "invalid mount: no such volume driver")
    done = _local(tmp_path / "runs", clock)
    (alert,) = (line for line in done.stderr.splitlines() if "alert: refused" in line)
    assert alert.endswith("or by the engine here; the engine: invalid mount: no such volume driver")


def test_an_engine_that_stops_is_named_beside_the_market(fake: FakeEngine) -> None:
    """It is account, list and network of a local run."""
    assert all("engine" in schedule.ALERTS[name] for name in ("account", "network", "market"))
    assert "rented one bills" in schedule.ALERTS["destroy"]


def test_what_ends_a_local_run_is_no_command_about_the_market(folder: Folder, clock: ManualClock) -> None:
    container_spec.write(folder.local, GIVEN)
    with pytest.raises(RunStateError, match="start a new one: python -m vast local"):
        folder.state()
    (folder.path / "journal.jsonl").write_text("no journal\n\n")
    end = f"end the run's container: docker rm --force --volumes prefill-{folder.run_id}"
    with pytest.raises(RunStateError, match=end):
        folder.state()
    shown = as_text(overview(folder.runs_dir, [], [status(folder, clock)]), 500)
    assert end in shown and "vast reap" not in shown
