"""What is compared by benchmarks/train.py: one model's shape, the same examples, and the ways to train on them.

Each way trains until it is stopped, and says after every optimiser step how many tokens it has seen so far.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer
from transformers import Adafactor, AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from app.attention.backends import NAMES
from app.attention.mask import Document, layout
from app.data.examples import TokenExample
from app.model.compiled import speed_up, suits
from app.model.load import Loaded, cpu_has_bf16
from app.runtime.heartbeat import Heartbeat
from app.runtime.signals import StopFlag
from app.training import fsdp as sharded
from app.training.batch import Collator, Schedule, Steps, tokens_multiple
from app.training.cuda_graph import Graphs, in_shapes
from app.training.loop import TrainingLoop
from app.training.lora import with_adapter
from app.training.recorder import Recorder
from jobs.config.schema import Lora, Mask, Objective, Train
from jobs.estimate.graphs import suitable
from jobs.runs.rundir import RunDir

SHAPES: dict[str, dict[str, Any]] = {
    "ministral-3b": dict(model_type="ministral3", hidden_size=3072, num_hidden_layers=26, num_attention_heads=32,
                         num_key_value_heads=8, head_dim=128, intermediate_size=9216, vocab_size=131072),
    "smollm2-135m": dict(model_type="llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
                         num_key_value_heads=3, intermediate_size=1536, vocab_size=49152),
    "tiny": dict(model_type="llama", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=128, vocab_size=1000),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a way is given. `row_tokens` and `batch_size` are ours; the other ways have their own."""

    shape: str
    device: str
    row_tokens: int
    batch_size: int
    gradient_checkpointing: bool = False
    seed: int = 0
    graph: bool | Literal["auto"] = "auto"
    examples: int = 20_000  # that there are


Done = Callable[[int, int], None]  # told after each step: tokens so far, and with padding


def alpaca_like(n: int, vocabulary: int, seed: int) -> list[TokenExample]:
    """Random ids in lengths like those of yahma/alpaca-cleaned under a chat template: mean about 140, long tail."""
    draw = random.Random(seed)
    found = []
    for i in range(n):
        size = min(1024, max(12, round(draw.lognormvariate(4.75, 0.62))))
        prompt = max(4, round(size * draw.uniform(0.15, 0.6)))
        ids = [draw.randrange(3, vocabulary) for _ in range(size)]
        found.append(TokenExample(tuple(ids[:prompt]), tuple(ids[prompt:]), str(i), ""))
    return found


def random_model(setting: Setting, attention: str, dtype: torch.dtype, least_vocabulary: int = 0) -> Any:
    torch.manual_seed(setting.seed)
    shape = dict(SHAPES[setting.shape])
    shape["vocab_size"] = max(shape["vocab_size"], least_vocabulary)
    config = AutoConfig.for_model(
        shape.pop("model_type"), **shape, tie_word_embeddings=True, max_position_embeddings=16384
    )
    with torch.device(setting.device):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)


def _bf16(device: str) -> bool:
    return device == "cuda" or cpu_has_bf16()


class _Each(TrainerCallback):
    def __init__(self, step_over: Callable[[], None]) -> None:
        self.step_over = step_over

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_over()


