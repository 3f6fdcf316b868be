"""Remedies of stages, profiles, options and estimates: jobs/config, jobs/estimate, jobs/health."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace

from jobs.config.job import Job
from jobs.config.load import resolve
from jobs.errors import full_output, wrong_python
from jobs.estimate.gpus import gpu_named
from jobs.health import limits
from tests.remedies.cases import Action, World, not_run, remedy

Steps = Iterator[Action | None]
LOAD, SCHEMA, PROFILE, YAML, VALIDATE = (
    f"jobs/config/{name}.py" for name in ("load", "schema", "profile", "strict_yaml", "validate")
)


def sets(*pairs: str, stage: str = "stage3b", profile: str = "ci") -> Action:
    return lambda: resolve(stage, profile, sets=pairs)


def meant(remedy: str) -> str:
    """The name in `did you mean "NAME"?`."""
    return remedy.split('did you mean "')[1].split('"')[0]


@remedy(LOAD, "<nearest(stage, stage_names(jobs_dir))>")
def _(w: World) -> Steps:
    yield sets(stage="stage3bb")
    yield sets(stage=meant(w.remedy))


@remedy(LOAD, "<nearest(name, stage_names(jobs_dir))>")
def _(w: World) -> Steps:
    def mine(stage: str) -> Action:
        text = f"model: {{source: embedded}}\ndata: {{eval: {{source: embedded}}, train: {{source: embedded, format: qa}}}}\nstages: {{{stage}: {{train: {{max_steps: 2}}}}}}\n"
        return lambda: resolve("stage3b", str(w.write("mine.yaml", text)))

    yield mine("stage3bb")
    yield mine(meant(w.remedy))


@remedy(LOAD, "<nearest(name, ['base', *trained])>")
def _(w: World) -> Steps:
    yield sets("init_from=stage3bb", stage="stage4")
    yield sets(f"init_from={meant(w.remedy)}", stage="stage4")


@remedy(LOAD, "<nearest(steps[0], known)>")
def _(w: World) -> Steps:
    yield sets("sed=1")
    yield sets(f"{meant(w.remedy)}=1")


@remedy(LOAD, "{}, or the path of a YAML file")
def _(w: World) -> Steps:
    yield sets(profile="cii")
    yield sets(profile=meant(w.remedy))
    w.write("mine.yaml", Path("jobs/profiles/ci.yaml").read_text().replace("name: ci", "name: mine"))
    yield sets(profile=str(w.path("mine.yaml")))


@remedy(LOAD, "write it, or name one of {}")
def _(w: World) -> Steps:
    yield sets(profile=str(w.path("mine.yaml")))
    yield sets(profile=w.remedy.rpartition(" ")[2])
    w.write("mine.yaml", Path("jobs/profiles/ci.yaml").read_text())
    yield None


def own_jobs(w: World) -> Path:
    for path in Path("jobs").rglob("*.yaml"):
        w.write(str(path), path.read_text())
    return w.path("jobs")


@remedy(LOAD, "copy the file to another name and remove its line name")
def _(w: World) -> Steps:
    there = own_jobs(w)
    yield lambda: resolve("stage1", "ci", sets=["name=mine"], jobs_dir=there)
    w.write("jobs/mine.yaml", (there / "stage1.yaml").read_text().replace("name: stage1\n", ""))
    yield lambda: resolve("mine", "ci", jobs_dir=there)


@remedy(LOAD, "remove it")
def _(w: World) -> Steps:
    there = own_jobs(w)
    text = (there / "stage1.yaml").read_text()
    w.write("jobs/mine.yaml", text)
    yield lambda: resolve("mine", "ci", jobs_dir=there)
    w.write("jobs/mine.yaml", text.replace("name: stage1\n", ""))
    yield None


@remedy(LOAD, "did you mean {}? known: {}")
def _(w: World) -> Steps:
    yield sets("max_steps=20")
    yield sets(f"{meant(w.remedy)}=20")


@remedy(LOAD, "for example --set train.max_steps=20")
def _(w: World) -> Steps:
    yield sets("train.max_steps")
    yield sets(w.remedy.rpartition(" ")[2])


@remedy(LOAD, "see {}")
def _(w: World) -> Steps:
    yield sets("train.max_steps=2", stage="stage1")
    assert Path(w.remedy.removeprefix("see ")).is_file()
    yield sets("train.max_steps=2", stage="stage3b")


@remedy(LOAD, "name a stage with a section train")
def _(w: World) -> Steps:
    yield sets("init_from=stage1", stage="stage4")
    yield sets("init_from=stage3b", stage="stage4")


@remedy("jobs/config/job.py", "is this the stage.yaml of a run?")
def _(w: World) -> Steps:
    yield lambda: Job.from_dict({"train": {}}, "mine.yaml")
    yield lambda: Job.from_dict(resolve("stage1", "ci").record({"base": "base"}), "stage.yaml")


# ---- values ----------------------------------------------------------------------------------------------------------


@remedy(PROFILE, "add config.model_type")
def _(w: World) -> Steps:
    yield sets("model={source: random, config: {vocab_size: 9}}", profile="embedded")
    yield sets("model={source: random, config: {vocab_size: 9, model_type: llama}}", profile="embedded")


@remedy(SCHEMA, "score them in a stage without train")
def _(w: World) -> Steps:
    yield sets("init_from=[base, stage3a]")
    yield sets("init_from=[base, stage3a]", stage="stage4")


@remedy(PROFILE, "use auto, sdpa, eager or flex_attention")
def _(w: World) -> Steps:
    yield sets("model.attention=flash_attention_2")
    for name in ("auto", "sdpa", "eager", "flex_attention"):
        yield sets(f"model.attention={name}")


@remedy(SCHEMA, "use prefix: the prompt is bidirectional, the response causal")
def _(w: World) -> Steps:
    yield sets("train.mask=bidirectional")
    yield sets("train.mask=prefix")


@remedy(VALIDATE, "<details['ctx']['remedy']>")
def _(w: World) -> Steps:
    yield sets("train.mask=bidirectional")
    yield sets("train.mask=prefix")


@remedy(VALIDATE, "<nearest(path[-1], keys_at(model, path[:-1]))>")
def _(w: World) -> Steps:
    yield sets("train.max_step=20")
    yield sets(f"train.{meant(w.remedy)}=20")


@remedy(VALIDATE, "<remedy_for(found, variants(schema_at(model, path), model))>")
def _(w: World) -> Steps:
    yield sets("train.max_steps=2k")
    yield sets(f"train.max_steps={w.remedy.removeprefix('write ')}")
    for wrong, right in (("train.max_steps='20'", "train.max_steps=20"), ("train.mask=prefx", "train.mask=prefix")):
        try:
            sets(wrong)()
        except ValueError as error:
            assert error.remedy in ("remove the quotes", 'did you mean "prefix"?')  # type: ignore[attr-defined]
        yield sets(right)


not_run("empty: the fact says what is expected", (VALIDATE, ""))


# ---- estimates and the rest ------------------------------------------------------------------------------------------


@remedy("jobs/estimate/gpus.py", "<nearest(text.upper(), gpu_names())>")
def _(w: World) -> Steps:
    yield lambda: gpu_named("RTX_4099")
    yield lambda: gpu_named(meant(w.remedy))


@remedy("jobs/estimate/gpus.py", "name it {}")
def _(w: World) -> Steps:
    yield lambda: gpu_named("RTX_4090-80GB")
    yield lambda: gpu_named(w.remedy.removeprefix("name it "))


@remedy("app/commands/estimate.py", "<found.remedy>")
def _(w: World) -> Steps:
    words = ("estimate", "stage5b", "--profile", "ministral-3b", "--gpu", "A100-40GB")
    yield lambda: w.cli(*words)
    yield lambda: w.cli(*words, *(word for one in w.sets for word in ("--set", one)))


@remedy("jobs/health.py", "correct it, or unset it for {}")
def _(w: World) -> Steps:
    yield lambda: limits("soon")
    yield lambda: limits("60")
    yield lambda: limits(None)


@remedy("jobs/errors.py", "free some space, or write it elsewhere")
def _(w: World) -> Steps:
    def shown(path: Path) -> None:
        output = path.open("w")
        try:
            with redirect_stdout(output):
                print("a line", flush=True)
        except OSError as error:
            with redirect_stdout(output):
                raise full_output(error) from None
        finally:
            with suppress(OSError):
                output.close()

    yield lambda: shown(Path("/dev/full"))
    yield lambda: shown(w.path("out.txt"))


@remedy(
    "jobs/errors.py", "use .venv/bin/python, which make setup makes, or install requirements/base.lock with this one"
)
def _(w: World) -> Steps:
    def started(missing: str = "") -> None:
        if missing:
            raise wrong_python(ModuleNotFoundError(f"No module named {missing!r}", name=missing))

    assert "requirements/base.lock" in Path("Makefile").read_text() and Path("requirements/base.lock").is_file()
    yield lambda: started("torch")
    yield lambda: started()  # this interpreter, which has them


@remedy("app/commands/run.py", "leave it out")
def _(w: World) -> Steps:
    from app.commands.run import _sets_by_stage

    yield lambda: _sets_by_stage(["stage1", "stage2"], "ci", ["train.max_steps=2"])
    yield lambda: _sets_by_stage(["stage1", "stage2"], "ci", [])


@remedy("app/commands/run.py", "name it once; --force repeats a complete stage")
def _(w: World) -> Steps:
    from app.commands.run import _sets_by_stage

    yield lambda: _sets_by_stage(["stage1", "stage1"], "ci", [])
    yield lambda: _sets_by_stage(["stage1"], "ci", [])
    w.start()
    assert not w.start().ran
    yield lambda: None if w.start(force=True).ran else 1 / 0


@remedy("app/commands/run.py", "stages: {}")
def _(w: World) -> Steps:
    yield lambda: w.cli("check")
    yield lambda: w.cli("check", w.remedy.removeprefix("stages: ").split(", ")[0])
    yield lambda: w.cli("check", "--all")


@remedy("app/commands/harness.py", "give one, such as --tasks sciq")
def _(w: World) -> Steps:
    from lm_eval import tasks

    assert (Path(tasks.__file__).parent / "sciq" / "sciq.yaml").is_file()
    yield lambda: w.cli("harness", "--tasks", ",", "--mask", "prefix")
    w.patch.setattr("app.harness.tasks.build", lambda *_: [])
    w.patch.setattr("app.harness.tasks.manager", lambda *_: None)
    w.patch.setattr("app.harness.model.PrefillLM", lambda *_, **__: FakeLM())
    w.patch.setattr("app.harness.tasks.evaluate", lambda *_, **__: {})
    yield lambda: w.cli("harness", "--tasks", "sciq", "--mask", "prefix")


class FakeLM:
    def __init__(self) -> None:
        self.counts, self.leaks, self.loaded = {"contexts_truncated": 0}, False, SimpleNamespace(origin="a model")


@remedy("app/__main__.py", "start it without a launcher")
def _(w: World) -> Steps:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}.items():
        w.patch.setenv(name, value)
    yield lambda: w.cli("check", "stage1")
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        w.patch.delenv(name)
    yield None


@remedy("app/runtime/ranks.py", "unset WORLD_SIZE, or start it with `accelerate launch`, which sets all of them")
def _(w: World) -> Steps:
    from accelerate.utils import launch

    from app.runtime.ranks import launched

    environ = {"WORLD_SIZE": "2"}
    yield lambda: launched(environ)
    yield lambda: launched({})
    assert all(name in Path(launch.__file__).read_text() for name in ("WORLD_SIZE", "MASTER_ADDR"))
    yield lambda: launched({**environ, "RANK": "1", "MASTER_ADDR": "localhost"})


@remedy("app/runtime/ranks.py", "set gpus: {}")
def _(w: World) -> Steps:
    from app.runtime.ranks import require_gpus

    yield lambda: require_gpus(4, 2)
    yield lambda: require_gpus(int(w.remedy.removeprefix("set gpus: ")), 2)


@remedy(PROFILE, "give each source a weight", "give each source a weight, or none of them")
def _(w: World) -> Steps:
    streams = ", streaming: true" if w.text.endswith("a weight") else ""

    def two(first: str, second: str) -> Action:
        one = "{{source: path, path: {}.jsonl, format: alpaca{}}}"
        return lambda: resolve(
            "stage3b", "ci", sets=[f"data.train=[{one.format('a', first + streams)}, {one.format('b', second)}]"]
        )

    yield two("", "") if streams else two(", weight: 1", "")
    yield two(", weight: 1", ", weight: 2")
    if not streams:
        yield two("", "")


@remedy(PROFILE, "give it a larger weight")
def _(w: World) -> Steps:
    one = "{source: path, path: a.jsonl, format: alpaca"
    other = "{source: path, path: b.jsonl, format: alpaca, weight: 1}"
    yield lambda: resolve("stage3b", "ci", sets=[f"data.train=[{one}}}, {one}}}]"])
    yield lambda: resolve("stage3b", "ci", sets=[f"data.train=[{one}, weight: 2}}, {other}]"])


@remedy(PROFILE, "leave it out")
def _(w: World) -> Steps:
    one = "source: path, path: a.jsonl, format: alpaca"
    yield lambda: resolve("stage3b", "ci", sets=[f"data.train={{{one}, weight: 2}}"])
    yield lambda: resolve("stage3b", "ci", sets=[f"data.train={{{one}}}"])


@remedy(PROFILE, "leave streaming out, or this")
def _(w: World) -> Steps:
    yield lambda: resolve(
        "stage3b", "ci", sets=["data.train={source: path, path: a.jsonl, format: alpaca, streaming: true}"]
    )
    yield lambda: resolve("stage3b", "ci", sets=["data.train={source: path, path: a.jsonl, format: alpaca}"])
    yield lambda: resolve(
        "stage3b", "ci", sets=["data.train={source: path, path: a.jsonl, format: alpaca, streaming: true, limit: null}"]
    )


@remedy("jobs/errors.py", "write the whole path")
def _(w: World) -> Steps:
    w.write("mine.yaml", Path("jobs/profiles/ci.yaml").read_text())
    yield lambda: resolve("stage1", "~nobody-of-this-name/mine.yaml")
    yield lambda: resolve("stage1", str(w.path("mine.yaml")))
