"""`model.source: gguf`: a file of the user's becomes a plain checkpoint with the same logits, or is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from app.embedded.cache import fetch_gguf
from jobs.errors import CheckpointError, DataError
from jobs.runs.atomic import sha256_of

TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "ab", "Ġc"]
HEADS, HEAD = 2, 8


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=HEADS * HEAD, intermediate_size=32, num_hidden_layers=1, tie_word_embeddings=False,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0,
    )  # fmt: skip
    return LlamaForCausalLM(config).float().eval()


def write(path: Path, of: Any, *, architecture: str = "llama", without: str = "",
          merges: tuple[str, ...] = ("a b", "Ġ c")) -> Path:  # fmt: skip
    """`of` as llama.cpp writes it, in float32."""
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj":
             "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd",
             "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk"}  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HEADS * HEAD)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([2, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in of.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp pairs neighbours in its rotations, transformers halves
            values = values.reshape(HEADS, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(values.shape)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if name != without:
            writer.add_tensor(name, np.ascontiguousarray(values))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def test_a_file_becomes_a_plain_checkpoint_with_the_same_logits(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.gguf", model())
    old = tmp_path / "cache/models" / f"gguf-{sha256_of(file)[:32]}"
    old.mkdir(parents=True)  # whose tokenizer may be wrong, of an older version
    found = fetch_gguf(file, tmp_path / "cache")
    loaded: Any = AutoModelForCausalLM.from_pretrained(found)
    ids = torch.tensor([[1, 3, 4, 8, 5, 7]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model()(ids).logits, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(found)
    assert tokenizer("ab c", add_special_tokens=False)["input_ids"] == [7, 8]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert fetch_gguf(file, tmp_path / "cache") == found  # by content
    file.rename(tmp_path / "moved.gguf")
    assert fetch_gguf(tmp_path / "moved.gguf", tmp_path / "cache") == found


@pytest.mark.parametrize(
    ("file", "fact"),
    [
        ("gone.gguf", "no such file"),
        ("text.gguf", "is no GGUF file"),
        ("cut.gguf", "does not convert: "),
        ("other.gguf", "does not convert: GGUF model with architecture sphinx is not supported yet."),
        (
            "merges.gguf",
            "makes a wrong tokenizer of it: 1 of 6 of its own tokens are cut apart; use the model",
        ),
        ("holes.gguf", "lacks 1 weights, such as model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_file_that_makes_no_model_is_refused_and_leaves_nothing(file: str, fact: str, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    write(tmp_path / "other.gguf", model(), architecture="sphinx")
    write(tmp_path / "merges.gguf", model(), merges=("a b",))
    write(tmp_path / "holes.gguf", model(), without="blk.0.ffn_up.weight")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "other.gguf").read_bytes()[:900])
    with pytest.raises((CheckpointError, DataError)) as refused:
        fetch_gguf(tmp_path / file, tmp_path / "cache")
    assert fact in str(refused.value) and refused.value.where == str(tmp_path / file)
    assert not list((tmp_path / "cache").glob("models/*"))
