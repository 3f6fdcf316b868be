"""The shape of a model, as far as memory and arithmetic need it, found without loading the model."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.config.profile import ModelSource
from jobs.errors import expanded


@dataclass(frozen=True)
class Shape:
    """A decoder with gated MLPs.

    stated: parameters by its name, where the sizes are only a guess from them. eager: its attention has soft caps or sinks, so
    `attention: auto` computes it eagerly, without FlexAttention and compiled layers. norms: queries, keys and what attention and
    MLP add to the stream are normed too. plain_head: its logits are known to be a product and nothing else, so that scoring
    makes them in parts.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    stated: int | None = None
    eager: bool = False
    norms: bool = False
    plain_head: bool = False

    @property
    def parameters(self) -> int:
        """Weights in all, biases left out."""
        if self.stated is not None:
            return self.stated
        return self.embedding_parameters + self.layers * self.layer_parameters + self.hidden

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and of the output layer, which may share them."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def activation_bytes(self) -> int:
        """Bytes a token and layer that the backward pass needs, bf16 arithmetic, attention that stores no matrix:
        the inputs of both norms (fp32, the residual stream), of every projection, and the gate's two factors."""
        heads = self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        normed = 2 * (2 * self.hidden + self.head_dim * (self.heads + self.kv_heads)) if self.norms else 0
        return 2 * 4 * self.hidden + 2 * (2 * self.hidden + heads) + 2 * 4 * self.intermediate + normed


_SMOLLM2 = Shape(576, 30, 9, 3, 64, 1536, 49152, True, plain_head=True)
_GEMMA_270M = Shape(640, 18, 4, 1, 256, 2048, 262144, True, norms=True, plain_head=True)
_MINISTRAL_3B = Shape(3072, 26, 32, 8, 128, 9216, 131072, True)
# Model types that `attention: auto` runs eagerly; a test compares them with docs/models.md.
EAGER_TYPES = {"flint", "gemma2", "got_ocr2", "gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash", "vaultgemma"}
_NORMS = re.compile(r"gemma-?3|qwen-?3|olmo-?[23]", re.IGNORECASE)  # of these, by name or model type, at least some
_EAGER_NAMES = re.compile(r"gemma-2-|gpt-oss|vaultgemma|mimo-v2-flash", re.IGNORECASE)
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d{1,9}(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)


def shape_of(source: ModelSource) -> tuple[Shape | None, str]:
    """The shape, and in words where it comes from, or why it is not known."""
    name = source.name or ""
    if source.source == "embedded":
        return (_GEMMA_270M if name == "gemma-3-270m" else _SMOLLM2), "the embedded model"
    if source.source == "random":
        return _from_config(source.config or {}, "model.config")
    if source.source == "path":
        file = expanded(name) / "config.json"
        try:
            return _from_config(json.loads(file.read_text(encoding="utf-8")), str(file))
        except (OSError, ValueError) as error:
            return None, f"{file} cannot be read ({type(error).__name__})"
    if re.search(r"Ministral-3-3B", name):
        return _MINISTRAL_3B, "the published config of Ministral 3 3B"
    if found := _SIZE.search(name):
        size = float(found[1]) * (1e9 if found[2].upper() == "B" else 1e6)
        kind = {"eager": _EAGER_NAMES.search(name) is not None, "norms": _NORMS.search(name) is not None}
        return replace(_of_size(int(size)), **kind), f"a typical model of the size in its name, {found[0]}"
    return None, f"the name {name} holds no size, and only the hub knows its config"


def _from_config(config: Mapping[str, Any], where: str) -> tuple[Shape | None, str]:
    """The shape from a transformers config; of a vision-language model, that of its language model."""
    inner = config.get("text_config")
    values = {**config, **inner} if isinstance(inner, Mapping) else config
    kinds = {str(config.get("model_type")), str(values.get("model_type"))}
    try:
        hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
        shape = Shape(
            hidden, int(values["num_hidden_layers"]), heads, int(values.get("num_key_value_heads") or heads),
            int(values.get("head_dim") or hidden // heads), int(values["intermediate_size"]), int(values["vocab_size"]),
            bool(values.get("tie_word_embeddings", False)), eager=bool(EAGER_TYPES & kinds),
            norms=any(map(_NORMS.search, kinds)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        return None, f"{where} lacks what its size depends on ({error})"
    sizes = [size for size in vars(shape).values() if size is not None and not isinstance(size, bool)]
    if min(sizes) < 1 or max(sizes) > 10**12:
        return None, f"{where} has a size {'below 1' if min(sizes) < 1 else 'beyond all models'}"
    return shape, where


def _of_size(parameters: int) -> Shape:
    """Depth and width as models of that size have them: parameters = 12 * layers * hidden**2 with hidden = 110 * layers."""
    layers = max(1, round((parameters / (12 * 110**2)) ** (1 / 3)))
    hidden = max(64, round(110 * layers / 64) * 64)
    heads = max(1, hidden // 128)
    return Shape(hidden, layers, heads, max(1, heads // 4), 128, 3 * hidden, 128_000, True, stated=parameters)
