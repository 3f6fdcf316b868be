"""The report's order: which tables, plots and explanations stand under which heading. No numbers are computed here."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.report import plots, run_tables, tables
from app.report.chart import Plot
from app.report.format import number
from app.report.joint_tables import Part, lines_of, named, recipes, when
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


def sections(study: Study) -> list[Section]:
    """All sections that these runs fill; missing stages have a section of their own."""
    side = [c for c in study.comparisons if c.group == "side effect"]
    found: list[Section] = []
    drawn: tuple[Plot, ...]
    shown: tuple[Table, ...]
    if len(lines := lines_of([Part("", study)])) > 1:
        drawn = (plots.forest_plot(marks),) if (marks := named(lines)) else ()
        found.append(Section("when", "When it helps", (WHEN,), (when(lines),), drawn))
    if (ranked := recipes([Part("", study)])).rows or study.ranked_recipes:
        shown = (ranked if ranked.rows else tables.recipes(study),)
        found.append(Section("recipes", "Recipes, ranked", (RECIPES,), shown))
    if study.recovery:
        drawn = plots.recovery_plots(study.recovery, study.baseline)
        found.append(Section("recovery", "Recovery with training", (RECOVERY,), (tables.recovery(study),), drawn))
    if (learnt := run_tables.solved(study)).rows:
        found.append(Section("solved", "How soon look-ups are learnt", (SOLVED,), (learnt,)))
    if side:
        shown = (tables.overview(study, side, "Causal scores after finetuning"),)
        found.append(Section("side-effect", "Side effect in normal use", (SIDE_EFFECT,), shown))
    estimates = (run_tables.estimate(study),) if any(run.estimate for run in study.runs) else ()
    found.append(Section("cost", "Cost", (), (run_tables.speed(study), *estimates)))
    if study.evaluations:
        # Comparisons with the baseline that do not leak, else all that do not.
        fair = [c for c in study.comparisons if not c.leaks]
        series = [c for c in fair if c.second is study.baseline and c.first is not study.baseline] or fair
        drawn = (plots.macro_plot(study), *([plots.delta_plot(series)] if series else []))
        found.append(Section("results", "Results", (), (tables.results(study), tables.accuracy_by_task(study)), drawn))
    if study.comparisons:
        found.append(_comparisons(study))
    if any(e.gold_nll is not None for e in study.evaluations):
        text = (_TELL_TALE, *_nll_readings(study.evaluations))
        drawn = (plots.nll_plot(study.evaluations),)
        found.append(Section("nll", "Is the answer visible?", text, (tables.gold_nll(study),), drawn))
    if any(run.train for run in study.runs):
        found.append(_training(study))
    if any(run.reference for run in study.runs):
        found.append(Section("reference", "Reference numbers", (_REFERENCE,), (run_tables.reference(study),)))
    if study.missing:
        found.append(Section("missing", "Not run yet", (), (run_tables.missing(study),)))
    found.append(Section("runs", "Runs", (), (run_tables.runs(study),)))
    return found


def _comparisons(study: Study) -> Section:
    found = [tables.overview(study, study.comparisons, "Comparisons on the same items")]
    if any(c.seeds for c in study.comparisons):
        found.append(tables.each_seed(study.comparisons))
    found += [tables.paired_by_task(c) for c in study.comparisons]
    return Section("comparisons", "Differences", (_READING,), tuple(found))


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
