"""A profile for benchmarks.stages whose model has random weights of a shape, and whose training examples are as long as alpaca's.

What a stage costs depends on both, and neither can be had without a hub. The text is drawn from the embedded tokenizer's
words, so that an example has about as many tokens as were drawn for it. Losses mean nothing.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from app.embedded import cache
from app.model.tokenizer import tokenizer_of
from benchmarks.trainers import Setting, alpaca_like, random_model

PROFILE = Path(__file__).resolve().parent.parent / "jobs" / "profiles" / "ministral-3b.yaml"
EXAMPLES = 51_760  # as many as yahma/alpaca-cleaned has


def write_profile(directory: Path, shape: str, device: str, examples: int = EXAMPLES) -> Path:
    """The path of a profile like ministral-3b; weights (bfloat16), tokenizer and examples lie beside it."""
    directory.mkdir(parents=True)
    tokenizer: Any = tokenizer_of(str(cache.fetch_model()))
    model = random_model(Setting(shape, device, 0, 0), "sdpa", torch.bfloat16, len(tokenizer))
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    del model
    torch.cuda.empty_cache()  # for the stages, which are processes of their own
    with (directory / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in _rows(tokenizer, examples))
    profile = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    profile["name"] = f"random-{shape}"
    profile["model"] |= {"source": "path", "name": str(directory / "model")}
    profile["data"]["eval"] = {"source": "embedded"}
    profile["data"]["train"] = {
        "source": "path",
        "path": str(directory / "train.jsonl"),
        "format": "alpaca",
        "template": "chat",
    }
    path = directory / f"random-{shape}.yaml"
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    return path


def _rows(tokenizer: Any, count: int) -> list[dict[str, str]]:
    """Instructions and outputs in the lengths of benchmarks.train, the chat's frame included.

    Each word is one token, and one of four others follows it, so that a loss falls throughout a long training.
    """
    words = [
        word
        for word in map(tokenizer.decode, range(300, 20_000))
        if word[1:].isascii() and re.fullmatch(r" [A-Za-z]+", word)
    ]
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    frame = len(tokenizer.apply_chat_template(chat, return_dict=False)) - 2
    draw = random.Random(0)

    def text(tokens: int) -> str:
        at = [draw.randrange(len(words))]
        while len(at) < tokens:
            at.append((at[-1] * 7919 + draw.randrange(4) * 1031 + 13) % len(words))
        return "".join(words[i] for i in at).strip()

    found = []
    for e in alpaca_like(count, 100, 0):
        asked = max(1, len(e.prompt_ids) - frame)  # a prompt may be shorter than the frame
        found.append({"instruction": text(asked), "input": "", "output": text(max(1, len(e) - frame - asked))})
    return found
