"""What docs/results keeps of a campaign, and the report that is made of it.

    docs/results/NAME/
        campaign.yaml  the campaign as it ran, ready to run again
        runs.tar.xz    its runs directory without weights, cut down to what a report reads:
                       campaigns/NAME.json, and of each complete run the files in KEPT and items.jsonl (app/report/items.py)
        samples.txt    answers side by side, if `make samples` was run there
        PROFILE.md     made of the runs by `rebuild`

A difference that the whole runs directory shows is here the same: right or wrong is exact, the right answer's log-likelihood has
four digits.
"""

import io
import lzma
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.report.items import FILE as ITEMS
from app.report.items import lines_of
from app.report.joint import joint_page
from app.report.page import Page, svg_file
from app.report.profile_runs import complete_runs, runs_of, study_of_profile
from app.report.render import Report
from app.report.runs import load_run
from app.report.study import Study
from jobs.config import strict_yaml
from jobs.config.campaign import campaign_names
from jobs.errors import DataError, RunStateError, make_command
from jobs.runs.atomic import encode, io_errors_reported, make_directory, read_json, read_jsonl, write_text_atomically
from jobs.runs.records import read_campaign_file
from jobs.runs.rundir import RunDir

KEPT = ("stage.yaml", "summary.json", "metrics.json", "eval_log.jsonl")
# No machine's names.
_ENVIRONMENT = ("commit", "python", "packages", "device", "gpu", "cuda", "dtype", "attention", "seed")
_LOG_LINES = 60  # of train_log.jsonl, evenly spaced: as many as a plot can show
_TRIAL = "ci"  # a campaign of a tiny random model, which nobody misses
_RUNS, _CAMPAIGN, _SAMPLES = "runs.tar.xz", "campaign.yaml", "samples.txt"


def collect(runs_dir: Path, name: str, results_dir: Path) -> Path:
    """Write `results_dir`/`name` from the complete runs of the campaign `name` in `runs_dir`. Returns that directory.

    Raises:
        RunStateError: no such campaign, or none of its runs is complete.
        DataError: a damaged run.
    """
    record = runs_dir / "campaigns" / f"{name}.json"
    if not record.is_file():
        known = ", ".join(collectable(runs_dir))
        begin = make_command(f"campaign CAMPAIGN={name if name in campaign_names() else 'lookup'}", runs_dir=runs_dir)
        remedy = f"name one of these: {known}" if known else f"run: {begin}"
        raise RunStateError(record, f"no campaign {name} has run here", remedy)
    ledger = read_campaign_file(record)
    runs = [run for run in runs_of(runs_dir, name) if run.state() == "complete"]
    if not runs:
        raise RunStateError(record, "no run of this campaign is complete", "start the campaign again: it goes on")
    ledger.pop("fingerprints", None)  # of the machine's own status page
    files = {f"campaigns/{name}.json": encode(ledger, indent=2) + "\n"}
    for run in runs:
        files |= {f"{run.id}/{file}": text for file, text in _files_of(run).items()}
    directory = results_dir / name
    make_directory(directory, "choose another --results-dir")
    with io_errors_reported(directory, "choose another --results-dir"):
        _write_archive(directory / _RUNS, files)
    write_text_atomically(directory / _CAMPAIGN, strict_yaml.dump(ledger.get("settings") or {}))
    if (runs_dir / _SAMPLES).is_file():
        write_text_atomically(directory / _SAMPLES, (runs_dir / _SAMPLES).read_text(encoding="utf-8"))
    return directory


def collectable(runs_dir: Path) -> list[str]:
    """The names of the campaigns of a runs directory."""
    return sorted(path.stem for path in (runs_dir / "campaigns").glob("*.json"))


