"""`publish` against a hub of our own: what arrives there, and what is refused before anything is sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import ModelCard

from app.embedded.cache import MODELS
from app.publish.licences import EMBEDDED_MODELS, training_data
from jobs.config import strict_yaml
from jobs.config.terms import OF_EMBEDDED
from jobs.runs.rundir import RunDir
from tests.app.fakes.command_line import Command
from tests.app.fakes.fake_hub import REPO, Hub, hub_server
from tests.app.fakes.finished_run import FINAL, SECTION, scored, write

TOKEN = "hf_geheim77"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with hub_server(TOKEN) as found:
        found.lfs = True
        for name, value in (("HF_ENDPOINT", found.url), ("HF_TOKEN", ""), ("HF_TOKEN_FILE", str(tmp_path / "token"))):
            monkeypatch.setenv(name, value)
        (tmp_path / "token").write_text(TOKEN + "\n")
        yield found


def publish(command: Command, runs: Path, *words: str, to: str = REPO) -> Any:
    return command("publish", "stage3b", "--runs-dir", runs, "--to", to, *words)


def test_a_run_arrives_whole_in_one_commit_with_its_tag(hub: Hub, command: Command, tmp_path: Path) -> None:
    run = write(tmp_path, "stage3b", init_runs={"stage3a": "stage3a/20261122-200000"})
    write(
        tmp_path,
        "stage4",
        evaluations=[*scored("prefix", "bidirectional"), {**scored("causal")[0], "model_run": "stage3b/another"}],
    )
    hub.exists = False
    said = publish(command, tmp_path, "--private").fine()
    assert (hub.commits, hub.tags, hub.private, hub.puts) == (1, ["stage3b-20261122-234501"], True, 1)
    sent = {name: content for name, content in hub.files.items() if name != "README.md"}
    assert sent == {**{name: content for name, content in FINAL.items() if not name.startswith(("adapter", "README"))},
                    **{f"run/{name}": (run.path / name).read_bytes() for name in
                       ("stage.yaml", "environment.json", "metrics.json", "summary.json")}}  # fmt: skip
    assert f"{hub.url}/{REPO}/tree/stage3b-20261122-234501" in said
    card = ModelCard(hub.files["README.md"].decode())
    macro = next(one for one in card.data.eval_results if one.dataset_type == "macro")
    assert macro.metric_value == pytest.approx(0.4876986760974715) and macro.metric_args["ci95"][0] == pytest.approx(
        0.4726661829359212
    )
    assert {one.metric_args["mask"] for one in card.data.eval_results} == {"prefix"}  # a leaking score is no result
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert card.data.datasets == ["allenai/sciq", "google/boolq"]
    for words in ("# The title", "| prefix | 0.488 [0.473, 0.502] | 0.406 [0.396, 0.416] |", "bidirectional (**LEAKS the answer**)",
                  "allenai/sciq: licence cc-by-nc-3.0", "before that, what run stage3a/20261122-200000 was trained on", f'custom_generate="{REPO}"', "no score under causal, segment",
                  "| commit | 0123456789abcdef |"):  # fmt: skip
        assert words in card.content
    assert "of this machine" not in card.content


def test_an_upload_that_was_cut_off_goes_on_without_sending_weights_again(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    write(tmp_path, "stage3b")
    hub.broken = 1
    line = publish(command, tmp_path).refused(
        "the hub did not take it", "goes on where it stopped", alone=False
    )  # behind a bar
    assert "geheim" not in line and (hub.files, hub.puts) == ({}, 1)
    publish(command, tmp_path).fine()
    assert (hub.commits, hub.puts) == (1, 1)
    hub.files["old.bin"] = b"of an earlier run"
    publish(command, tmp_path).fine()  # a newer run takes the place of an older one on the main branch
    assert "old.bin" not in hub.files and hub.puts == 1


def test_no_path_and_no_store_of_this_machine_is_published(
    hub: Hub, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, rows = tmp_path / "alice", tmp_path / "alice/rows.jsonl"
    monkeypatch.setenv("HOME", str(home))
    vocabulary = json.dumps({str(home): 7}).encode()
    for name, content in {"config.json": json.dumps({"prefill": {"data": str(rows)}}).encode(), "tokenizer.json": vocabulary,
                          "README.md": f"---\nx: y\n---\n- data: {rows}, {home}/other\n".encode()}.items():  # fmt: skip
        monkeypatch.setitem(FINAL, name, content)
    monkeypatch.setitem(SECTION, "data", {"source": str(rows)})
    write(tmp_path, "stage3b", sets=(f"data.train={{source: path, path: {rows}, format: alpaca}}", "artifacts=s3://alice/runs",
          "model.source=gguf", "model.name=~/weights/model.gguf", f"data.eval={{source: path, path: {home}/sets}}"))  # fmt: skip
    publish(command, tmp_path, "--license", "mit").fine()
    assert hub.files.pop("tokenizer.json") == vocabulary
    assert {name for name, content in hub.files.items() if b"alice" in content or b"weights/model" in content} == set()
    profile = strict_yaml.parse(hub.files["run/stage.yaml"].decode(), "stage.yaml")["profile"]
    assert (profile["model"]["name"], profile["data"]["train"]["path"], profile["data"]["eval"]["path"], profile["artifacts"]) == (
        "model.gguf", "rows.jsonl", "sets", "runs")  # fmt: skip
    assert json.loads(hub.files["config.json"])["prefill"]["data"] == "rows.jsonl"
    assert json.loads(hub.files["run/metrics.json"])["train"]["data"]["source"] == "rows.jsonl"
    card = ModelCard(hub.files["README.md"].decode())
    assert "- data: rows.jsonl, ~/other" in card.content and card.data.base_model is None


def test_a_place_without_a_name_is_no_reason_to_change_a_text(
    hub: Hub, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a user without a home in a container it is the root, and data may be in the current directory."""
    monkeypatch.setenv("HOME", "/")
    template = json.dumps({"chat_template": "{{ loop.index0 / 2 }} . {{ '/' }}"}).encode()
    monkeypatch.setitem(FINAL, "tokenizer_config.json", template)
    write(tmp_path, "stage3b", sets=("data.train={source: path, path: ., format: alpaca}",))
    publish(command, tmp_path).fine()
    assert hub.files["tokenizer_config.json"] == template