def _arguments(setting: Setting, steps: int, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=steps, learning_rate=2e-5, warmup_steps=10, optim="adamw_torch_fused",
        bf16=_bf16(setting.device), use_cpu=setting.device == "cpu", save_strategy="no", logging_steps=1,
        logging_nan_inf_filter=False, report_to=[], remove_unused_columns=False, disable_tqdm=True, **more,
        gradient_checkpointing=setting.gradient_checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip


class _StepRecorder(Recorder):
    """The product's recorder, which calls `done` after each step that was launched."""

    def __init__(self, run: RunDir, done: Callable[[], None]) -> None:
        super().__init__(run, StopFlag(), Heartbeat(run))
        self.done, self.steps = done, 0

    def beat(self, step: int, total: int, phase: str = "train", force: bool = False) -> None:
        super().beat(step, total, phase, force)
        if step > self.steps and phase == "train":
            self.steps = step
            self.done()


def ours(setting: Setting, done: Done, mask: Mask, lora: Lora | None = None, kl: float = 0.0) -> None:
    """The product's own loop, as a stage calls it: float32 weights, bf16 autocast, fused AdamW, packed rows."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = random_model(setting, NAMES["sdpa"], torch.float32)
    loaded = Loaded(model, None, "random", 16384, any_attention=True)
    fast, total = suits(loaded), 10_000
    train = Train(mask=mask, max_steps=total, batch_size=setting.batch_size, micro_batch_size=setting.batch_size,
                  warmup_steps=10, gradient_checkpointing=setting.gradient_checkpointing, graph=setting.graph, keep="last",
                  eval_every=total, save_every=total + 1, lora=lora, objective=Objective(kl=kl))  # fmt: skip
    data = alpaca_like(setting.examples, model.config.vocab_size, setting.seed)
    schedule = Schedule([data], [1.0], total, setting.batch_size, setting.seed)
    steps = Steps(Collator(mask, multiple=tokens_multiple(fast, loaded.device)), setting.row_tokens)
    mean = sum(map(len, data)) / len(data)
    row = min(setting.batch_size * mean, setting.row_tokens)
    graphed, _ = suitable(train, cuda=loaded.device.type == "cuda", compiled=fast, world=1,
                          parameters=model.num_parameters(), tokens=row)  # fmt: skip
    if graphed:
        steps = in_shapes(steps, schedule, model, model.num_parameters())
    if setting.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = model if lora is None else with_adapter(model, lora)
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as directory, RunDir.create(Path(directory), "stage3b", now) as run:
        loop = TrainingLoop(
            trained, train, accelerator=sharded.accelerator(loaded.device, _bf16(setting.device)), steps=steps,
            schedule=schedule, eval_batches=[data[:16]], directory=run.checkpoints, graphs=Graphs() if graphed else None,
            recorder=_StepRecorder(run, lambda: done(loop.tokens_seen, loop.padded_tokens_seen)),
        )  # fmt: skip
        for one in (model, loop.work.loss_of.teacher) if fast else ():
            if one is not None:
                speed_up(one, tokens=row)
        loop.prepare()
        loop.run()


def reference(setting: Setting, done: Done) -> None:
    """What the reference experiment does: one example at a time, dense 4D mask, checkpointing, Adafactor, all logits."""
    dtype = torch.bfloat16 if _bf16(setting.device) else torch.float32
    model = random_model(setting, "sdpa", dtype).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = Adafactor(model.parameters(), lr=2e-5, scale_parameter=False, relative_step=False)
    tokens, accumulate = 0, 16
    for i, example in enumerate(alpaca_like(setting.examples, model.config.vocab_size, setting.seed), start=1):
        ids = torch.tensor([[*example.prompt_ids, *example.response_ids]], device=setting.device)
        allowed = layout([[Document(len(example.prompt_ids), len(example))]], "prefix", device=setting.device).dense()
        mask = torch.zeros(allowed.shape, dtype=dtype, device=setting.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = -100
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        (loss / accumulate).backward()
        tokens += len(example)
        if i % accumulate == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done(tokens, tokens)


def padded(setting: Setting, done: Done) -> None:
    """transformers' Trainer on batches of examples of like length, padded; causal, as it comes; all logits."""
    size, together = 16, 50  # examples a batch; batches among which examples are sorted, as group_by_length does
    model = random_model(setting, "sdpa", torch.float32)
    data = alpaca_like(setting.examples, model.config.vocab_size, setting.seed)
    chunks = [sorted(data[i : i + size * together], key=len) for i in range(0, len(data), size * together)]
    batches = [chunk[i : i + size] for chunk in chunks for i in range(0, len(chunk), size)]
    random.Random(setting.seed).shuffle(batches)
    seen = [0, 0]

    def collate(examples: Sequence[TokenExample]) -> dict[str, torch.Tensor]:
        width = -(-max(map(len, examples)) // 8) * 8
        ids, labels, mask = [], [], []
        for e in examples:
            pad = width - len(e)
            ids.append([*e.prompt_ids, *e.response_ids, *[0] * pad])
            labels.append([*[-100] * len(e.prompt_ids), *e.response_ids, *[-100] * pad])
            mask.append([1] * len(e) + [0] * pad)
        seen[0] += sum(map(len, examples))
        seen[1] += width * len(examples)
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    trainer = InOrder(
        model, _arguments(setting, len(batches), per_device_train_batch_size=size), data_collator=collate,
        train_dataset=[e for batch in batches for e in batch], callbacks=[_Each(lambda: done(seen[0], seen[1]))],
    )  # fmt: skip
    trainer.train()


def sft(setting: Setting, done: Done) -> None:
    """TRL's SFTTrainer with packing, where it is installed; causal, as it comes. Not tried here: its wheel is no dependency."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = random_model(setting, "sdpa", torch.float32)
    data = alpaca_like(setting.examples, model.config.vocab_size, setting.seed)
    mean, width, rows = sum(map(len, data)) / len(data), 1024, 16
    steps = 0

    def step_over() -> None:  # a packed row has few tokens less than its width
        nonlocal steps
        steps += 1
        done(round(steps * rows * (width - mean / 2)), steps * rows * width)

    words = Dataset.from_list([{"input_ids": [*e.prompt_ids, *e.response_ids]} for e in data])
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=10_000, per_device_train_batch_size=rows, packing=True, max_length=width,
        bf16=_bf16(setting.device), save_strategy="no", report_to=[], disable_tqdm=True, optim="adamw_torch_fused",
    )  # fmt: skip
    SFTTrainer(model, args=arguments, train_dataset=words, callbacks=[_Each(step_over)]).train()


def peak(device: str) -> float:
    """FLOP/s of a matrix product of 8192 by 8192 (CPU: 2048) in the type that is trained in."""
    n = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if _bf16(device) else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    timer = Timer("linear(a, b)", globals={"linear": F.linear, "a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * n**3 / min(timer.timeit(10).mean for _ in range(3))  # the timer warms up, and waits for the GPU


WAYS: dict[str, tuple[str, Callable[[Setting, Done], None]]] = {
    "ours-prefix": ("ours, prefix mask", lambda s, done: ours(s, done, "prefix")),
    "ours-causal": ("ours, causal mask", lambda s, done: ours(s, done, "causal")),
    "reference": ("(a) batch 1, dense 4D mask, checkpointing, Adafactor, all logits", reference),
    "ours-lora": ("ours, prefix mask, LoRA", lambda s, done: ours(s, done, "prefix", lora=Lora())),
    "ours-kl": ("ours, prefix mask, KL to the frozen start", lambda s, done: ours(s, done, "prefix", kl=0.5)),
    "padded": ("(b) Trainer, padded length-grouped batches of 16, causal", padded),
    "sft": ("(c) TRL's SFTTrainer, packed rows of 1,024, causal", sft),
}