def rebuild(results_dir: Path, names: Sequence[str], pages_dir: Path | None = None) -> tuple[Page, list[Path]]:
    """Write the reports of what is kept: docs/results/NAME/PROFILE.md, and with `pages_dir` also NAME/PROFILE.html below it; then
    the page over all that is kept, index.md with its plots and index.html. Returns that page and the files.

    Raises:
        DataError: nothing kept under one of the names, or a damaged archive.
    """
    written: list[Path] = []
    parts: list[Study] = []
    for name in sorted({*names, *kept(results_dir)}):
        with unpacked(results_dir / name) as runs_dir:
            studies = _studies_of(runs_dir, name)
        parts += studies
        for report in map(Report, studies if name in names else ()):
            written.append(results_dir / name / f"{report.study.profile}.md")
            write_text_atomically(written[-1], report.to_markdown())
            if pages_dir is not None:
                written.append(pages_dir / name / f"{report.study.profile}.html")
                make_directory(written[-1].parent)
                write_text_atomically(written[-1], report.to_html())
    links = [(f"All tables of {s.campaign}, {s.profile}", f"{s.campaign}/{s.profile}.md") for s in parts]
    links += [(f"Answers side by side, {name}", f"{name}/{_SAMPLES}") for name in kept(results_dir)
              if (results_dir / name / _SAMPLES).is_file()]  # fmt: skip
    page, joint = write_joint(parts, results_dir, "index", links)
    return page, [*written, *joint]


def write_joint(
    parts: Sequence[Study], directory: Path, name: str, links: Sequence[tuple[str, str]] = ()
) -> tuple[Page, list[Path]]:
    """NAME.md with its plots as NAME-PLOT.svg, and NAME.html, over several campaigns."""
    there = {part.campaign for part in parts}
    page = joint_page(parts, [one for one in campaign_names() if one not in there | {_TRIAL}], links)
    drawn = {plot.key: f"{name}-{plot.key}.svg" for plot in page.plots}
    files = {drawn[plot.key]: svg_file(plot) for plot in page.plots}
    files |= {f"{name}.md": page.to_markdown(drawn=drawn), f"{name}.html": page.to_html()}
    for old in directory.glob(f"{name}-*.svg"):
        if old.name not in files:
            old.unlink()
    for file, text in files.items():
        write_text_atomically(directory / file, text)
    return page, [directory / file for file in files]


def joint_of(runs_dir: Path) -> list[Study]:
    """Every campaign of a runs directory with a complete run, on each of its profiles."""
    return [study for name in collectable(runs_dir) for study in _studies_of(runs_dir, name)]


def _studies_of(runs_dir: Path, name: str) -> list[Study]:
    profiles = {profile for _, profile in complete_runs(runs_of(runs_dir, name))}
    return [study_of_profile(runs_dir, profile, name) for profile in sorted(profiles)]


def kept(results_dir: Path) -> list[str]:
    """The names under which something is kept."""
    return sorted(path.parent.name for path in results_dir.glob(f"*/{_RUNS}"))


@contextmanager
def unpacked(directory: Path) -> Iterator[Path]:
    """The runs directory that is kept in `directory`, for as long as the block lasts."""
    path = directory / _RUNS
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with tarfile.open(path, "r:xz") as archive:
                archive.extractall(temporary, filter="data")
        except FileNotFoundError:
            known = f"one of these: {', '.join(kept(directory.parent))}" if kept(directory.parent) else "--collect too"
            raise DataError(path, "no such file", f"give {known}") from None
        except (OSError, lzma.LZMAError, EOFError, tarfile.TarError) as error:
            raise DataError(path, f"cannot be unpacked: {error}", "restore the file, or collect it again") from None
        yield Path(temporary)


def _files_of(run: RunDir) -> dict[str, str]:
    """Name and content of each file that is kept of a run."""
    found = {name: (run.path / name).read_text(encoding="utf-8") for name in KEPT if (run.path / name).is_file()}
    environment = read_json(run.path / "environment.json")
    found["environment.json"] = encode({key: environment.get(key) for key in _ENVIRONMENT}, indent=2) + "\n"
    log = read_jsonl(run.path / "train_log.jsonl")
    found["train_log.jsonl"] = _jsonl(log[:: -(-len(log) // _LOG_LINES) or 1])
    evaluations = zip(run.read_metrics().get("evaluations") or [], load_run(run).evaluations, strict=True)
    found[ITEMS] = _jsonl([line for written, e in evaluations for line in lines_of(str(written["label"]), e)])
    return found


def _jsonl(values: list[dict[str, Any]]) -> str:
    return "".join(encode(value) + "\n" for value in values)


def _write_archive(path: Path, files: dict[str, str]) -> None:
    """The same files give the same bytes. Files of one name lie side by side, which is what compresses them."""
    temporary = path.with_name(f".{path.name}.tmp")
    with tarfile.open(temporary, "w:xz") as archive:
        for name in sorted(files, key=lambda name: (name.rpartition("/")[2], name)):
            content = files[name].encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    temporary.replace(path)
