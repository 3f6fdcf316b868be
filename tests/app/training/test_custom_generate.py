"""Stock transformers, without our package, answers token for token as `python -m app generate` does under `prefix`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from app.model.load import Loaded
from app.scoring.generate import generate
from app.training import custom_generate

# Run with -P in an empty directory: nothing of this repository can be imported there.
STOCK = """
import importlib.util, json, sys
assert not any(importlib.util.find_spec(name) for name in ("app", "jobs"))
import torch
from transformers import AutoModelForCausalLM
asked = json.load(sys.stdin)
for directory, kernel, prompts, more in asked:
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=kernel)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    plain = model.generate(input_ids=ids, attention_mask=real, **options)
    out = model.generate(input_ids=ids, attention_mask=real, custom_generate=directory, trust_remote_code=True, **options, **more)
    print(json.dumps([out[:, width:].tolist(), plain[:, width:].tolist()]))
"""


def stock(asked: list[Any], directory: Path) -> list[Any]:
    ended = subprocess.run([sys.executable, "-P", "-c", STOCK], input=json.dumps(asked), capture_output=True, text=True,
                           cwd=directory, timeout=250, env={"PATH": "/usr/bin:/bin", "HF_HOME": str(directory / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_it_answers_as_ours_does_for_every_architecture_batch_and_kernel(model_of: Any, tmp_path: Path) -> None:
    from tests.app.conftest import ARCHITECTURES

    asked, ours = [], []
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 90, (n,), generator=random).tolist() for n in (11, 4, 1)]
    for architecture in sorted(ARCHITECTURES):
        model = model_of(architecture)
        model.save_pretrained(tmp_path / architecture)
        (tmp_path / architecture / "custom_generate").mkdir()
        shutil.copy(custom_generate.__file__, tmp_path / architecture / "custom_generate" / "generate.py")
        model.generation_config.eos_token_id = None
        loaded = Loaded(model, None, architecture, 128)
        for kernel, some in (("sdpa", prompts), ("eager", prompts[:1])):
            asked.append([str(tmp_path / architecture), kernel, some, {}])
            ours.append([generate_without_tokenizer(loaded, some) for some in ([prompt] for prompt in some)])
    other = 0
    for (directory, kernel, _, _), mine, (theirs, plain) in zip(asked, ours, stock(asked, tmp_path), strict=True):
        assert theirs == [answer for (answer,) in mine], (directory, kernel)
        other += theirs[0] != plain[0]
    assert other >= len(asked) / 2  # with a causal prompt the answers are others, or nothing is shown


def generate_without_tokenizer(loaded: Loaded, prompts: list[list[int]]) -> list[list[int]]:
    import app.scoring.generate as ours

    before, ours.stops_of = ours.stops_of, lambda _: []
    try:
        return generate(loaded, prompts, "prefix", max_new_tokens=12)
    finally:
        ours.stops_of = before


def test_a_finished_run_carries_it(trained: Path) -> None:
    (written,) = trained.glob("stage3b/*/final/custom_generate/generate.py")
    assert written.read_text() == Path(custom_generate.__file__).read_text()
    assert "trust_remote_code=True)" in (written.parents[1] / "README.md").read_text()


def plain(model: Any) -> Any:
    model.set_attn_implementation("sdpa")
    return model


def test_beams_and_several_answers_start_from_the_same_prompt(model_of: Any) -> None:
    model = plain(model_of("llama"))
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    one = torch.tensor([[5, 9, 31, 7, 12]])
    both = torch.cat([one, one.flip(1)])
    beams = custom_generate.generate(model, both, torch.ones_like(both), num_beams=3, num_return_sequences=2, **options)
    alone = custom_generate.generate(model, one, torch.ones_like(one), num_beams=3, num_return_sequences=2, **options)
    assert beams.shape == (4, 11) and beams[:2].tolist() == alone.tolist()


@pytest.mark.parametrize(("given", "fact"), [
    (dict(attention_mask=torch.tensor([[1, 1, 0]])), "padded on the right"),
    (dict(past_key_values=object()), "the whole prompt is read at once"),
    (dict(prefill_chunk_size=2), "chunks"),
    (dict(input_ids=None, inputs_embeds=torch.zeros(1, 3, 4)), "expected token ids"),
])  # fmt: skip
def test_what_would_read_the_prompt_otherwise_is_refused(given: dict[str, Any], fact: str, model_of: Any) -> None:
    asked = {"input_ids": torch.tensor([[5, 9, 31]]), **given}
    with pytest.raises(ValueError, match=fact):
        custom_generate.generate(plain(model_of("llama")), **asked)
