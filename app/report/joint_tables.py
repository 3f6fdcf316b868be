"""The tables of the page over several campaigns, of which the report of one has the first. Its sentences: app/report/joint.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from app.report.campaign import Setting, in_words, recipe_of, role
from app.report.comparisons import Comparison
from app.report.format import DASH, count, duration, number, numbers, with_interval
from app.report.power import can_show
from app.report.repetition import against_repetition
from app.report.runs import Evaluation
from app.report.sentences import Finding, by_accuracy, finding
from app.report.study import Spent, Study
from app.report.tables import Table, TableRow
from app.stats.power import smallest_difference
from jobs.config.campaign import Campaign, cells
from jobs.errors import ConfigError

OWN = "both directions minus control"


def cells_left(study: Study) -> tuple[int, int]:
    """How many runs of the campaign's matrix are not there, of how many, on all of its profiles."""
    planned = int(study.ledger.get("cells") or 0)
    return max(0, planned - len({_place(entry) for entry in study.ledger.get("runs") or []})), planned


def missing_cells(study: Study) -> list[str]:
    """The runs of the matrix that are not there, the seeds of each together; their number alone where the campaign's settings
    are not as this version reads them. A profile without any run has no study of its own: the first one names it."""
    done = {_place(entry) for entry in study.ledger.get("runs") or []}
    try:
        every = [one.place for one in cells(Campaign.model_validate(study.ledger.get("settings")), study.campaign)]
    except (ConfigError, ValidationError):
        left, _ = cells_left(study)
        return [f"{left} runs"] if left else []
    here, begun = study.profile, {profile for profile, *_ in done}
    others = {place["profile"] for place in every} - begun if here == min(begun, default=here) else set()
    seeds: dict[str, list[str]] = {}
    for place in every:
        if place["profile"] in {here, *others} and _place(place) not in done:
            known = "" if place["profile"] == here else place["profile"]
            words = [known, *(place[key] for key in ("suite", "order", "recipe", "mask", "steps") if key in place)]
            seeds.setdefault(" ".join(filter(None, words)), []).append(place["seed"])
    return [name + (f" (seeds {numbers(map(int, of))})" if any(of) else " untrained") for name, of in seeds.items()]


def _place(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key) or "") for key in ("profile", "suite", "order", "recipe", "mask", "seed", "steps"))


@dataclass(frozen=True)
class Line:
    """One comparison of a campaign. `what`: OWN, or with the prompt written twice. `declared`: as primary, before it ran."""

    part: Study  # of its campaign
    setting: Setting
    what: str
    comparison: Comparison
    declared: bool

    @property
    def study(self) -> Study:
        """Of its setting; that of the campaign is about the primary one."""
        return next(study for study in self.part.settings if study.setting == self.setting)

    @property
    def finding(self) -> Finding:
        """By the measure that the campaign declared: by NLL, or by accuracy with NLL beside it, as all exploratory ones."""
        primary = self.part.primary
        by_nll = self.declared and primary is not None and primary.measure == "gold_nll"
        return finding(self.comparison, "gold_nll") if by_nll else by_accuracy(self.comparison)

    @property
    def seeds(self) -> int:
        return max(1, len(self.comparison.seeds))

    @property
    def prefill(self) -> float | None:
        """The tokens an item that the first side reads over those of the second."""
        first, second = self.comparison.first.tokens_per_item, self.comparison.second.tokens_per_item
        return first / second if first and second else None


def lines_of(parts: Sequence[Study]) -> list[Line]:
    """The decisive comparison in every setting of every campaign, then those with the prompt written twice."""
    found = []
    for part in parts:
        for study in part.settings:
            if (c := study.control) is not None:
                declared = study is part and role(study.primary, c, study.setting).startswith("primary")
                found.append(Line(part, study.setting, OWN, c, declared))
        for c in against_repetition(part):
            suite, _, what = c.title.partition(": ")
            found.append(Line(part, Setting(suite, "repeat"), what, c, False))
    return sorted(found, key=lambda one: (one.setting.suite, one.part.base_model, one.what != OWN, one.setting.order))


