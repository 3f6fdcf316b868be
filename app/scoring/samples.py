"""Answers side by side: the same prompts answered greedily by each model under each mask, and three numbers about the answers.

    echo_rate        share of an answer's words that stand in a run of at least 4 words of its prompt, the chat template's words
                     included: the coverage of extractive fragments (Grusky et al. 2018, arXiv 1804.11283) without short ones
    repetition_rate  1 - distinct 4-grams of tokens / all 4-grams of tokens: seq-rep-4 (Welleck et al. 2020, arXiv 1908.04319)
    tokens           of the answer; it is cut at the most that were asked for

An answer too short for a rate has none, and does not count in its mean.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from app.model.load import Loaded
from app.scoring.generate import answers, encode_prompts
from jobs.config import strict_yaml
from jobs.config.schema import Mask, Strict
from jobs.config.validate import Layer, validate
from jobs.errors import ConfigError

PROMPTS = Path(__file__).resolve().parents[2] / "jobs" / "prompts" / "samples.yaml"
RUN = 4  # words, or tokens
_WORD = re.compile(r"[^\W_]+")


class Prompt(Strict):
    id: str
    text: str


class _Prompts(Strict):
    prompts: Annotated[list[Prompt], Field(min_length=1)]


def read_prompts(path: Path = PROMPTS) -> list[Prompt]:
    """The prompts of a YAML file, {prompts: [{id, text}, ...]}.

    Raises:
        ConfigError: malformed, empty, or an id twice.
    """
    if not path.is_file():
        raise ConfigError(path, "no such file", "give a file such as jobs/prompts/samples.yaml")
    found = validate(_Prompts, [Layer(str(path), strict_yaml.read(path, str(path)))]).prompts
    for index, one in enumerate(found):
        where = f"{path}: prompts[{index}]"
        if not (one.id.strip() and one.text.strip()):
            raise ConfigError(where, "expected {id: ..., text: ...}, both texts", "see jobs/prompts/samples.yaml")
        if any(one.id == other.id for other in found[:index]):
            raise ConfigError(where, f"the id {one.id} is there twice", "give another one")
    return found


def echo_rate(prompt: str, answer: str) -> float | None:
    """Share of the answer's words in a run of RUN words or more that the prompt has too; None for fewer words than that."""
    said, given = (_WORD.findall(text.lower()) for text in (answer, prompt))
    if len(said) < RUN:
        return None
    known = {tuple(given[i : i + RUN]) for i in range(len(given) - RUN + 1)}
    echoed = {i + k for i in range(len(said) - RUN + 1) if tuple(said[i : i + RUN]) in known for k in range(RUN)}
    return len(echoed) / len(said)


def repetition_rate(tokens: Sequence[int]) -> float | None:
    """Share of the answer's runs of RUN tokens that it had before; None for fewer tokens than that."""
    runs = [tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else None


def column(model: str, loaded: Loaded, prompts: Sequence[Prompt], mask: Mask, *, max_new_tokens: int) -> dict[str, Any]:
    """One model under one mask, as samples.json holds it: its answer to each prompt, and the means over them.

    Prompts are chats where the tokenizer has a template. `cut`: the answer was ended by its length.
    """
    tokenizer = loaded.tokenizer
    encoded = encode_prompts(loaded, [prompt.text for prompt in prompts], chat=bool(tokenizer.chat_template))
    found: list[dict[str, Any]] = []
    for given, ids in zip(encoded, answers(loaded, encoded, mask, max_new_tokens=max_new_tokens), strict=True):
        read = tokenizer.decode(given, skip_special_tokens=True)  # with what the template adds, such as a system's turn
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        found.append({"text": text, "tokens": len(ids), "cut": len(ids) >= max_new_tokens,
                      "echo_rate": echo_rate(read, text), "repetition_rate": repetition_rate(ids)})  # fmt: skip
    means = {}
    for name in ("echo_rate", "repetition_rate", "tokens", "cut"):
        known = [one[name] for one in found if one[name] is not None]
        means[name] = sum(known) / len(known) if known else None
    return {"model": model, "origin": loaded.origin, "mask": mask, "means": means, "answers": found}
