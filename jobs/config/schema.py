"""The types of a stage; jobs/config/profile.py has those of a profile. `jobs/reference.yaml` explains every key in words.

Validation is strict: unknown keys fail, no text becomes a number; only an integer may stand where a number is expected.
Rules over several keys raise `combination` (see `jobs.config.validate`, which finds the file to blame).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

T = TypeVar("T")
Mask = Literal["causal", "prefix", "segment", "bidirectional"]
TaskName = Literal["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]
ScoreFormat = Literal["harness", "reference"]
Order = Literal["context_first", "question_first", "repeat"]  # of a prompt's parts; repeat: the whole prompt twice
MASKS: tuple[Mask, ...] = get_args(Mask)
# An answer token attends to itself, so the score of an answer includes the answer.
LEAKING: tuple[Mask, ...] = ("bidirectional",)
NOT_LEAKING = tuple(mask for mask in MASKS if mask not in LEAKING)
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
ALL_LAYERS = "all"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"  # a name becomes a directory under runs/ and a make target


def refused(fact: str, remedy: str = "") -> PydanticCustomError:
    """One value that the type allows and the experiment does not."""
    return PydanticCustomError("refused", "{fact}", {"fact": fact, "remedy": remedy})


def combination(key: str, fact: str, remedy: str = "", also: tuple[str, ...] = ()) -> PydanticCustomError:
    """Values that are each fine and do not fit together. `key` is shown; `also` lists the other keys involved."""
    return PydanticCustomError("combination", "{fact}", {"key": key, "also": also, "fact": fact, "remedy": remedy})


def unique(values: T) -> T:
    """A list without repeated entries; anything else passes."""
    listed = values if isinstance(values, list) else []
    for index, value in enumerate(listed):
        if value in listed[:index]:
            raise refused(f"expected each entry once, found {json.dumps(value)} twice")
    return values


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Positive = Annotated[int, Field(gt=0)]
UpToAMillion = Annotated[
    int, Field(gt=0, le=1_000_000)
]  # what is drawn or held in memory: a digit too many would fill it
NotNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1)]


# With eval_samples: auto, evaluations take at most this share of a run's operations, unless LEAST_HELD_OUT examples take more.
EVALUATION_SHARE, LEAST_HELD_OUT, MOST_HELD_OUT = 0.03, 64, 500


def checked_layers(value: str) -> str:
    if not re.fullmatch(r"all|global|(first|every):[1-9][0-9]{0,3}", value):
        fact = f'expected all, global, first:N or every:K, found "{value}"'
        raise refused(fact, "such as every:6: layers 6, 12, ...")
    return value


Layers = Annotated[str, AfterValidator(checked_layers)]


def _require_use(layers: str, causal: bool, key: str) -> None:
    if layers != ALL_LAYERS and causal:
        fact = f"{layers} has no meaning under mask causal"
        raise combination("layers", fact, "leave it out", also=(key,))


def mask_by_layer(mask: str, layers: str) -> str:
    """The mask's name in records and reports: results under other layers are results under another mask."""
    return mask if layers == ALL_LAYERS or mask == "causal" else f"{mask}@{layers}"


class Lora(Strict):
    r: Annotated[int, Field(gt=0, le=16384)] = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = "all-linear"
    quantization: Literal["4bit"] | None = None


class Objective(Strict):
    ce: NotNegativeFloat = 1.0
    kl: NotNegativeFloat = 0.0
    causal_fraction: Fraction = 0.0
    causal_anneal: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Objective:
        if self.ce == 0 and self.kl == 0:
            raise combination("ce", "expected ce or kl above 0, found both 0", also=("kl",))
        if self.causal_anneal is not None and self.causal_fraction == 0:
            fact = "expected causal_fraction above 0, which it lets fall"
            raise combination("causal_anneal", fact, also=("causal_fraction",))
        return self


class AutoStop(Strict):
    patience: Positive
    min_delta: NotNegativeFloat
    min_steps: NotNegative


