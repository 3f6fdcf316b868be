"""`vast up` against the fake API with a scripted host: the whole way, without a second of waiting."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import lock
from jobs.config import strict_yaml
from jobs.config.load import resolve
from tests.vast.fakes.command_line import IMAGE, KILLED, Killed, World
from tests.vast.fakes.fake_market import KEY
from tests.vast.fakes.scripted_shell import RUN, ScriptedShell, ended, running
from vast.commands import up as up_module
from vast.ports import Address, Host, Pulled
from vast.records.run_dir import folders
from vast.rental import earlier_runs, preflight
from vast.rental.image_registry import Found
from vast.session import view

UP = ("up", "stage3b", "--profile", "ci", "--yes")


# ---- the way of a run -------------------------------------------------------------------------------------------------------


def test_a_run_is_rented_watched_fetched_and_destroyed(world: World) -> None:
    done = world.vast(*UP)
    assert done.exit_code == 0, done.output
    assert world.fake.market.living() == []
    assert len(world.fake.market.rentals) == 1
    started = [call for call in world.shell.calls if call.startswith("start")]
    assert started == ["start run stage3b --profile ci --continue"]
    assert "pull everything" in world.shell.calls
    lines = [view.parse(line) for line in done.stdout.splitlines()]
    assert None not in lines, done.stdout
    assert any(line is not None and line.step == "120/300" and line.gpu == "97" for line in lines)
    assert {line.phase for line in lines if line is not None} >= {
        "provisioning",
        "running",
        "collecting",
        "terminating",
    }
    assert world.folder.lines.read_text() == done.stdout


def test_the_contract_has_the_host_image_the_label_and_the_switch(world: World) -> None:
    world.vast(*UP, "--max-cost", "5", "--max-hours", "4", "--disk", "77")
    (rental,) = world.fake.market.rentals.values()
    request = rental.request
    assert (request["image"], request["disk"]) == (IMAGE + "-host", 77)
    deadline = int(request["label"].rpartition("/")[2])
    assert (
        request["label"].startswith(f"prefill/{world.folder.run_id}/") and 0 <= deadline - 1_800_000_000 - 4 * 3600 < 60
    )
    assert f"--nonce {world.folder.nonce()}" in request["onstart"]
    assert "--max-dollars 5.0000 --dollars-per-hour 0.316" in request["onstart"]  # the offer's own price
    assert f"--t-hard {4 * 3600 + 1800 - 12} " in request["onstart"] or "--t-hard 16" in request["onstart"]
    assert request["env"] == {}


def test_the_switch_of_a_second_machine_has_what_is_left_of_the_caps(world: World) -> None:
    broken = replace(running(60), gpu_fault="Xid 79")
    world.shell = ScriptedShell([broken] * 12 + [running(90), ended()])
    assert world.vast(*UP, "--max-cost", "5", "--max-hours", "4").exit_code == 0
    first, second = ([float(found) for found in re.findall(r"--(?:t-hard|max-dollars) ([0-9.]+)", one.request["onstart"])]
                     for one in world.fake.market.rentals.values())  # fmt: skip
    assert first[0] > second[0] > 4 * 3600 and first[1] == 5.0 > second[1] > 4.5
    assert world.fake.market.living() == []


def test_the_report_names_dollars_by_phase_that_add_up(world: World) -> None:
    world.hours = 0.1
    world.vast(*UP)
    report = json.loads(world.folder.report.read_text())
    assert report["result"] == "done"
    assert sum(report["by_kind"].values()) == pytest.approx(report["dollars"])
    assert report["by_kind"]["training"] > report["by_kind"]["loading"] > 0
    assert report["estimate_hours"] == 0.1
    assert "| training |" in world.folder.report_text.read_text()


def test_a_failed_job_ends_with_its_own_exit_code(world: World) -> None:
    world.shell = ScriptedShell([running(60), ended("nan", 3, complete=False)])
    done = world.vast(*UP)
    assert done.exit_code == 3
    assert "alert: nan" in done.stderr
    assert world.fake.market.living() == []


def test_destroy_on_done_keeps_a_failed_machine_until_a_cap_is_near(world: World) -> None:
    world.shell = ScriptedShell([ended("nan", 3, complete=False)])
    kept_at: list[float] = []
    world.shell.on_look = lambda number: kept_at.append(world.clock.now())
    world.vast(*UP, "--destroy-on", "done", "--max-hours", "2")
    assert world.fake.market.living() == []
    assert max(kept_at) - min(kept_at) > 3600


# ---- before money is spent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        ((), {"environ": {"VAST_API_KEY": ""}}, ("Vast.ai: no key of the account", "set VAST_API_KEY")),
        ((), {"environ": {"VAST_API_KEY": "wrong-key-0123"}}, ("$VAST_API_KEY: the key is refused by http",)),
        ((), {"environ": {"VAST_URL": "http://127.0.0.1:9"}}, ("http://127.0.0.1:9: the account cannot be seen: ", "no answer")),
        (("--max-price", "0.1"), {}, ("no offer for 1 x any GPU, at most $0.10", "a RTX 4090 at $0.31: raise --max-price")),
        (("--gpu", "H100_SXM"), {}, ("no offer for 1 x H100 SXM", "ask for less")),
        (("--image", "prefill:local"), {}, ("--image prefill:local: has no registry", "make push IMAGE=")),
        (("--image", "you/prefill:1"), {}, ("expected a registry's host before the first slash, found 'you'",)),
        (("--image", "localhost:5000/prefill:1"), {}, ("is in a registry of this machine",)),
        (("--image", "registry.example/Prefill:1"), {}, ("is no name of an image",)),
        (("--image", "registry.example/prefill"), {}, ("has no tag",)),
        (("--max-cost", "0.05"), {}, ("--max-cost: $0.31 per hour uses up $0.05", "raise it above 0.16")),
        (("--max-hours", "4"), {"hours": 6.0}, ("--max-hours: the estimate is 6.0 h", "raise it to 6.4")),
        (("--max-cost", "1"), {"hours": 6.0}, ("--max-cost: the estimate is 6.0 h", "raise it to 2.")),
        (("--max-hours", "0.2"), {}, ("expected less than caps.hours",)),
        (("--interruptible",), {}, ("--interruptible: goes with --bid",)),
        (("--destroy-on", "always"), {}, ("--destroy-on always: expected done, fail",)),
        (("--policy", "no-such.yaml"), {}, ("no-such.yaml", "cannot be read: No such file")),
        (("--ssh-key", __file__), {}, (f"{__file__}: is no private key; give the path of one",)),
        (("--ssh-key", "/etc/passwd"), {}, ("/etc/passwd: is no private key",)),
        (("--gpu", "H100"), {}, ("the market has no GPU of that name; say --gpu H100_NVL or H100_PCIE or H100_SXM",)),
        (("--gpu", "4090"), {}, ("the market has no GPU of that name; say --gpu RTX_4090",)),
        (("--gpu", "GTX_1"), {}, ("the market has no GPU of that name; say --gpu as python -m vast offers shows it",)),
        (("--interruptible", "--bid", "0.01"), {}, ("at most $0.01", "RTX 4090 at $0.20: raise --bid to 0.20")),
        (("--disk", "nan"), {}, ("'--disk': 'nan' is not a finite number",)),
        (("--max-cost", "inf"), {}, ("'--max-cost': 'inf' is not a finite number",)),
        (("--interruptible", "--bid", "nan"), {}, ("'--bid': 'nan' is not a finite number",)),
        ((), {"missing": {"rsync"}}, ("PATH: no rsync; install",)),
        ((), {"missing": {"ssh", "ssh-keygen"}}, ("PATH: no ssh, no ssh-keygen",)),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_costs_nothing(
    world: World, words: tuple[str, ...], change: dict[str, object], said: tuple[str, ...]
) -> None:
    for name, value in change.items():
        setattr(world, name, value)
    done = world.vast(*UP, *words)
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert [part for part in said if part not in done.stderr] == [], done.stderr
    assert world.fake.market.rentals == {}
    assert not (world.runs / "vast").exists() or list((world.runs / "vast").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("up", "stage9", "--yes"), ('jobs: unknown stage "stage9"', "did you mean")),
        (("up", "stage1", "--profile", "nobody", "--yes"), ('unknown profile "nobody"',)),
        (("up", "stage4", "--profile", "ci", "--yes"), ("stage4: init_from stage3b has no completed run", "make stage3b PROFILE=ci")),
        (("up", "stage1", "--set", "train.max_steps=5", "--yes"), ("stage1",)),
    ],
)  # fmt: skip
def test_a_wrong_stage_profile_or_start_costs_nothing(
    world: World, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    done = world.vast(*words)
    assert done.exit_code == 2
    assert [part for part in said if part not in done.stderr] == [], done.stderr
    assert world.fake.requests == []


def test_a_profile_with_a_path_of_this_machine_is_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (
        Path("jobs/profiles/ci.yaml")
        .read_text()
        .replace("eval: {source: embedded}", f"eval: {{source: path, path: {tmp_path}}}")
    )
    path.write_text(text)
    done = world.vast("up", "stage3b", "--profile", str(path), "--yes")
    assert done.exit_code == 2
    assert "data.eval: is a path of this machine, which a rented one does not have" in done.stderr


def test_a_profile_of_ones_own_is_named_by_its_place_on_the_host(world: World, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(Path("jobs/profiles/ci.yaml").read_text())
    assert world.vast("up", "stage3b", "--profile", str(path), "--yes").exit_code == 0
    assert "start run stage3b --profile /runs/.inputs/mine.yaml --continue" in world.shell.calls
    assert world.contexts[0].request.profile_file == str(path)


def test_a_runs_directory_that_cannot_be_written_is_refused(world: World) -> None:
    world.runs.mkdir()
    (world.runs / "vast").write_text("a file")
    done = world.vast(*UP)
    assert done.exit_code == 2
    assert f"{world.runs / 'vast'}: cannot be written: File exists" in done.stderr
    assert world.fake.market.rentals == {}


def test_too_little_credit_is_refused(world: World) -> None:
    world.fake.market.credit = 0.1
    done = world.vast(*UP)
    assert done.exit_code == 2
    assert "$0.10 of credit" in done.stderr
    assert world.fake.market.rentals == {}


@pytest.mark.parametrize(
    ("found", "login", "said"),
    [
        ("absent", False, "its registry has no such image; push it"),
        ("denied", False, "wants a login for it, or does not have it"),
        ("denied", True, "its registry refuses the login"),
    ],
)
def test_an_image_that_cannot_be_pulled_is_refused(
    world: World, tmp_path: Path, found: Found, login: bool, said: str
) -> None:
    world.pullable = found
    words = list(UP)
    if login:
        (tmp_path / "policy.yaml").write_text("registry_login: LOGIN\n")
        world.environ["LOGIN"] = "-u me -p pass-word-123 registry.example"
        words += ["--policy", str(tmp_path / "policy.yaml")]
    done = world.vast(*words)
    assert done.exit_code == 2 and said in done.stderr and f"{IMAGE}-host" in done.stderr
    assert "pass-word-123" not in done.output
    assert world.fake.market.rentals == {}


def test_a_registry_that_cannot_be_asked_is_no_reason_to_refuse(world: World) -> None:
    world.pullable = "unknown"
    done = world.vast(*UP)
    assert done.exit_code == 0 and "its registry could not be asked" in done.stderr


def test_a_stage_that_does_not_fit_takes_a_larger_machine(world: World) -> None:
    world.memory = 40.0
    world.fake.market.add_offer(13, gpu_name="A100 SXM4", gpu_ram=81_920, dph_base=1.1)
    done = world.vast(*UP)
    assert done.exit_code == 0, done.output
    (rental,) = world.fake.market.rentals.values()
    assert rental.offer["gpu_name"] == "A100 SXM4"
    assert "the stage needs 40 GB" in done.stderr


def test_a_gpu_by_name_into_which_the_stage_does_not_fit_is_refused(world: World) -> None:
    world.memory = 40.0
    done = world.vast(*UP, "--gpu", "RTX_4090")
    assert done.exit_code == 2
    assert (
        "--gpu: 1 x RTX 4090 with 24.564 GB, and the stage needs 40 GB a GPU; set train.micro_batch_size=1"
        in done.stderr
    )
    assert world.fake.market.rentals == {}


def test_nobody_can_be_asked_without_a_terminal(world: World) -> None:
    done = world.vast("up", "stage3b", "--profile", "ci")
    assert done.exit_code == 2
    assert "nobody can be asked" in done.stderr
    assert "caps         $20.00 and 24 h" in done.stderr  # the plan comes first
    assert world.fake.market.rentals == {}


@pytest.mark.parametrize(("answer", "rented"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_a_terminal_is_asked(world: World, answer: str, rented: int) -> None:
    world.change = lambda wiring: replace(wiring, is_terminal=lambda: True)
    done = world.vast("up", "stage3b", "--profile", "ci", input=answer)
    assert len(world.fake.market.rentals) == rented
    assert (done.exit_code == 0) == bool(rented)


@pytest.mark.parametrize(
    ("fault", "words", "offers"),
    [("403-scope", "the key may lack a scope", 1), ("spending", "the spending limit of the account", 1),
     ("404", "two-factor authentication has expired", 1), ("409", "offer is being rented", 8), ("429", "too frequent", 8)],
)  # fmt: skip
def test_a_market_that_refuses_every_create_is_named_and_not_called_empty(
    world: World, fault: str, words: str, offers: int
) -> None:
    for number in range(20, 30):
        world.fake.market.add_offer(number)
    world.fake.fail(fault, on="create")
    done = world.vast(*UP)
    assert json.loads(world.folder.report.read_text())["result"] == "refused", done.output
    assert f"{words}" in done.stderr and "alert: refused: " in done.stderr
    alert = next(line for line in done.stderr.splitlines() if "alert: refused: " in line)
    assert words in alert and "; the market: " in alert
    assert world.fake.count("create") == offers


def test_an_account_without_credit_at_the_create_is_an_alert(world: World) -> None:
    world.fake.fail("no-credit", on="create")
    done = world.vast(*UP)
    assert json.loads(world.folder.report.read_text())["result"] == "no-credit", done.output
    assert done.stderr.count("alert: no-credit: the account has no credit to rent with") == 1


def test_the_deadline_of_a_label_is_by_the_services_clock(world: World) -> None:
    """This machine's clock is five days ahead."""
    days, real = 5 * 86_400, world.clock.now
    world.clock.now = lambda: real() + days  # type: ignore[method-assign]
    world.vast(*UP, "--max-hours", "4")
    (rental,) = world.fake.market.rentals.values()
    deadline = int(rental.request["label"].rpartition("/")[2])
    assert 0 <= deadline - 1_800_000_000 - 4 * 3600 < 60


