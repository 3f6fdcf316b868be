"""As tests/test_fuzz.py: the YAML files that a job or a command names, and directories of runs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.data import reading
from app.report.run_list import list_rows
from app.scoring.samples import read_prompts
from jobs.config import campaign, load, strict_yaml
from jobs.config.job import Job
from jobs.config.load import JOBS_DIR, resolve
from jobs.config.suites import read_suite
from jobs.errors import UserError
from jobs.runs.rundir import STOPPED, RunDir, latest_complete, latest_in, list_runs, resolve_init
from tests.fuzzing import SHALLOW, directory, edited, fuzzed, little_stack, one_line
from vast import policy
from vast.marketplace import ssh_hosts


@pytest.fixture(autouse=True, scope="module")
def stages_read_once() -> Iterator[None]:
    """The shipped stages and the default policy are not what is fuzzed, and to read them takes most of the time."""
    read, default = strict_yaml.read, strict_yaml.read(policy.DEFAULT, "vast/policy.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_yaml, "read", lambda path, where: default if path == policy.DEFAULT else read(path, where))
        patch.setattr(load, "_stage_layer", functools.cache(load._stage_layer))
        yield


# ---- YAML ------------------------------------------------------------------------------------------------------------


def files(directory: str) -> list[bytes]:
    """The shipped files, without comments."""
    return [
        re.sub(rb"(?m)^ *#.*\n| +#.*$", b"", path.read_bytes())
        for path in sorted((JOBS_DIR / directory).glob("*.yaml"))
    ]


PROFILES = files("profiles")


@fuzzed
@given(
    edited(
        [
            *PROFILES,
            b"model: {source: embedded}\ndata: {eval: {source: embedded}, train: {source: embedded, format: qa}}\n",
        ]
    )
)
def test_a_profile_is_read_or_refused(text: bytes) -> None:
    with directory() as place:
        path = place / "mine.yaml"
        path.write_bytes(text)
        try:
            job = resolve("stage3b", str(path))
        except UserError as error:
            one_line(error)
        else:
            record = strict_yaml.parse(strict_yaml.dump(job.record({"base": "base"})), "record")
            assert Job.from_dict(record) == job and len(record["fingerprint"]) == 64


@fuzzed
@given(
    st.text(max_size=30)
    | edited([b"train.max_steps=20", b"score.masks=[prefix]"]).map(lambda b: b.decode("utf-8", "surrogateescape"))
)
def test_a_setting_is_read_or_refused(text: str) -> None:
    with little_stack():
        try:
            resolve("stage3b", "ci", sets=[text])
        except UserError as error:
            one_line(error)


# Without its comments, which are most of it and of the time to read it.
POLICY = re.sub(rb"(?m)^ *#.*\n| +#.*$", b"", policy.DEFAULT.read_bytes())


SECTIONS = re.split(rb"\n(?=[a-z])", POLICY)


@fuzzed
@given(edited([*SECTIONS, b"caps: {dollars: 5, hours: 3}\n", b"hooks: {}\n"]))
def test_a_policy_is_read_or_refused(text: bytes) -> None:
    with directory() as place:
        path = place / "policy.yaml"
        path.write_bytes(text)
        try:
            found = policy.load(path)
        except UserError as error:
            one_line(error)
            return
        path.write_text(policy.text(found))
        assert policy.load(path) == found


# ---- other files that a job names ------------------------------------------------------------------------------------


def read_own_suite(path: Path) -> None:
    """The suite, and a row of each of its reading tasks as text: their templates are the file's own."""
    suite = read_suite(path.stem, directory=path.parent)
    row = {"question": "a", "passage": "b", "choices": {"text": ["c", "d"], "label": ["A", "B"]}, "answerKey": "A"}
    for name, task in suite.reading.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "_rows", lambda root, task: [("", 0, row)])
            list(reading.read(name, task, suite.orders[0], path.parent))