def test_what_is_made_from_gemma_goes_under_its_terms(hub: Hub, command: Command, tmp_path: Path) -> None:
    write(tmp_path, "stage3b", sets=("model.name=gemma-3-270m",))
    publish(command, tmp_path).fine()
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("gemma", "google/gemma-3-270m")
    assert b"subject to the Gemma Terms of Use (https://ai.google.dev/gemma/terms)" in hub.files["NOTICE"]
    assert OF_EMBEDDED.keys() <= EMBEDDED_MODELS.keys() == MODELS.keys()


def test_a_dry_run_sends_nothing_and_needs_no_token(
    hub: Hub, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "stage3b")
    monkeypatch.delenv("HF_TOKEN_FILE")
    publish(command, tmp_path).refused("HF_TOKEN", "is not set")
    said = publish(command, tmp_path, "--dry-run").fine()
    assert "          5,000  model.safetensors" in said and "run/stage.yaml" in said and hub.commits == 0
    assert (tmp_path / "publish/stage3b-20261122-234501.md").read_text().startswith("---\n")
    assert RunDir.open(tmp_path / "stage3b/20261122-234501").verify() == []
    shutil.rmtree(tmp_path / "publish")
    (tmp_path / "publish").write_text("precious")
    publish(command, tmp_path, "--dry-run").refused("publish: cannot be written: File exists", alone=False)
    assert (tmp_path / "publish").read_text() == "precious"