def test_why_ssh_fails_is_shown_and_a_fresh_machine_raises_no_alert(world: World) -> None:
    changed = "wrong-host", "REMOTE HOST IDENTIFICATION HAS CHANGED"
    refused = "unreachable", "ssh: connect to host 198.51.100.7 port 22: Connection refused"
    before = [Host("denied", message="Permission denied (publickey)"), Host(*changed[:1], message=changed[1])]
    real = world.shell.probe
    seen: list[int] = []

    def probe(addresses: tuple[Address, ...]) -> Host:
        seen.append(1)
        if len(seen) <= len(before):
            return before[len(seen) - 1]
        found = real(addresses)
        return Host(refused[0], message=refused[1]) if world.shell.looks == 1 else found  # type: ignore[arg-type]

    world.shell.probe = probe  # type: ignore[method-assign]
    done = world.vast(*UP)
    assert done.exit_code == 0, done.output
    assert f"host {changed[0]}: {changed[1]}" in done.stderr and f"host unreachable: {refused[1]}" in done.stderr
    assert "key-denied" not in done.stderr and "Permission denied" not in done.stderr


@pytest.mark.parametrize(("endpoint", "fault"), [("list", "410"), ("list", "500"), ("show", "410")])
def test_a_market_in_which_no_machine_could_be_watched_is_not_rented_from(
    world: World, endpoint: str, fault: str
) -> None:
    world.fake.fail(fault, on=endpoint)
    done = world.vast(*UP)
    assert done.exit_code == 2, done.output
    assert "cannot be listed: " in done.stderr or "a machine cannot be shown: " in done.stderr
    assert "nothing is rented, since it could not be watched" in done.stderr
    assert world.fake.market.rentals == {}


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "https://console.vast.ai"),  # VAST_URL is on this machine
        ({"VAST_HOST_URL": "http://10.0.0.7:8080"}, "http://10.0.0.7:8080"),
    ],
)
def test_the_switch_gets_an_address_that_its_machine_can_reach(world: World, environ: dict[str, str], url: str) -> None:
    world.environ = environ
    assert world.vast(*UP).exit_code == 0
    (rental,) = world.fake.market.rentals.values()
    assert f"--url {url} " in rental.request["onstart"]


