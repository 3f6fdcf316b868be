"""`vast up` before money is spent: each mistake is one line, and a person is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import strict_yaml
from jobs.config.load import resolve
from tests.vast.fakes.command_line import IMAGE, UP, World
from vast.rental.image_registry import Found


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        ((), {"environ": {"VAST_API_KEY": ""}}, ("Vast.ai: no key of the account", "set VAST_API_KEY")),
        ((), {"environ": {"VAST_API_KEY": "wrong-key-0123"}}, ("$VAST_API_KEY: the key is refused by http",)),
        ((), {"environ": {"VAST_URL": "http://127.0.0.1:9"}}, ("http://127.0.0.1:9: the account cannot be seen: ", "no answer")),
        (("--max-price", "0.1"), {}, ("no offer for 1 x any GPU, at most $0.10", "a RTX 4090 at $0.31: raise --max-price")),
        (("--gpu", "H100_SXM"), {}, ("no offer for 1 x H100 SXM", "ask for less", "by SkyPilot or dstack: python -m jobs.submit --help")),
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
        (("--destroy-on", "always"), {}, ("'--destroy-on': 'always' is not one of 'done,fail', 'done', 'fail', 'none'",)),
        (("--policy", "no-such.yaml"), {}, ("no-such.yaml: cannot be read: No such file or directory; correct the path",)),
        (("--ssh-key", __file__), {}, (f"{__file__}: is no private key; give the path of one",)),
        (("--ssh-key", "/etc/passwd"), {}, ("/etc/passwd: is no private key",)),
        (("--gpu", "H100"), {}, ("the market has no GPU of that name; use --gpu H100_NVL or H100_PCIE or H100_SXM",)),
        (("--gpu", "4090"), {}, ("the market has no GPU of that name; use --gpu RTX_4090",)),
        (("--gpu", "GTX_1"), {}, ("the market has no GPU of that name; use --gpu as python -m vast offers shows it",)),
        (("--interruptible", "--bid", "0.01"), {}, ("at most $0.01", "RTX 4090 at $0.20: raise --bid to 0.20")),
        (("--policy", ""), {}, ("'--policy': it is empty; name one",)),
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
        (("up", "lokup", "--yes"), ('unknown stage "lokup", and no such campaign', 'did you mean "lookup"?')),
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


def test_artifacts_in_a_directory_of_this_machine_are_refused(world: World) -> None:
    done = world.vast("up", "stage3b", "--profile", "ci", "--yes", "--set", "artifacts=file:///data")
    assert (
        done.exit_code == 2 and "artifacts: is a path of this machine, which a rented one does not have" in done.stderr
    )


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


def test_the_remedy_for_a_lost_start_runs_the_stage_with_the_profile_as_it_was_given(
    world: World, tmp_path: Path
) -> None:
    own = tmp_path / "my profile.yaml"
    own.write_text(Path("jobs/profiles/ci.yaml").read_text())
    for stage in ("stage3a", "stage3b"):
        job = resolve(stage, str(own))
        run = world.runs / stage / "20270114-000000"
        run.mkdir(parents=True)
        record = job.record({"base": "base"})
        (run / "stage.yaml").write_text(strict_yaml.dump(record))
        (run / "summary.json").write_text(
            json.dumps({"profile": job.profile.name, "fingerprint": record["fingerprint"]})
        )
    (world.runs / "stage3a" / "20270114-000000" / "final").mkdir()
    done = world.vast("up", "stage4", "--profile", str(own), "--yes")
    assert (done.exit_code, world.fake.requests) == (2, [])
    expected = f"{run}/final: is gone, and the stage starts from it; run: make stage3b PROFILE='{own}' RUNS={world.runs} FORCE=1"
    assert expected in done.stderr