def named(lines: Sequence[Line]) -> list[tuple[str, Comparison, bool]]:
    """Names, comparisons and roles for a plot of those that are OWN. A name has its model or its campaign where another line
    would be called alike."""
    lines = [one for one in lines if one.what == OWN]
    models = {one.part.base_model for one in lines}
    found = []
    for one in lines:
        name = f"{one.part.short_model}: {one.setting}" if len(models) > 1 else str(one.setting)
        alike = [
            other for other in lines if (other.part.base_model, other.setting) == (one.part.base_model, one.setting)
        ]
        found.append((f"{name} ({one.part.campaign})" if len(alike) > 1 else name, one.comparison, one.declared))
    return found


def when(lines: Sequence[Line]) -> Table:
    """A row for each comparison: what it found, what it could have shown, and the prefill of both sides. Without its campaign and
    model where all are of one, and without its role where no campaign declared one."""
    several, declared = len({one.part.name for one in lines}) > 1, any(one.part.primary for one in lines)
    columns = ("Tasks and order", "First minus second", *["Campaign, model"] * several, ">Prefill", ">Points [95 %]", ">Can show",
               ">NLL [95 %]", "Reading", *["Role"] * declared)  # fmt: skip
    rows = []
    for one in lines:
        c = one.comparison
        of = f"{'primary' if one.declared else 'exploratory'}, {one.seeds} seed{'s' * (one.seeds > 1)}"
        rows.append(TableRow((
            str(one.setting) if one.what == OWN else one.setting.suite, one.what, *[one.part.name] * several,
            DASH if one.prefill is None else f"{one.prefill:.1f}x", _in_points(c),
            can_show(c.accuracy.variance, 100, 1), with_interval(c.nll.total, sign=True) if c.nll else DASH,
            _reading(one), *[of] * declared,
        ), "base" if one.declared else ""))  # fmt: skip
    note = (
        "Paired on the same questions; intervals are a bootstrap over questions and seeds. Prefill: the tokens that the first "
        "side reads, over those of the second. Can show: the smallest true difference, in points, whose interval excludes zero "
        "four times in five. NLL: of the right answer, in nats a token, so that less is better."
    )
    return Table("Every comparison, suite by suite", columns, tuple(rows), note)


def _reading(one: Line) -> str:
    """`better`, `worse`, how small a difference could be, or how many items it would take."""
    found = one.finding
    if found.direction not in ("better", "worse"):
        return found.text
    beside = f"{found.direction}: {found.change}" if "though" in found.beside else found.direction
    return f"{beside}, by NLL alone" if one.comparison.verdict == "within noise" else beside


def _in_points(c: Comparison) -> str:
    """The difference in accuracy: `+13.9 [+11.2, +16.6]`."""
    return with_interval(c.accuracy.total, sign=True, scale=100, digits=1)


def recipes(parts: Sequence[Study]) -> Table:
    """Each recipe where a campaign has several, best first by the accuracy that it reaches with the bidirectional prompt."""
    rows, several = [], len({part.name for part in parts}) > 1
    for part in parts:
        for study in part.settings:
            own = [c for c in study.own_masks if recipe_of(c.first.model)]
            ranked = sorted(own, key=lambda c: -mean(study, c.first, c.seeds)) if len(own) > 1 else []
            for rank, c in enumerate(ranked, 1):
                side = study.find((c.first.model, "causal"), ("base", "causal"))
                rows.append(TableRow((
                    str(rank), recipe_of(c.first.model), str(study.setting), *[part.name] * several, str(max(1, len(c.seeds))),
                    number(mean(study, c.first, c.seeds)), number(mean(study, c.second, c.seeds)), _in_points(c),
                    can_show(c.accuracy.variance, 100, 1), _kept(study, side),
                )))  # fmt: skip
    columns = (">Rank", "Recipe", "Tasks and order", *["Campaign, model"] * several, ">Seeds", ">Accuracy", ">Its control",
               ">Points [95 %]", ">Can show", ">Normal use")  # fmt: skip
    note = "Normal use: accuracy read from left to right after this training, over that of the untrained model."
    return Table("Recipes, by the accuracy that they reach with the bidirectional prompt", columns, tuple(rows), note)


def mean(study: Study, e: Evaluation, seeds: Sequence[int]) -> float:
    """Macro accuracy, the mean over the seeds of a comparison: its sides differ by as much as it finds."""
    of = [one for seed, one in study.trainings.replicates(e).items() if seed in seeds] or [e]
    return sum(one.macro.value for one in of) / len(of)