@pytest.mark.parametrize(
    ("url", "private"),
    [("http://127.0.0.1:8", True), ("http://localhost", True), ("http://192.168.1.4", True), ("https://vast.lan", True),
     ("https://localhost", True), ("https://eu.vast.ai", False), ("https://8.8.8.8", False)],
)  # fmt: skip
def test_which_addresses_only_this_machine_has(url: str, private: bool) -> None:
    assert preflight.host_url({"VAST_URL": url}) == ("https://console.vast.ai" if private else url)


def test_a_question_that_waits_while_another_terminal_rents_for_the_job_rents_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(look: int) -> None:
        raise Killed

    def another_terminal(wiring: object) -> None:
        monkeypatch.setattr(up_module, "_ask", lambda wiring: None)
        world.shell.on_look = killed
        assert world.vast(*UP).exit_code == KILLED

    monkeypatch.setattr(up_module, "_ask", another_terminal)
    done = world.vast(*UP[:-1])
    assert done.exit_code == 2, done.output
    assert "is a rented run of this very job, and open" in done.stderr
    assert len(world.fake.market.rentals) == 1


def test_two_terminals_that_answer_at_once_take_turns(world: World) -> None:
    parent = world.runs / "vast"
    parent.mkdir(parents=True)
    held = lock.hold(parent / ".renting")
    done = world.vast(*UP)
    assert (done.exit_code, world.fake.market.rentals) == (2, {})
    assert f"{parent}: is in use by process {os.getpid()} on" in done.stderr
    held.close()
    world.shell.on_look = lambda look: lock.hold(parent / ".renting").close()  # free while a job runs
    assert world.vast(*UP).exit_code == 0


