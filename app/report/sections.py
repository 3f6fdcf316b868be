"""The report's order: which tables, plots and explanations stand under which heading. No numbers are computed here."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.report import plots, run_tables, tables
from app.report.chart import Plot
from app.report.format import number
from app.report.joint_tables import Line, Part, lines_of, named, recipes, when
from app.report.runs import Evaluation, Run
from app.report.study import Study
from app.report.tables import Table


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

    def add(
        self, key: str, title: str, shown: Sequence[Table], drawn: Sequence[Plot] = (), text: Sequence[str] = ()
    ) -> None:
        """A section, unless all of its tables are empty."""
        if any(table.rows for table in shown):
            self.append(Section(key, title, tuple(text), tuple(shown), tuple(drawn)))

    def add_comparisons(self, lines: Sequence[Line]) -> None:
        marks = named(lines)
        self.add("when", "When it helps", [when(lines)], [plots.forest_plot(marks)] if marks else (), [WHEN])


def sections(study: Study) -> Outline:
    """All sections that these runs fill; missing stages have a section of their own."""
    found, whole = Outline(), [Part("", study)]
    if len(lines := lines_of(whole)) > 1:
        found.add_comparisons(lines)
    ranked = recipes(whole)
    found.add("recipes", "Recipes, ranked", [ranked if ranked.rows else tables.recipes(study)], text=[RECIPES])
    curves = plots.recovery_plots(study.recovery, study.baseline)
    found.add("recovery", "Recovery with training", [tables.recovery(study)], curves, [RECOVERY])
    found.add("solved", "How soon look-ups are learnt", [run_tables.solved(study)], text=[SOLVED])
    side = [c for c in study.comparisons if c.group == "side effect"]
    shown = [tables.overview(study, side, "Causal scores after finetuning")]
    found.add("side-effect", "Side effect in normal use", shown, text=[SIDE_EFFECT])
    estimates = [run_tables.estimate(study)] if any(run.estimate for run in study.runs) else []
    found.add("cost", "Cost", [run_tables.speed(study), *estimates])
    if study.evaluations:
        # Comparisons with the baseline that do not leak, else all that do not.
        fair = [c for c in study.comparisons if not c.leaks]
        series = [c for c in fair if c.second is study.baseline and c.first is not study.baseline] or fair
        drawn = [plots.macro_plot(study), *([plots.delta_plot(series)] if series else [])]
        found.add("results", "Results", [tables.results(study), tables.accuracy_by_task(study)], drawn)
    if study.comparisons:
        shown = [tables.overview(study, study.comparisons, "Comparisons on the same items")]
        shown += [tables.each_seed(study.comparisons)] if any(c.seeds for c in study.comparisons) else []
        shown += [tables.paired_by_task(c) for c in study.comparisons]
        found.add("comparisons", "Differences", shown, text=[_READING])
    if any(e.gold_nll is not None for e in study.evaluations):
        readings, drawn = [_TELL_TALE, *_nll_readings(study.evaluations)], [plots.nll_plot(study.evaluations)]
        found.add("nll", "Is the answer visible?", [tables.gold_nll(study)], drawn, readings)
    if any(run.train for run in study.runs):
        found.append(_training(study))
    found.add("reference", "Reference numbers", [run_tables.reference(study)], text=[_REFERENCE])
    found.add("missing", "Not run yet", [run_tables.missing(study)])
    found.add("runs", "Runs", [run_tables.runs(study)])
    return found


def _training(study: Study) -> Section:
    trained = [run for run in study.runs if run.train]
    control = [c for c in study.comparisons if c.group == "control"]
    text = [_TRAINING] if study.compared else [f"{_TRAINING} {_CONTROL}", *_unequal_training(study, trained)]
    shown = [run_tables.training(study)]
    if control:
        shown.append(tables.overview(study, control, "The control: prefix against causal finetuning on the same data"))
    elif study.compared is None:
        text.append("The control cannot be shown yet: it needs stage3a and stage3b trained, and stage4 scored.")
    drawn = (plots.loss_plot(study),) if any(run.train_log or run.eval_log for run in trained) else ()
    return Section("training", "Training and its control", tuple(text), tuple(shown), drawn)


def _unequal_training(study: Study, trained: Sequence[Run]) -> list[str]:
    """A warning unless both trained on the same data for the same number of steps, which the control needs."""
    at = {run.stage: run.train or {} for run in trained}
    first, second = (study.control.first.model, study.control.second.model) if study.control else ("stage3b", "stage3a")
    a, b = at.get(second), at.get(first)
    if a is None or b is None:
        return []
    names = {"steps": "steps", "train_examples": "training examples", "response_tokens": "response tokens"}
    differing = [name for key, name in names.items() if a.get(key) != b.get(key)]
    return [f"{second} and {first} differ in {', '.join(differing)}: the control is not exact."] if differing else []


WHEN = (
    "Right of zero the model that reads its prompt in both directions is better than its control; each is finetuned alike and "
    "scored under its own mask. In the order context first the passage, the choices or the facts come before the question; "
    "repeat is that prompt written twice, the rival that needs no other mask. Filled marks are the comparisons that a campaign "
    "declared before it ran. All others are exploratory: of many, a few cross the line by chance."
)
RECIPES = (
    "Each recipe is the mean over its seeds. The best of many is flattered by chance: run it again with new seeds before "
    "believing its lead."
)
RECOVERY = (
    "Accuracy against the amount of finetuning, for recipes that differ in nothing else. Under the leaking mask "
    "the curve levels off although the model is repaired."
)
SOLVED = (
    "Accuracy at the end hides who learnt first. With the facts first, a prompt read from left to right cannot prepare for the "
    "question; with the question first it can."
)
_TELL_TALE = (
    "The negative log-likelihood of the right answer, per token, shows whether a mask lets the answer be copied. "
    "Under an honest mask an untrained model finds the answer no less surprising than under its own causal mask; a "
    "leaking one drives it below causal, because each answer token is an input to its own prediction."
)
SIDE_EFFECT = (
    "The finetuned models scored with the ordinary causal mask, against the untouched model: what normal use loses or "
    "gains."
)
_REFERENCE = (
    "From the earlier experiment: Ministral-3-3B-Instruct-2512, 500 items a task, `format: reference`, its ablated "
    "prefill scored under a mask that leaks the answer. Shown for orientation on another model or mask; never compared "
    "automatically."
)
_READING = (
    "A macro difference is read by its 95 % bootstrap interval, a single task by McNemar's exact test adjusted over "
    "the tasks of its comparison (Holm). Within noise does not mean equal: a difference smaller than the column Can show "
    "would often go unnoticed. Nothing is adjusted over the comparisons themselves: of many, a few cross the line by chance, "
    "so a campaign declares one of them as primary before it runs, and all others are exploratory."
)
_TRAINING = (
    "Each eval loss is under the stage's own mask and on held-out examples of the training set, so it is no score on "
    "the five tasks."
)
_CONTROL = (
    "The causally finetuned model is the control: what it gains, finetuning gives by itself and the mask does not."
)


def _nll_readings(evaluations: Sequence[Evaluation]) -> list[str]:
    causal = {e.model: e for e in evaluations if e.mask == "causal"}
    found = []
    for e in evaluations:
        before = causal.get(e.model)
        if before is None or before is e or e.gold_nll is None or before.gold_nll is None:
            continue
        change = f"{number(before.gold_nll, 2)} under causal, {number(e.gold_nll, 2)} under {e.label.split('/', 1)[1]}"
        below = e.gold_nll < before.gold_nll
        if e.leaks:
            reading = "below causal, the leak at work" if below else "not below causal here"
            found.append(f"{e.model}: {change}: {reading}.")
        elif e.model == "base" and e.mask != "causal" and below:
            found.append(
                f"base: {change}: below causal without training, which is not expected of an honest mask; check it "
                "with `python -m app probe`."
            )
    return list(dict.fromkeys(found))  # two stages may contain the same evaluation
