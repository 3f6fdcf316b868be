"""Secrets of `vast up`: what is named in the policy reaches the job, and nothing else has it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.vast.fakes.command_line import UP, World
from tests.vast.fakes.fake_market import KEY
from tests.vast.fakes.scripted_shell import ScriptedShell, ended, running
from vast.records.run_dir import folders


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