# ---- a stage that is asked for again ---------------------------------------------------------------------------------------------


def test_a_stage_that_is_complete_here_is_not_paid_for_again(world: World) -> None:
    job = resolve("stage3b", "ci")
    run = world.runs / "stage3b" / "20270114-000000"
    run.mkdir(parents=True)
    record = job.record({"base": "base"})
    (run / "stage.yaml").write_text(strict_yaml.dump(record))
    (run / "summary.json").write_text(json.dumps({"profile": "ci", "fingerprint": record["fingerprint"]}))
    refused = world.vast(*UP)
    assert refused.exit_code == 2
    assert f"{run}: is complete, with the very same settings; repeat it with --force" in refused.stderr
    assert world.fake.market.rentals == {}
    assert world.vast(*UP, "--seed", "7").exit_code == 0  # another job
    assert world.vast(*UP, "--force").exit_code == 0


def test_an_unfinished_rented_run_is_gone_on_with_on_the_next_machine(world: World) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])
    world.shell.on_look = lambda look: os.kill(os.getpid(), signal.SIGTERM) if look == 3 else None
    assert world.vast(*UP).exit_code == 75
    first = world.folder
    run = world.runs / RUN
    run.mkdir(parents=True)
    (run / "stage.yaml").write_text(strict_yaml.dump(resolve("stage3b", "ci").record({"base": "base"})))
    (first.path / "home.json").write_text(json.dumps({"schema": 1, "run": RUN, "runs": [RUN], "files": {}}))

    settings = resolve("stage3b", "ci").settings({"base": "base"})
    assert (
        (found := earlier_runs.unfinished(world.runs, "stage3b", settings))
        and found.folder.path == first.path
        and found.run == RUN
    )
    journal = first.path / "journal.jsonl"
    closed = journal.read_text()
    journal.write_text("".join(closed.splitlines(keepends=True)[:-1]))  # a run that is open is somebody's still
    assert earlier_runs.unfinished(world.runs, "stage3b", settings) is None
    journal.write_text(closed)

    world.clock.time += 60
    world.shell = ScriptedShell([ended()], checkpoint=f"{RUN}/checkpoints/checkpoint-90")
    done = world.vast(*UP)
    assert done.exit_code == 0
    assert f"goes on      with {RUN}, which is unfinished here" in done.stderr
    assert [call.split()[0] for call in world.shell.calls if call.startswith(("push", "start"))] == ["push", "start"]
    assert (world.folder.path / "home.json").read_text() == (first.path / "home.json").read_text()

    world.clock.time += 60
    world.shell = ScriptedShell([ended()])
    assert "goes on" not in world.vast(*UP, "--force").stderr
    assert not (world.folder.path / "home.json").exists()


