"""The pages of the answers: samples.json (app/scoring/samples.py) as text and as HTML, with everything inside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.report.format import DASH, number
from app.report.page import fill
from jobs.columns import Column, table_lines
from jobs.runs.atomic import write_text_atomically

_ABOUT = (
    "The same prompts, answered greedily by each model under each mask.",
    "Echo: share of an answer's words in a run of 4 words or more of its prompt (after Grusky et al. 2018). Repetition: share of "
    "its runs of 4 tokens that it had before (Welleck et al. 2020). Both are means over the answers that are long enough. Cut: "
    "share of answers that were ended by their length.",
    "These prompts show what the answers look like. They are too few to rank models.",
)
_ROOMY = 200  # letters of a line: nothing is left out
_NAMES = ("Model/mask", "Echo", "Repetition", "Tokens", "Cut")


def write_samples(found: Mapping[str, Any], runs_dir: Path) -> tuple[Path, ...]:
    """samples.json, samples.txt and samples.html in `runs_dir`, each whole; returns their paths."""
    texts = {"samples.json": json.dumps(found, indent=1, ensure_ascii=False) + "\n", "samples.txt": to_text(found),
             "samples.html": to_html(found)}  # fmt: skip
    for name, text in texts.items():
        write_text_atomically(runs_dir / name, text)
    return tuple(runs_dir / name for name in texts)


def to_text(found: Mapping[str, Any]) -> str:
    page = _page(found)
    columns = [Column(name, right=name != _NAMES[0]) for name in _NAMES]
    return fill("samples.txt.j2", table=table_lines(columns, page["rows"], _ROOMY), **page)


def to_html(found: Mapping[str, Any]) -> str:
    return fill("samples.html.j2", **_page(found))


def _page(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both templates, numbers as text."""
    columns = [{"label": label_of(column), "answers": [{**a, "note": _note(a)} for a in column["answers"]]}
               for column in found["columns"]]  # fmt: skip
    means = [(label_of(column), column["means"]) for column in found["columns"]]
    rows = [(label, _percent(m["echo_rate"]), _percent(m["repetition_rate"]), number(m["tokens"], 1), _percent(m["cut"]))
            for label, m in means]  # fmt: skip
    size = f"{len(found['prompts'])} prompts, at most {found['max_new_tokens']} tokens"
    title = f"Answers side by side: profile {found['profile']}, {size}"
    judged = [_judged(one, found["judge"]["model"]) for one in found["judge"]["pairs"]] if found.get("judge") else []
    return {"title": title, "about": _ABOUT, "names": _NAMES, "rows": rows, "judged": judged, "prompts": found["prompts"],
            "columns": columns}  # fmt: skip


def label_of(column: Mapping[str, Any]) -> str:
    return f"{column['model']}/{column['mask']}"


def _note(answer: Mapping[str, Any]) -> str:
    rates = (("echo", answer["echo_rate"]), ("repetition", answer["repetition_rate"]))
    facts = [f"{name} {_percent(value)}" for name, value in rates if value is not None]
    return ", ".join([f"{answer['tokens']} tokens" + (", cut" if answer["cut"] else ""), *facts])


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.0f} %"


def _judged(pair: Mapping[str, Any], judge: str) -> str:
    v = pair["verdicts"]
    bias = f"It chose what it read first in {v['firsts']} of {v['decided']} decided readings (p = {v['p_position']:.3f}"
    trust = "): it prefers a place, so doubt its verdict." if v["p_position"] < 0.05 else ")."
    counts = f"better in {v['wins']}, worse in {v['losses']}, a tie in {v['ties']}"
    unsure = f"{v['unsure']} of these since it decided otherwise in the other order"
    return f"Judge {judge}, {pair['left']} against {pair['right']}: {counts}, {unsure}. {bias}{trust}"