def read_own_recipe(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_recipe_layers", functools.partial(load._recipe_layers, directory=path.parent))
        resolve("stage3b", "ci", sets=[f"recipe={path.stem}"])


def read_own_campaign(path: Path) -> None:
    found, where = campaign.read_campaign(str(path))
    if len(found.suites) * len(found.recipes) * len(found.masks) * len(found.seeds) <= 4:
        campaign.cells(found, where)


KINDS: dict[str, tuple[Callable[[Path], object], list[bytes]]] = {
    "suite": (read_own_suite, [*files("suites"), b"title: a\norders: [context_first]\nreading:\n  own:\n    directory: a\n    context: '{{passage}}'\n"
                               b"    question: '{{question}}'\n    choices: choices.text\n    target: choices.label.index(answerKey)\n"]),
    "recipe": (read_own_recipe, files("recipes")),
    "campaign": (read_own_campaign, files("campaigns")),
    "hosts": (ssh_hosts.load, [b"key: ~/.ssh/id\nmachines:\n- {address: a.example, port: 22, gpu: H100, gpus: 1, memory_gb: 80}\n"]),
    "prompts": (read_prompts, files("prompts")),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_is_read_or_refused(kind: str) -> None:
    read, seeds = KINDS[kind]

    @fuzzed
    @given(edited(seeds, SHALLOW))
    def each(text: bytes) -> None:
        with directory() as place:
            (place / "mine.yaml").write_bytes(text)
            try:
                read(place / "mine.yaml")
            except UserError as error:
                one_line(error)

    each()


# ---- run directories -------------------------------------------------------------------------------------------------


def whole_run(stage: str) -> dict[str, bytes]:
    """The files of a complete run, as they are written."""
    with directory() as place:
        with RunDir.create(place, stage, datetime(2026, 11, 22, tzinfo=UTC)) as run:
            run.write_job(resolve(stage, "ci").record({"base": "base"}))
            run.write_json("metrics.json", {"schema": 1, "evaluations": []})
            run.heartbeat(1, 2, 0.5, 10.0, "train")
            run.append_jsonl("train_log.jsonl", {"step": 1, "loss": 2.0})
            run.fail(1, "an error")
            (run.path / "attempts.jsonl").write_bytes((run.path / "failed.json").read_bytes())
            failed = (run.path / "failed.json").read_bytes()
            run.complete(
                {
                    "started": "2026-11-22T00:00:00",
                    "finished": "2026-11-22T00:00:01",
                    "seconds": 1.0,
                    "headline": {"a": 0.5},
                }
            )
        return {path.name: path.read_bytes() for path in run.path.iterdir()} | {"failed.json": failed}


WHOLE = {stage: whole_run(stage) for stage in ("stage1", "stage3b")}
FILES = sorted(WHOLE["stage1"])
STAGE1, STAGE4 = resolve("stage1", "ci"), resolve("stage4", "ci", sets=["init_from=stage3b"])


@fuzzed
@given(st.dictionaries(st.sampled_from(FILES), st.none() | edited([b"", b"{}", *WHOLE["stage1"].values()]), max_size=4), st.sampled_from(sorted(WHOLE)),
       st.sampled_from(["20261122-000000", "20261122-000000-2", "99999999-999999", "20261122", ".tmp"]))  # fmt: skip
@example({"stage.yaml": WHOLE["stage1"]["summary.json"], "summary.json": None}, "stage1", "20261122-000000")
@example({"stage.yaml": b"{}"}, "stage3b", "20261122-000000")
@example({"summary.json": b"{}"}, "stage3b", "20261122-000000")
def test_a_run_s_directory_is_read_or_refused_and_left_as_it_is(
    changed: dict[str, bytes | None], stage: str, name: str
) -> None:
    with directory() as runs:
        path = runs / stage / name
        path.mkdir(parents=True)
        for file, content in (WHOLE[stage] | changed).items():
            if content is not None:
                (path / file).write_bytes(content)
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        fingerprint = STAGE1.fingerprint({"base": "base"})
        for look in (
            lambda: [(run.state(), run.verify()) for run in list_runs(runs)],
            lambda: [run.read_metrics() for run in list_runs(runs)],
            lambda: [run.read_jsonl("train_log.jsonl") for run in list_runs(runs)],
            lambda: [Job.from_dict(run.read_job(), "stage.yaml") for run in list_runs(runs)],
            lambda: latest_complete(runs, "stage1", "ci", fingerprint),
            lambda: latest_in(runs, "stage1", fingerprint, *STOPPED),
            lambda: resolve_init(runs, STAGE4),
            lambda: list_rows(runs),
        ):
            try:
                look()
            except UserError as error:
                one_line(error)
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