# ---- secrets -----------------------------------------------------------------------------------------------------------------


def secret_policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("secrets: [HF_TOKEN]\nregistry_login: REGISTRY_LOGIN\n")
    return path


def test_no_secret_reaches_the_output_the_journal_or_the_host(world: World, tmp_path: Path) -> None:
    world.environ = {"HF_TOKEN": "hf-secret-77", "REGISTRY_LOGIN": "-u me -p registry-secret-88 registry.example"}
    world.shell = ScriptedShell([running(60, fixes=("hf-secret-77 was in the log",)), ended()])
    done = world.vast(*UP, "--policy", str(secret_policy(tmp_path)))
    assert done.exit_code == 0, done.output
    assert "fix=***_was_in_the_log" in done.stdout
    (rental,) = world.fake.market.rentals.values()
    assert rental.request.pop("image_login") == world.environ["REGISTRY_LOGIN"]
    assert world.contexts[0].secrets["HF_TOKEN"].reveal() == "hf-secret-77"
    kept = "\n".join(path.read_text() for path in world.runs.rglob("*") if path.is_file())
    written = done.output + done.stderr + kept + json.dumps(rental.request) + str(world.shell.calls)
    for secret in (KEY, "hf-secret-77", "registry-secret-88", rental.api_key):
        assert secret not in written
    assert "HF_TOKEN" in world.folder.policy.read_text()


