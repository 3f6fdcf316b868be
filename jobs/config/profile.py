"""The types of a profile: which model, which data, which precision and limits. jobs/config/schema.py has those of a stage."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from jobs.config.schema import Name, Positive, PositiveFloat, Strict, Text, combination, refused, unique

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]
EMBEDDED_MODELS = ("SmolLM2-135M-Instruct", "gemma-3-270m")


def _no_flash_attention(value: object) -> object:
    if isinstance(value, str) and "flash" in value:
        raise refused(f'found "{value}": FlashAttention drops custom masks', "use auto, sdpa, eager or flex_attention")
    return value


STORE_REMEDY = (
    "write s3://BUCKET/PREFIX, hf://OWNER/REPOSITORY or file:///DIRECTORY; credentials come from the environment"
)
_STORE = re.compile(
    r"s3://[A-Za-z0-9][\w.-]+(/[^@?#\s]*)?|hf://(datasets/|buckets/)?[\w.-]+/[\w.-]+(/[^@?#\s]*)?|file:///[^?#\0]+"
)


def store_fault(address: str) -> str | None:
    """What is wrong with the address of a store for artifacts. It is not quoted, since it may hold a password."""
    parts = address.partition("://")[2].split("/")
    if _STORE.fullmatch(address) and ".." not in parts:
        return None
    return f"expected the address of a store, found one that begins with {json.dumps(address[:5])}"


def _store(address: str) -> str:
    if fault := store_fault(address):
        raise refused(fault, STORE_REMEDY)
    return address


Attention = Annotated[Literal["auto", "sdpa", "eager", "flex_attention"], BeforeValidator(_no_flash_attention)]
Store = Annotated[str, AfterValidator(_store)]


class ModelSource(Strict):
    source: Literal["embedded", "hub", "path", "gguf", "random"]
    name: Text | None = None
    revision: Text | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    attention: Attention = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_length: Positive | None = None
    config: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _fits_its_source(self) -> ModelSource:
        named = {"hub": "the hub's name of the model", "path": "the directory of the checkpoint", "gguf": "the file"}
        if self.source in named and self.name is None:
            raise combination("name", f"missing; expected {named[self.source]}", also=("source",))
        if self.source == "embedded" and self.name not in (None, *EMBEDDED_MODELS):
            fact = f'expected {" or ".join(EMBEDDED_MODELS)} for source embedded, found "{self.name}"'
            raise combination("name", fact, also=("source",))
        if (self.config is not None) != (self.source == "random"):
            need = "missing; expected a transformers config" if self.source == "random" else "only for source random"
            raise combination("config", need, also=("source",))
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise combination("config", "expected the key model_type, such as llama", "add config.model_type")
        return self

    @property
    def local(self) -> str | None:
        """The directory or the file of this machine that the model is read from."""
        return self.name if self.source in ("path", "gguf") else None


def _needs(key: str, value: object, source: str, wanted_by: str) -> None:
    """Raise unless `key` is set exactly where the source is `wanted_by`."""
    if (value is None) == (source == wanted_by):
        fact = f"missing for source {source}" if value is None else f"only for source {wanted_by}"
        raise combination(key, fact, also=("source",))


class EvalData(Strict):
    source: Literal["embedded", "hub", "path"]
    path: Text | None = None

    @model_validator(mode="after")
    def _fits_its_source(self) -> EvalData:
        _needs("path", self.path, self.source, wanted_by="path")
        return self


class TrainData(Strict):
    source: Literal["embedded", "hub", "path"]
    name: Text | None = None
    path: Text | None = None
    revision: Text | None = None
    subset: Text | None = None
    split: Text = "train"
    format: Literal["qa", "alpaca", "messages", "text"]
    template: Literal["plain", "alpaca", "chat"] = "plain"
    limit: Positive | None = None
    weight: PositiveFloat | None = None
    streaming: bool = False

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        return self.name or self.path or self.source

    @model_validator(mode="after")
    def _fits_its_source(self) -> TrainData:
        if self.source == "embedded" and self.format != "qa":
            fact = f'expected qa for source embedded, found "{self.format}"'
            raise combination("format", fact, also=("source",))
        _needs("name", self.name, self.source, wanted_by="hub")
        for key in ("revision", "subset"):
            if getattr(self, key) is not None and self.source != "hub":
                raise combination(key, "only for source hub", also=("source",))
        _needs("path", self.path, self.source, wanted_by="path")
        if self.streaming and self.format == "qa":
            raise combination("format", "qa is not streamed", "leave streaming out, or this", also=("streaming",))
        if self.streaming and self.limit is not None:
            fact = "limit draws a sample of the whole set, and a stream is never whole"
            raise combination("limit", fact, "leave streaming out, or this", also=("streaming",))
        return self


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


class Data(Strict):
    eval: EvalData
    train: Annotated[
        Annotated[TrainData, Tag("one")] | Annotated[list[TrainData], Tag("several"), Field(min_length=1)],
        Discriminator(_one_or_several),
    ]
    temperature: PositiveFloat = 1.0

    @property
    def sources(self) -> dict[str, TrainData]:
        """Key -> source of the training examples: data.train, or of several data.train[0] and so on."""
        if isinstance(self.train, TrainData):
            return {"data.train": self.train}
        return {f"data.train[{index}]": one for index, one in enumerate(self.train)}

    @model_validator(mode="after")
    def _weights_fit(self) -> Data:
        sources = list(self.sources.values())
        if len(sources) == 1:
            if sources[0].weight is not None or self.temperature != 1:
                key = "temperature" if self.temperature != 1 else "train.weight"
                fact = "weight and temperature are for several sources, and there is one"
                raise combination(key, fact, "leave it out")
            return self
        places = [(one.source, one.name, one.path, one.split, one.subset, one.format) for one in sources]
        if twice := next((i for i, place in enumerate(places) if place in places[:i]), None):
            fact = f"expected each source once, found {sources[twice].place} again as train[{twice}]"
            raise combination("train", fact, "give it a larger weight")
        weighted = [one.weight is not None for one in sources]
        if any(weighted) and not all(weighted):
            fact = f"{sources[weighted.index(False)].place} has no weight, and others have one"
            raise combination("train", fact, "give each source a weight, or none of them")
        if any(one.streaming for one in sources) and not all(weighted):
            fact = "a streamed source has no known size to be weighted by"
            raise combination("train", fact, "give each source a weight")
        return self


class StageOverride(Strict):
    """Partial sections of one stage, laid over its own."""

    train: dict[str, JsonValue] | None = None
    score: dict[str, JsonValue] | None = None


class Profile(Strict):
    """Which model, data, precision and limits a stage runs with."""

    name: Name
    model: ModelSource
    data: Data
    gpus: Annotated[int, Field(gt=0, le=1024)] = 1
    sharding: Literal["auto", "ddp", "fsdp"] = "auto"
    report_to: Annotated[list[Tracker], AfterValidator(unique)] = Field(default=[])
    artifacts: Store | None = None
    artifacts_mbit: PositiveFloat | None = None
    train: dict[str, JsonValue] | None = None
    score: dict[str, JsonValue] | None = None
    stages: dict[str, StageOverride] = Field(default={})
