"""The report's order: which tables, plots and explanations stand under which heading. No numbers are computed here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.report import plots, run_tables, tables
from app.report.chart import Plot
from app.report.format import number
from app.report.joint_tables import Line, lines_of, named, recipes, when
from app.report.runs import Evaluation, Run
from app.report.study import Study
from app.report.tables import Table
from jobs.config import strict_yaml

_WORDS = strict_yaml.read(Path(__file__).with_name("sections.yaml"), "app/report/sections.yaml")


@dataclass(frozen=True)
class Section:
    """A heading with its paragraphs (`code` in backticks), tables and plots."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()


class Outline(list[Section]):
    """The sections of a page, in their order."""

    def add(self, key: str, shown: Sequence[Table], drawn: Sequence[Plot] = (), more: Sequence[str] = (), *,
            text: str = "") -> None:  # fmt: skip
        """A section, unless all of its tables are empty. text: in place of that of sections.yaml. more: paragraphs below it."""
        words, rows = _WORDS[key], [row for table in shown for row in table.rows]
        if rows:
            text = text or words.get("text", "")
            if "leaks" in words and any(row.kind == "leaks" for row in rows):
                text += f" {words['leaks']}"
            paragraphs = filter(None, [text, *more])
            self.append(Section(key, words["title"], tuple(paragraphs), tuple(shown), tuple(drawn)))

    def add_comparisons(self, lines: Sequence[Line]) -> None:
        marks = named(lines)
        self.add("when", [when(lines)], [plots.forest_plot(marks)] if marks else ())


def sections(study: Study) -> Outline:
    """All sections that these runs fill; missing stages have a section of their own."""
    found = Outline()
    if len(lines := lines_of([study])) > 1:
        found.add_comparisons(lines)
    ranked = recipes([study])
    found.add("recipes", [ranked if ranked.rows else tables.recipes(study)])
    found.add("recovery", [tables.recovery(study)], plots.recovery_plots(study.recovery, study.baseline))
    found.add("solved", [run_tables.solved(study)])
    side = [c for c in study.comparisons if c.group == "side effect"]
    found.add("side-effect", [tables.overview(study, side, "Causal scores after finetuning")])
    estimates = [run_tables.estimate(study)] if any(run.estimate for run in study.runs) else []
    found.add("cost", [run_tables.speed(study), *estimates])
    if study.evaluations:
        # Comparisons with the baseline that do not leak, else all that do not.
        fair = [c for c in study.comparisons if not c.leaks]
        series = [c for c in fair if c.second is study.baseline and c.first is not study.baseline] or fair
        drawn = [plots.macro_plot(study), *([plots.delta_plot(series)] if series else [])]
        found.add("results", [tables.results(study), tables.accuracy_by_task(study)], drawn)
    if study.comparisons:
        shown = [tables.overview(study, study.comparisons, "Comparisons on the same items")]
        shown += [tables.each_seed(study.comparisons)] if any(c.seeds for c in study.comparisons) else []
        shown += [tables.paired_by_task(c) for c in study.comparisons]
        found.add("comparisons", shown)
    if any(e.gold_nll is not None for e in study.evaluations):
        scored = study.evaluations
        found.add("nll", [tables.gold_nll(study)], [plots.nll_plot(scored)], _nll_readings(scored))
    if any(run.train for run in study.runs):
        _add_training(found, study)
    found.add("reference", [run_tables.reference(study)])
    found.add("missing", [run_tables.missing(study)])
    found.add("runs", [run_tables.runs(study)])
    return found


def _add_training(found: Outline, study: Study) -> None:
    trained = [run for run in study.runs if run.train]
    control = [c for c in study.comparisons if c.group == "control"]
    more = [] if study.compared else _unequal_training(study, trained)
    shown = [run_tables.training(study)]
    if control:
        shown.append(tables.overview(study, control, "The control: prefix against causal finetuning on the same data"))
    elif study.compared is None:
        more.append("The control cannot be shown yet: it needs stage3a and stage3b trained, and stage4 scored.")
    drawn = [plots.loss_plot(study)] if any(run.train_log or run.eval_log for run in trained) else ()
    text = "" if study.compared else "{text} {control}".format(**_WORDS["training"])
    found.add("training", shown, drawn, more, text=text)


def _unequal_training(study: Study, trained: Sequence[Run]) -> list[str]:
    """A warning unless both trained on the same data for the same number of steps, which the control needs."""
    at = {run.stage: run.train or {} for run in trained}
    first, second = (study.control.first.model, study.control.second.model) if study.control else ("stage3b", "stage3a")
    names = {"steps": "steps", "train_examples": "training examples", "response_tokens": "response tokens"}
    differing = [
        name for key, name in names.items() if {first, second} <= set(at) and at[first].get(key) != at[second].get(key)
    ]
    return [f"{second} and {first} differ in {', '.join(differing)}: the control is not exact."] if differing else []


def _nll_readings(evaluations: Sequence[Evaluation]) -> list[str]:
    causal = {e.model: e for e in evaluations if e.mask == "causal"}
    found = []
    for e in (e for e in evaluations if e.mask != "causal"):
        before, after = causal[e.model].gold_nll if e.model in causal else None, e.gold_nll
        if before is None or after is None:
            continue
        change = f"{e.model}: {number(before, 2)} under causal, {number(after, 2)} under {e.label.split('/', 1)[1]}"
        if e.leaks:
            found.append(
                f"{change}: {'below causal, the leak at work' if after < before else 'not below causal here'}."
            )
        elif e.model == "base" and after < before:
            odd = "below causal without training, which is not expected of an honest mask; check it with `python -m app probe`"
            found.append(f"{change}: {odd}.")
    return list(dict.fromkeys(found))  # two stages may contain the same evaluation