def test_what_must_not_be_published_is_refused_before_anything_is_sent(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    def refused(*words: str, given: tuple[str, ...] = (), **how: Any) -> None:
        runs = tmp_path / str(len(list(tmp_path.iterdir())))
        write(runs, "stage3b", **how)
        publish(command, runs, *given).refused(*words)

    refused("differs from its commit", "FORCE=1", commit="0123456789abcdef+dirty")
    refused("in no commit", commit=None)
    refused("fits the weights of a model of source embedded", given=("--adapter",))
    refused("is under apache-2.0", given=("--license", "mit"))
    hub.licences = {"them/nd": "cc-by-nc-nd-4.0", "them/odd": "other"}
    hubs = ("model.source=hub", "model.name=them/nd")
    refused("them/nd", "cc-by-nc-nd-4.0 forbids", sets=hubs)
    refused("them/odd", "licence is not known", sets=("model.source=hub", "model.name=them/odd"))
    refused("them/gone", "licence is not known", sets=("model.source=hub", "model.name=them/gone"))
    runs = tmp_path / "leaks"
    write(runs, "stage3b")
    write(runs, "stage4", evaluations=scored("bidirectional"))
    publish(command, runs).refused("leak the answer", "make stage4")
    (runs / "stage3b/20261122-234501/final/model.safetensors").write_bytes(b"other")
    publish(command, runs).refused("expected 5000 bytes, found 5")
    publish(command, runs, to="no-owner").refused("--to", "OWNER/NAME")
    write(tmp_path / "half", "stage3b", complete=False)
    command("publish", "stage3b/20261122-234501", "--runs-dir", tmp_path / "half", "--to", REPO).refused(
        "is interrupted"
    )
    command("publish", "stage9", "--runs-dir", runs, "--to", REPO).refused("stage9", "no such run")
    assert hub.commits == hub.puts == 0


def test_the_licence_of_an_odd_model_is_the_user_s_own_reading(hub: Hub, command: Command, tmp_path: Path) -> None:
    hub.licences = {"them/odd": "other"}
    write(tmp_path, "stage3b", commit="0123+dirty", sets=("model.source=hub", "model.name=them/odd"))
    publish(command, tmp_path, "--license", "their-licence", "--force").fine()
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("their-licence", "them/odd") and "0123+dirty" in card.content


def test_a_suite_s_sets_stand_in_the_card_in_place_of_the_profile_s() -> None:
    hub = {"source": "hub", "name": "them/data"}
    suite = {"data": {"format": "suite", "kept_by_set": {"boolq": 3, "lookup_4_1": 5, "new": 1}}}
    assert training_data(hub, suite, lambda *_: "mit") == [
        ("boolq", "google/boolq", "cc-by-sa-3.0"), ("lookup_4_1", None, "none: generated by the code of the run"),
        ("new", None, "unknown")]  # fmt: skip
    assert training_data(hub, {"data": {"format": "alpaca"}}, lambda *_: "mit") == [("them/data", "them/data", "mit")]
    assert training_data({"source": "path"}, {"data": {}}, lambda *_: None) == [("a local file", None, "unknown")]


def test_an_adapter_goes_alone_with_the_name_of_its_base(hub: Hub, command: Command, tmp_path: Path) -> None:
    hub.licences = {"them/model": "mit"}
    write(tmp_path, "stage3b", sets=("model.source=hub", "model.name=them/model"))
    publish(command, tmp_path, "--adapter").fine()
    assert json.loads(hub.files["adapter_config.json"]) == {
        "base_model_name_or_path": "them/model",
        "r": 8,
        "revision": None,
    }
    assert hub.files["adapter_model.safetensors"] == b"a" * 700
    assert not {"model.safetensors", "config.json"} & set(hub.files) and "tokenizer.json" in hub.files
    assert ModelCard(hub.files["README.md"].decode()).data.library_name == "peft"


def test_what_shall_be_private_is_not_sent_into_a_repository_that_is_public(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    write(tmp_path, "stage3b")
    publish(command, tmp_path, "--private").refused("exists and is public", "make it private on the hub")
    assert hub.commits == hub.puts == 0
    hub.private = True
    publish(command, tmp_path, "--private").fine()
    assert hub.commits == 1


def test_a_repository_of_somebody_s_is_left_alone(hub: Hub, command: Command, tmp_path: Path) -> None:
    write(tmp_path, "stage3b")
    hub.files = {".gitattributes": b"", "theirs.bin": b"x"}
    publish(command, tmp_path).refused("holds something else, such as theirs.bin")
    assert hub.files == {".gitattributes": b"", "theirs.bin": b"x"} and hub.puts == 0


def test_a_wrong_token_is_not_shown(hub: Hub, command: Command, tmp_path: Path) -> None:
    write(tmp_path, "stage3b")
    (tmp_path / "token").write_text("hf_geheim78")
    said = publish(command, tmp_path)
    said.refused("the hub did not take it", "401")
    assert "geheim" not in said.out + said.err and hub.commits == 0


def test_each_source_of_a_mixture_is_named_with_its_licence() -> None:
    sources = [{"source": "embedded"}, {"source": "hub", "name": "me/set"}, {"source": "path", "path": "a.jsonl"}]
    section = {"data": {"sources": [{"kept_by_set": {"sciq": 3}}, {}, {}]}}
    found = training_data(sources, section, lambda kind, name: "mit")
    assert [(name, licence) for name, _, licence in found] == [
        ("sciq", found[0][2]), ("me/set", "mit"), ("a local file", "unknown")]  # fmt: skip
    assert found[0][2] != "unknown"