def _kept(study: Study, side: Comparison | None) -> str:
    """`0.996x`: the accuracy in normal use over that of the untrained model."""
    before = mean(study, side.second, side.seeds) if side else 0.0
    return f"{number(mean(study, side.first, side.seeds) / before)}x" if side and before else DASH


def side_effect(parts: Sequence[Study]) -> Table:
    """Causal scores of what was finetuned for the bidirectional prompt: against the untrained model and against the control."""
    rows = []
    for part in parts:
        for study in part.settings:
            model = study.prefix_model or ""
            base = study.find((model, "causal"), ("base", "causal"))
            control = next((c for c in study.comparisons if c.group == "side effect" and c.first.model == model
                            and c.second.model != "base"), None)  # fmt: skip
            if base is None and control is None:
                continue
            cells_of = [DASH if c is None else _in_points(c) for c in (base, control)]
            most = max((c.accuracy.variance for c in (base, control) if c), key=smallest_difference)
            rows.append(TableRow((str(study.setting), part.name, recipe_of(model) or model, _kept(study, base),
                                  *cells_of, can_show(most, 100, 1))))  # fmt: skip
    columns = ("Tasks and order", "Campaign, model", "Recipe", ">Kept", ">Minus untrained, points [95 %]",
               ">Minus the control, points [95 %]", ">Can show")  # fmt: skip
    note = "Kept: accuracy over that of the untrained model, both read from left to right; means over seeds."
    return Table("Read from left to right after finetuning for the bidirectional prompt", columns, tuple(rows), note)


def spent_once(parts: Sequence[Study]) -> list[Study]:
    """The parts, where what a run took that belongs to several of them is spent by the first alone."""
    first = {run: n for n, part in reversed(list(enumerate(parts))) for run in part.spent.each}
    own = [{run: took for run, took in part.spent.each.items() if first[run] == n} for n, part in enumerate(parts)]
    return [replace(part, spent=Spent(each)) for part, each in zip(parts, own, strict=True)]


def cost(parts: Sequence[Study]) -> Table:
    rows = []
    for part in spent_once(parts):
        spent = part.spent
        steps = sorted(
            {n for study in part.settings for recipe in study.trainings.recipes for n in recipe.steps_by_seed.values()}
        )
        rows.append(TableRow((
            part.campaign, part.base_model, str(spent.runs), ", ".join(map(count, steps)) or DASH, duration(spent.seconds),
            number(spent.seconds / 3600, 2), f"${part.dollars:,.2f}" if part.dollars else DASH,
            part.runs[-1].device or DASH,
        )))  # fmt: skip
    columns = ("Campaign", "Model", ">Runs", ">Steps a run", ">Time", ">GPU hours", ">Dollars", "Device")
    every, own = (sum(part.spent.runs for part in some) for some in (parts, spent_once(parts)))
    note = "A run of several campaigns is counted once, for the first that is named here." if own < every else ""
    return Table("What the campaigns took", columns, tuple(rows), note)


def prefill(parts: Sequence[Study]) -> Table:
    rows: dict[tuple[str, ...], TableRow] = {}
    for part in parts:
        sizes = [run.train["params_total"] for run in part.runs if run.train and "params_total" in run.train]
        for study in part.settings:
            tokens = next((e.tokens_per_item for e in study.evaluations if e.tokens_per_item), None)
            if tokens is not None:
                flops = number(2 * sizes[0] * tokens / 1e9, 1) if sizes else DASH
                key = (str(study.setting), part.base_model)
                rows.setdefault(key, TableRow((*key, number(tokens, 0), flops)))
    note = "2 operations a parameter and token, prompt and choices; attention itself is left out. A bidirectional mask adds none."
    columns = ("Tasks and order", "Model", ">Tokens an item", ">GFLOPs an item")
    return Table("What reading a prompt costs", columns, tuple(rows.values()), note)


def campaigns(parts: Sequence[Study]) -> Table:
    rows = []
    for part in parts:
        ledger, primary = part.ledger, part.primary
        rows.append(TableRow((
            part.campaign, part.base_model, str(ledger.get("title") or DASH), in_words(primary) if primary else DASH,
            str(ledger.get("declared") or DASH)[:10], "; ".join(missing_cells(part)) or "none",
        )))  # fmt: skip
    columns = ("Campaign", "Model", "What it asks", "Primary comparison", "Declared", "Missing runs")
    return Table("What was declared, and what is missing", columns, tuple(rows))
