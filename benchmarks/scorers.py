"""What is compared by benchmarks/score.py: items, weights, and the ways to score them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from app.attention.backends import NAMES
from app.data.tasks import load_items
from app.embedded import cache
from app.model.load import Loaded, load
from app.model.mixed_precision import keep_float32
from app.scoring.encode import encode_harness
from app.scoring.loglikelihood import Count, loglikelihood
from jobs.config.profile import ModelSource
from jobs.config.schema import TASK_NAMES, Mask

CALIBRATE = 24  # items, for a first guess of the rate and as a warm-up


@dataclass(frozen=True)
class Question:
    """One item: (context, continuation) of each choice, and the characters that acc_norm divides by."""

    task: str
    pairs: list[tuple[str, str]]
    n_chars: list[int]

    def picks(self, logprobs: Sequence[float]) -> tuple[int, int]:
        """The choices that acc and acc_norm would make."""
        values = np.array(logprobs)
        return int(values.argmax()), int((values / np.array(self.n_chars)).argmax())


@dataclass
class Line:
    """One line of the table. `found`: log-probabilities of each choice, by the item's number."""

    name: str
    dtype: str
    items: int
    seconds: float
    start_s: float = 0.0
    note: str = ""
    found: dict[int, list[float]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.items / self.seconds


def questions(limit: int | None, data: Path | None) -> list[Question]:
    """In an order of their own, so that the first ones are a fair sample."""
    if data is not None:
        rows = json.loads((data / "items.json").read_text())
    else:
        items = [item for task in TASK_NAMES for item in load_items(task, limit=limit)]
        rows = [
            {"task": i.task, "pairs": [(c.context, c.continuation) for c in i.choices], "n_chars": i.n_chars}
            for i in items
        ]
    found = [Question(r["task"], [(a, b) for a, b in r["pairs"]], list(r["n_chars"])) for r in rows]
    random.Random(0).shuffle(found)
    return found


def export(items: Sequence[Question], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.json").write_text(json.dumps([asdict(i) for i in items]))
    source = cache.fetch_model()
    AutoTokenizer.from_pretrained(str(source)).save_pretrained(folder)
    AutoConfig.from_pretrained(str(source)).save_pretrained(folder)


def plain_of(device: str, dtype: str, data: Path | None) -> Loaded:
    """The model as transformers loads it and attends by itself: what the baselines run."""
    torch.manual_seed(0)
    torch.backends.cuda.enable_cudnn_sdp(False)
    source = str(data or cache.fetch_model())
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    if data is None:
        model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), **options)
    limit = model.config.max_position_embeddings
    return Loaded(model.to(device).eval(), AutoTokenizer.from_pretrained(source), source, limit)


def model_of(device: str, dtype: str, attention: Any, data: Path | None) -> Loaded:
    """The model as the stages load it."""
    if data is None:
        return load(ModelSource(source="embedded", device=device, dtype=dtype, attention=attention))  # type: ignore[arg-type]
    loaded = plain_of(device, dtype, data)
    loaded.model.set_attn_implementation(NAMES["sdpa" if attention == "auto" else attention])
    keep_float32(loaded.model)
    return replace(loaded, any_attention=attention == "auto")


def split(items: Sequence[Question], values: Sequence[float]) -> dict[int, list[float]]:
    at, out = 0, {}
    for number, item in enumerate(items):
        out[number] = [float(v) for v in values[at : at + len(item.pairs)]]
        at += len(item.pairs)
    return out


def ours(loaded: Loaded, items: Sequence[Question], mask: Mask, seconds: float, name: str) -> Line:
    """The best of what runs fit into the time; at least one after the first, which is the start-up's."""

    def once(some: Sequence[Question]) -> tuple[float, float, list[float], Count]:
        began, count = time.perf_counter(), Count()
        requests = encode_harness(loaded.tokenizer, [pair for item in some for pair in item.pairs])
        encoded = time.perf_counter() - began
        scored = loglikelihood(loaded, requests, mask, count=count)
        return time.perf_counter() - began, encoded, [s.logprob for s in scored], count

    gpu = loaded.device.type == "cuda"
    start = once(items if gpu else items[:CALIBRATE])[0]
    some = items if gpu else items[: int(max(CALIBRATE, seconds * CALIBRATE / start))]
    runs = [once(some)]
    while gpu and len(runs) < 5 and sum(run[0] for run in runs) < seconds:
        runs.append(once(some))
    best, encoded, values, count = min(runs, key=lambda run: run[0])
    note = f"{mask}, {count.attention}, {count.tokens / best:,.0f} tokens/s, padding {1 - count.tokens / count.padded:.1%}, "
    return Line(name, loaded.dtype, len(some), best, start - best if gpu else 0.0, note + f"{encoded:.2f} s of it tokenising",
                split(some, values))  # fmt: skip


def one_at_a_time(loaded: Loaded, items: Sequence[Question], seconds: float) -> Line:
    plain, tokenizer, device = loaded.model, loaded.tokenizer, loaded.device

    def score(context: str, continuation: str) -> float:
        kept = context.rstrip()
        head = tokenizer(kept)["input_ids"]
        whole = tokenizer(context + continuation)["input_ids"]
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([whole], device=device), use_cache=False).logits[0]
            logprobs = torch.log_softmax(logits.float(), -1)
        targets = torch.tensor(whole[len(head) :], device=device)
        return float(logprobs[len(head) - 1 : -1].gather(1, targets[:, None]).sum())

    for pair in items[0].pairs:
        score(*pair)
    began, found = time.perf_counter(), {}
    for number, item in enumerate(items):
        found[number] = [score(*pair) for pair in item.pairs]
        if time.perf_counter() - began > seconds:
            break
    return Line("one at a time", loaded.dtype, len(found), time.perf_counter() - began, found=found)


def hflm(loaded: Loaded, items: Sequence[Question], batch: int, seconds: float) -> Line:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    judge = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch, device=str(loaded.device))

    def once(some: Sequence[Question]) -> tuple[float, list[float]]:
        pairs = [pair for item in some for pair in item.pairs]
        began = time.perf_counter()
        asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        answers = judge.loglikelihood(asked, disable_tqdm=True)
        return time.perf_counter() - began, [value for value, _ in answers]

    guess = CALIBRATE / min(once(items[:CALIBRATE])[0] for _ in range(2))
    some = items[: int(max(CALIBRATE, min(len(items), guess * seconds)))]
    took, values = once(some)
    return Line(f"HFLM, batch {batch}", loaded.dtype, len(some), took, found=split(some, values))
