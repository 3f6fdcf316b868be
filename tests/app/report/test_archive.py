"""What docs/results keeps of a campaign: small, and the report made of it is that of the whole runs directory."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from app.report.archive import collect, kept, rebuild, unpacked
from app.report.render import build_report
from jobs.errors import DataError, RunStateError
from jobs.runs.rundir import list_runs
from tests.app.fakes.synthetic_runs import write_cells, write_run
from tests.app.report.test_campaign import declare

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    write_cells(path, recipes=("full",))
    write_run(path, "stage2", minute=3)  # of no campaign
    record = declare(path, recipe="full")
    listed = [{"run": run.id} for run in list_runs(path) if run.stage != "stage2"]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"runs": listed, "settings": {"title": "Mine"}}))
    return path


@pytest.fixture(scope="module")
def results_dir(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results")
    (runs_dir / "samples.txt").write_text("Why is the sky blue?")
    collect(runs_dir, "mine", path)
    return path


def close(mine: str, theirs: str) -> bool:
    """Whether two texts differ in the last digits of their numbers alone."""
    number = re.compile(r"(?<![\w.])\d+\.\d+")
    if number.sub("#", mine) != number.sub("#", theirs):
        return False
    return all(
        abs(float(a) - float(b)) <= 2e-3 for a, b in zip(number.findall(mine), number.findall(theirs), strict=True)
    )


def test_the_report_of_what_is_kept_is_that_of_the_runs(runs_dir: Path, results_dir: Path) -> None:
    whole = build_report(runs_dir).to_markdown()
    _, (written, *_) = rebuild(results_dir, ["mine"])
    assert written == results_dir / "mine" / "embedded.md"
    assert close(written.read_text(), whole)
    assert "primary (gold nll)" in whole and "(0, 1" not in whole


def test_only_the_campaigns_runs_are_kept_small_and_without_names_of_machines(
    runs_dir: Path, results_dir: Path
) -> None:
    assert kept(results_dir) == ["mine"]
    with unpacked(results_dir / "mine") as found:
        assert {run.stage for run in list_runs(found)} == {"stage1", "cell"}
        environments = [json.loads((run.path / "environment.json").read_text()) for run in list_runs(found)]
        assert all(one["commit"] == "0123456789abcdef" and "platform" not in one for one in environments)
        assert max(len((run.path / "train_log.jsonl").read_text().splitlines()) for run in list_runs(found)) <= 60
    whole = sum(path.stat().st_size for path in runs_dir.rglob("samples.jsonl"))
    assert (results_dir / "mine" / "runs.tar.xz").stat().st_size < whole / 10
    assert (results_dir / "mine" / "samples.txt").read_text() == "Why is the sky blue?"
    assert "title: Mine" in (results_dir / "mine" / "campaign.yaml").read_text()


def test_the_same_runs_give_the_same_bytes(runs_dir: Path, results_dir: Path, tmp_path: Path) -> None:
    again = collect(runs_dir, "mine", tmp_path)
    assert (again / "runs.tar.xz").read_bytes() == (results_dir / "mine" / "runs.tar.xz").read_bytes()


def test_what_is_kept_is_collected_again_to_the_same_bytes(results_dir: Path, tmp_path: Path) -> None:
    """A campaign goes on in what was kept of it; the items of its first runs are those of its next ones."""
    with unpacked(results_dir / "mine") as found:
        again = collect(found, "mine", tmp_path)
    assert (again / "runs.tar.xz").read_bytes() == (results_dir / "mine" / "runs.tar.xz").read_bytes()


def test_a_run_of_an_archive_stands_beside_one_with_samples(runs_dir: Path, results_dir: Path) -> None:
    """Its items are known by their digest alone."""
    with unpacked(results_dir / "mine") as found:
        whole = next(run for run in list_runs(runs_dir) if run.stage == "stage1")
        shutil.copytree(whole.path, found / "stage1" / "20260102-040405")
        report = build_report(found, compare=(whole.id, "stage1/20260102-040405"))
    assert "within noise" in report.to_markdown()


def test_a_campaign_that_goes_on_in_an_archive_has_all_of_its_seeds(runs_dir: Path, results_dir: Path) -> None:
    """Runs of seed 0 are known by their digest alone, those of seed 1 have samples."""
    with unpacked(results_dir / "mine") as found:
        for run in list_runs(runs_dir):
            if run.stage == "cell" and run.read_job()["stage"].get("seed") == 1:
                shutil.rmtree(found / run.id)
                shutil.copytree(run.path, found / run.id)
        mixed = build_report(found).to_markdown()
    assert close(mixed, build_report(runs_dir).to_markdown())


def test_items_with_other_content_are_still_other_items(runs_dir: Path, tmp_path: Path) -> None:
    write_cells(tmp_path / "other", recipes=("full",), seeds=(0,), changed=frozenset({"piqa/3"}))
    record = declare(tmp_path / "other")
    listed = [{"run": run.id} for run in list_runs(tmp_path / "other")]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"runs": listed}))
    collect(tmp_path / "other", "mine", tmp_path / "results")
    collect(runs_dir, "mine", tmp_path / "first")
    with unpacked(tmp_path / "results" / "mine") as there, unpacked(tmp_path / "first" / "mine") as here:
        mixed = next(run for run in list_runs(there) if run.stage == "stage1")
        (here / "stage1" / "20260102-040405").mkdir()
        for file in mixed.path.iterdir():
            (here / "stage1" / "20260102-040405" / file.name).write_bytes(file.read_bytes())
        with pytest.raises(DataError, match="piqa: .*same id but other content"):
            build_report(here, compare=("stage1/20260102-030405", "stage1/20260102-040405"))


def test_an_accuracy_that_the_items_do_not_give_is_refused(results_dir: Path) -> None:
    with unpacked(results_dir / "mine") as found:
        path = next(found.glob("stage1/*/items.jsonl"))
        first, rest = path.read_text().split("\n", 1)
        line = json.loads(first)
        path.write_text(json.dumps(line | {"right": "1" * len(line["right"])}) + "\n" + rest)
        with pytest.raises(DataError, match="items.jsonl"):
            build_report(found)


def test_what_is_not_there_is_named(runs_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="no campaign your has run here; name one of these: mine"):
        collect(runs_dir, "your", tmp_path)
    with pytest.raises(RunStateError, match="no campaign reading has run here; run: make campaign CAMPAIGN=reading"):
        collect(tmp_path, "reading", tmp_path)
    with pytest.raises(DataError, match=r"your/runs\.tar\.xz: no such file; give --collect too"):
        rebuild(tmp_path, ["your"])
    (tmp_path / "torn").mkdir()
    with tarfile.open(tmp_path / "torn" / "runs.tar.xz", "w:xz"):
        pass
    torn = tmp_path / "torn" / "runs.tar.xz"
    torn.write_bytes(torn.read_bytes()[:20])
    with pytest.raises(DataError, match="cannot be unpacked"):
        rebuild(tmp_path, ["torn"])


def test_a_place_that_cannot_be_written_is_named(runs_dir: Path, results_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(
        RunStateError, match=r"file/mine: cannot be written: Not a directory; choose another --results-dir"
    ):
        collect(runs_dir, "mine", tmp_path / "file")
    with pytest.raises(RunStateError, match=r"file/mine: cannot be written: Not a directory"):
        rebuild(results_dir, ["mine"], tmp_path / "file")


def test_every_table_of_docs_results_is_rebuilt_from_what_is_kept(results_dir: Path, tmp_path: Path) -> None:
    for name in kept(RESULTS):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runs.tar.xz").write_bytes((RESULTS / name / "runs.tar.xz").read_bytes())
        if (RESULTS / name / "samples.txt").is_file():
            (tmp_path / name / "samples.txt").touch()
    _, written = rebuild(tmp_path, kept(tmp_path), tmp_path / "pages")
    tables = {path.relative_to(tmp_path) for path in written if tmp_path / "pages" not in path.parents}
    assert tables == {p.relative_to(RESULTS) for kind in ("*/*.md", "index*") for p in RESULTS.glob(kind)}
    for path in tables:
        assert (tmp_path / path).read_text() == (RESULTS / path).read_text(), "make results writes it anew"
    drawn = {path: path.read_text().count("<svg") for path in written if path.suffix == ".html"}
    assert all(number > (1 if path.stem == "index" else 2) for path, number in drawn.items()), drawn
