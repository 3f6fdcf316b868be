"""Scoring speed: ours against one sequence at a time, and against lm-evaluation-harness's HFLM.

    python -m benchmarks.score --device cpu|cuda [--seconds 60] [--limit 500] [--out FILE]

One run on one machine: the same weights, items and machine for every line. The time of a line is from texts to
log-probabilities, tokenising included; what is paid once (loading, compiling) is a column of its own. Each line has
`--seconds`: what does not get through all items by then is given a random sample of them, and the table says of how many.

    one at a time   each choice alone in a batch of one, logits of every position: what the reference experiment does
    HFLM, batch N   lm_eval.models.huggingface.HFLM, as `lm_eval --model hf --batch_size N`; where lm_eval is installed
    ours            app.scoring.loglikelihood, as the stages call it; `packed` is what it does with long work on a GPU

A machine without the embedded model: `--export DIR` on one that has it writes items and tokenizer, and `--data DIR` there
runs them through random weights of the same shape. The times are those of the real model, the predictions mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from app.model.load import Loaded
from benchmarks import written
from benchmarks.scorers import Line, Question, export, hflm, model_of, one_at_a_time, ours, plain_of, questions

BATCHES = (1, 16, 64, 256)
DTYPES = ("bfloat16", "float32")


def agreement(line: Line, other: Line, items: Sequence[Question]) -> str:
    """Shares of the items of both on which acc chooses alike, and on which acc_norm does."""
    both = sorted(set(line.found) & set(other.found))
    picks = [(items[i].picks(line.found[i]), items[i].picks(other.found[i])) for i in both]
    return " ".join(f"{sum(ours[k] == theirs[k] for ours, theirs in picks) / len(picks):.2%}" for k in (0, 1))


def table(lines: Sequence[Line], items: Sequence[Question], real: bool = True) -> str:
    """Rates, factors against both baselines, and of `real` weights the share of predictions equal to HFLM's, in Markdown."""
    singles = [line for line in lines if line.name == "one at a time"]
    rivals = [line for line in lines if line.name.startswith("HFLM")]
    best = max(rivals, key=lambda line: line.rate, default=None)
    out = ["| | dtype | items | seconds | items/s | x one at a time | x best HFLM | as HFLM: acc, acc_norm | start-up s | |",
           "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in lines:
        factor = f"{line.rate / singles[0].rate:.1f}" if singles else ""
        against = f"{line.rate / best.rate:.1f}" if best else ""
        same = agreement(line, best, items) if real and best and "prefix" not in line.note else ""
        cells = [line.name, line.dtype, f"{line.items} of {len(items)}", f"{line.seconds:.2f}", f"{line.rate:,.1f}", factor,
                 against, same, f"{line.start_s:.1f}", line.note]  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def machine(device: str) -> dict[str, Any]:
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu
    return {"device": name, "torch": torch.__version__, "cpus": os.cpu_count(), "load_before": os.getloadavg()[0]}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Scoring speed against one at a time and HFLM.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, default=500, help="items a task")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each line, about")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of our lines")
    parser.add_argument("--baselines", choices=DTYPES, help="their dtype; default: float32, on a GPU bfloat16")
    parser.add_argument("--data", type=Path, help="items and tokenizer from --export, and random weights")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write what --data reads")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-score.json"))
    return parser


def main() -> None:
    options = parser().parse_args()
    items = questions(options.limit, options.data)
    if options.export is not None:
        return export(items, options.export)
    gpu, about = options.device == "cuda", machine(options.device)
    print(about, flush=True)
    lines: list[Line] = []

    def add(line: Line) -> None:
        lines.append(line)
        did = f"{line.items} items in {line.seconds:.1f} s"
        print(f"{line.name}, {line.dtype}: {line.rate:,.1f} items/s ({did}) {line.note}", flush=True)

    def model(dtype: str, attention: str = "auto") -> Loaded:
        return model_of(options.device, dtype, attention, options.data)

    for dtype in options.dtypes:
        loaded = model(dtype)
        add(ours(loaded, items, "causal", options.seconds, "ours"))
        add(ours(loaded, items, "prefix", options.seconds, "ours"))
        if gpu:
            loaded = model(dtype, "flex_attention")
            add(ours(loaded, items, "causal", options.seconds, "ours, packed"))
    loaded = plain_of(options.device, options.baselines or ("bfloat16" if gpu else "float32"), options.data)
    add(one_at_a_time(loaded, items, options.seconds))
    for batch in BATCHES if find_spec("lm_eval") else ():
        add(hflm(loaded, items, batch, options.seconds))
    print(table(lines, items, options.data is None))
    rows = [{**{k: v for k, v in asdict(line).items() if k != "found"}, "items_per_s": line.rate} for line in lines]
    written(options.out, {"machine": about, "limit": options.limit, "lines": rows})
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
