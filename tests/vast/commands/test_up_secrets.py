"""Secrets of `vast up`: what is named in the policy reaches the job, and nothing else has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vast.fakes.command_line import UP, World
from tests.vast.fakes.fake_market import KEY
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.records.run_dir import folders

S3 = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]


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


@pytest.mark.parametrize(
    ("store", "secrets", "environ", "lacking"),
    [
        ("s3://bucket/prefill", [], {}, "no AWS_ACCESS_KEY_ID, no AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/prefill", S3, {"AWS_ENDPOINT_URL": "https://s3.example"}, "no AWS_ENDPOINT_URL"),
        ("hf://me/runs", ["PREFILL_ARTIFACTS"], {}, "no HF_TOKEN"),
        ("s3://bucket/prefill", S3, {}, ""),
        ("hf://me/runs", ["HF_TOKEN", "PREFILL_ARTIFACTS"], {}, ""),
    ],
)
def test_a_store_without_its_credentials_is_refused_before_money_is_spent(
    world: World, tmp_path: Path, store: str, secrets: list[str], environ: dict[str, str], lacking: str
) -> None:
    """A secret that is not named is not sent, although it is set here."""
    (tmp_path / "policy.yaml").write_text(f"secrets: [{', '.join(secrets)}]\n")
    world.environ = {"HF_TOKEN": "x", "PREFILL_ARTIFACTS": store, **dict.fromkeys(S3, "x"), **environ}
    given = [] if "PREFILL_ARTIFACTS" in secrets else ["--set", f"artifacts={store}"]
    done = world.vast(*UP, "--policy", str(tmp_path / "policy.yaml"), *given)
    if lacking:
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.stderr
        assert (
            f"the machine gets {lacking}, and uploads to {store} need it; add it to the policy: secrets: ["
            in done.stderr
        )
        assert world.fake.market.rentals == {} and folders(world.runs) == []
    else:
        assert done.exit_code == 0, done.output
        assert f"artifacts    also to {store}, while it trains" in done.stderr


def test_a_store_in_the_environment_is_checked_as_one_of_the_profile(world: World, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("secrets: [PREFILL_ARTIFACTS]\n")
    for address in ("https://user:password@s3.example/", "file:///tmp/store"):
        world.environ = {"PREFILL_ARTIFACTS": address}
        done = world.vast(*UP, "--policy", str(tmp_path / "policy.yaml"))
        assert done.exit_code == 2 and "$PREFILL_ARTIFACTS: " in done.stderr and "password" not in done.stderr
    assert world.fake.market.rentals == {}


@pytest.mark.parametrize(
    ("environ", "secrets", "lacking"),
    [
        ({}, "[]", "which are not accepted yet; read them, and to accept them set ACCEPT_GEMMA_TERMS=1"),
        ({"ACCEPT_GEMMA_TERMS": "1"}, "[]", "add it to the policy: secrets: [ACCEPT_GEMMA_TERMS]"),
        ({"ACCEPT_GEMMA_TERMS": "1"}, "[ACCEPT_GEMMA_TERMS]", ""),
    ],
)
def test_terms_that_are_not_accepted_here_and_there_are_refused_before_money_is_spent(
    world: World, tmp_path: Path, environ: dict[str, str], secrets: str, lacking: str
) -> None:
    (tmp_path / "policy.yaml").write_text(f"secrets: {secrets}\n")
    world.environ = environ
    words = ["--set", "model.source=embedded", "--set", "model.name=gemma-3-270m", "--set", "model.config=null"]
    done = world.vast(*UP, "--policy", str(tmp_path / "policy.yaml"), *words)
    if lacking:
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and lacking in done.stderr, done.stderr
        assert world.fake.market.rentals == {} and folders(world.runs) == []
    else:
        assert done.exit_code == 0 and world.contexts[0].secrets["ACCEPT_GEMMA_TERMS"].reveal() == "1", done.output
