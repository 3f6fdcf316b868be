"""Every optimiser that a stage may name exists, learns, and says so where its library is missing."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import Trainer, TrainingArguments

from app.training import optimizers
from jobs.config.schema import Train
from jobs.errors import ConfigError

NAMES = get_args(Train.model_fields["optimizer"].annotation)


def train(name: str) -> Train:
    return Train(mask="prefix", max_steps=1, optimizer=name, learning_rate=0.05, weight_decay=0.01)  # type: ignore[arg-type]


def made_by_trainer(name: str, weight: torch.nn.Parameter, directory: Path) -> torch.optim.Optimizer:
    """What Trainer makes of the name that a stage gives it, as app/training/train.py asks for it."""
    stage = train(name)
    options = TrainingArguments(output_dir=str(directory), optim=optimizers.trainer_name(stage), use_cpu=True,
                                learning_rate=stage.learning_rate, weight_decay=stage.weight_decay)  # fmt: skip
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(options)
    made: torch.optim.Optimizer = kind([{"params": [weight], "weight_decay": stage.weight_decay}], **settings)
    return made


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_optimizer_lowers_a_loss_and_keeps_its_rate_and_decay(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, wanted = torch.nn.Parameter(torch.randn(8, 8)), torch.randn(8, 8)
    made = made_by_trainer(name, weight, tmp_path)
    assert (made.param_groups[0]["lr"], made.param_groups[0]["weight_decay"]) == (0.05, 0.01)
    before = None
    for _ in range(50):
        loss = (weight - wanted).square().mean()
        before = loss.detach() if before is None else before
        made.zero_grad()
        loss.backward()
        made.step()
    assert before is not None and loss < before / 2


def test_adafactor_holds_next_to_no_state_and_adamw_twice_the_weights(tmp_path: Path) -> None:
    def floats(name: str) -> int:
        weight = torch.nn.Parameter(torch.ones(64, 64))
        made = made_by_trainer(name, weight, tmp_path)
        weight.sum().backward()
        made.step()
        return sum(v.numel() for v in made.state[weight].values() if isinstance(v, torch.Tensor))

    assert floats("adamw") >= 2 * 64 * 64 and floats("adafactor") < 3 * 64


def test_trainer_knows_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.training_args import OptimizerNames

    monkeypatch.setattr(optimizers, "find_spec", lambda name: object())
    assert {optimizers.trainer_name(train(name)) for name in NAMES} <= {str(o.value) for o in OptimizerNames}


def test_eight_bits_without_a_library_is_a_mistake_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torchao or bitsandbytes, and neither is installed") as caught:
        optimizers.trainer_name(train("adamw_8bit"))
    assert "adafactor" in caught.value.remedy


@pytest.mark.parametrize("library, name", [("torchao", "adamw_torch_8bit"), ("bitsandbytes", "adamw_bnb_8bit")])
def test_eight_bits_come_from_the_library_that_is_there(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: name == library or None)
    assert optimizers.trainer_name(train("adamw_8bit")) == name