class Train(Strict):
    mask: Mask
    data: Literal["auto", "profile", "suite"] = "auto"
    cut: Literal["prompt", "random"] = "prompt"
    layers: Layers = ALL_LAYERS
    max_steps: Positive
    epochs: PositiveFloat | None = None
    batch_size: UpToAMillion = 16
    micro_batch_size: Positive = 4
    learning_rate: PositiveFloat = 2e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NotNegative = 50
    weight_decay: NotNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = "adamw"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool | Literal["auto"] = False
    graph: bool | Literal["auto"] = "auto"
    packing: bool = True
    pack_tokens: Positive | None = None
    max_length: Annotated[int, Field(ge=2)] = 1024  # tokens; one of the prompt and one of the response at least
    lora: Lora | None = None
    objective: Objective = Objective()
    eval_every: Positive = 100
    eval_samples: Positive | Literal["auto"] = "auto"
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    save_every: Positive = 100
    push_every: Positive | None = None
    keep_checkpoints: Positive = 2
    keep: Literal["best", "last"] = "best"
    keep_weights: bool = True
    auto_stop: AutoStop | None = None
    kill_after_steps: Positive | None = 300
    min_loss_improvement: NotNegativeFloat = 0.01
    overlap_ngram: Positive = 13

    @property
    def held_out(self) -> int:
        """Examples of an evaluation: eval_samples, or what keeps the evaluations of a long run within EVALUATION_SHARE.

        They are counted in examples of one mean length; an evaluation is a forward pass, a third of a training pass.
        """
        if self.eval_samples != "auto":
            return self.eval_samples
        evaluations = 1 + -(-self.max_steps // self.eval_every)  # one before the first step
        affordable = int(EVALUATION_SHARE * 3 * self.max_steps * self.batch_size / evaluations)
        return min(max(affordable, LEAST_HELD_OUT), MOST_HELD_OUT)

    @field_validator("mask")
    @classmethod
    def _no_leaking_mask(cls, mask: Mask) -> Mask:
        if mask in LEAKING:
            raise refused(
                f'expected one of {", ".join(NOT_LEAKING)}, found "{mask}": response tokens would see themselves',
                "use prefix: the prompt is bidirectional, the response causal",
            )
        return mask

    @model_validator(mode="after")
    def _keys_fit(self) -> Train:
        _require_use(self.layers, self.mask == "causal", "mask")
        if self.push_every is not None and self.push_every % self.save_every:
            fact = f"expected a multiple of save_every {self.save_every}, found {self.push_every}"
            raise combination("push_every", fact, also=("save_every",))
        if self.batch_size % self.micro_batch_size:
            fact = f"expected a divisor of batch_size {self.batch_size}, found {self.micro_batch_size}"
            raise combination("micro_batch_size", fact, also=("batch_size",))
        return self


class Score(Strict):
    masks: Annotated[list[Mask], Field(min_length=1)]
    layers: Layers = ALL_LAYERS
    tasks: Annotated[list[Name], Field(min_length=1)] = list(TASK_NAMES)  # of the suite: jobs.config.load checks it
    limit: Positive | None = None
    format: ScoreFormat = "harness"
    batch_tokens: Positive = 16384
    exact: bool | Literal["auto"] = "auto"
    bootstrap: UpToAMillion = 2000

    _each_once = field_validator("masks", "tasks")(unique)

    @model_validator(mode="after")
    def _layers_need_a_mask(self) -> Score:
        _require_use(self.layers, self.masks == ["causal"], "masks")
        return self


class Recipe(Strict):
    """Settings of training to lay over a stage: jobs/recipes/NAME.yaml."""

    title: Text
    train: dict[str, JsonValue]


class Stage(Strict):
    """One make target: where the model comes from, and what is done to it. `train` comes before `score`."""

    name: Name
    title: Text
    init_from: Name | Annotated[list[Name], Field(min_length=1)] = "base"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # numpy takes no more
    suite: Name = "short"
    order: Order = "context_first"
    shots: NotNegative = 0
    recipe: Name | None = None
    train: Train | None = None
    score: Score | None = None
    reference: dict[str, float] | None = None

    _each_once = field_validator("init_from")(unique)

    @model_validator(mode="after")
    def _sections_fit(self) -> Stage:
        if self.train is None and self.score is None:
            raise combination("train", "missing; expected a section train or score, or both", also=("score",))
        if self.train is not None and len(self.init_names) > 1:
            fact = f"expected one start for a stage that trains, found {len(self.init_names)}"
            raise combination("init_from", fact, "score them in a stage without train", also=("train",))
        if self.train is not None and self.score is None and not self.train.keep_weights:
            fact = "expected true for a stage that does not score: nothing would be left of it"
            raise combination("train.keep_weights", fact, also=("score",))
        return self

    @property
    def init_names(self) -> list[str]:
        """`init_from` as a list: "base" or names of stages."""
        return [self.init_from] if isinstance(self.init_from, str) else list(self.init_from)