def test_a_secret_that_is_not_set_is_named_before_money_is_spent(world: World, tmp_path: Path) -> None:
    done = world.vast(*UP, "--policy", str(secret_policy(tmp_path)))
    assert done.exit_code == 2
    assert "policy: secrets: $HF_TOKEN is not set in this environment; set it" in done.stderr
    assert world.fake.market.rentals == {} and folders(world.runs) == []


def test_the_account_key_cannot_be_sent_to_a_host(world: World, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("secrets: [VAST_API_KEY]\n")
    done = world.vast(*UP, "--policy", str(path))
    assert done.exit_code == 2
    assert "VAST_API_KEY is never sent to a host" in done.stderr


# ---- signals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_checkpoint_a_pull_and_the_end(
    world: World, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])
    world.shell.on_look = lambda look: os.kill(os.getpid(), number) if look == 3 else None
    done = world.vast(*UP)
    assert done.exit_code == 75
    assert world.fake.market.living() == []
    assert [call for call in world.shell.calls if call.startswith(("stop", "pull"))] == ["stop", "pull everything"]
    assert "the end is asked for" in capfd.readouterr().err
    assert json.loads(world.folder.report.read_text())["result"] == "asked"


def test_what_a_signal_asked_for_outlives_a_kill(world: World) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])

    def look(number: int) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == 4:
            raise Killed

    world.shell.on_look = look
    assert world.vast(*UP).exit_code == KILLED
    world.shell.on_look = lambda number: None
    assert world.vast("attach").exit_code == 75
    assert json.loads(world.folder.report.read_text())["result"] == "asked"


def test_what_ssh_shows_counts_while_the_api_is_out_of_reach(world: World) -> None:
    """The API is the only thing that is asked whether our own network works; who answers over ssh proves it too."""

    class Beyond(ScriptedShell):
        def network_is_up(self) -> bool:
            return False

        def pull(self, addresses: tuple[Address, ...], everything: bool, *proceed: Callable[[], bool]) -> Pulled | None:
            pulled = super().pull(addresses, everything, *proceed)
            if everything:
                world.fake.heal()
            return pulled

    def look(number: int) -> None:
        if number == 2:
            world.fake.fail("500")

    world.shell = Beyond([running(60), running(120), ended()], on_look=look)
    done = world.vast(*UP)
    assert done.exit_code == 0 and "alert: network" not in done.stderr
    assert json.loads(world.folder.report.read_text())["result"] == "done"


def test_a_job_that_an_open_run_is_about_is_not_rented_for_again(world: World) -> None:
    """Whoever calls `up` after a crash meant `attach`: two machines would bring home into one run directory."""

    def look(number: int) -> None:
        raise Killed

    world.shell.on_look = look
    assert world.vast(*UP).exit_code == KILLED
    world.shell.on_look = lambda number: None
    again_ = world.vast(*UP)
    assert again_.exit_code == 2
    assert f"open; go on with it: python -m vast attach {world.folder.run_id}" in again_.stderr
    assert len(world.fake.market.rentals) == 1
    assert world.vast("attach").exit_code == 0


def test_a_second_interrupt_leaves_at_once_and_attach_goes_on(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.shell = ScriptedShell([running(step) for step in range(1, 100)])

    def twice(look: int) -> None:
        if look == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    world.shell.on_look = twice
    done = world.vast(*UP)
    assert done.exit_code == 130
    assert len(world.fake.market.living()) == 1
    run_id = world.folder.run_id
    assert f"go on with: python -m vast attach {run_id}" in capfd.readouterr().err
    assert not world.folder.is_supervised()
    world.shell.on_look = lambda look: None
    resumed = world.vast("down", run_id)
    assert resumed.exit_code == 0, resumed.output
    assert world.fake.market.living() == []
