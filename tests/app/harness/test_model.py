"""The harness's model `prefill`: under `causal` the harness's own, and what a prefix is under the others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from app.harness.model import PrefillLM, main
from app.harness.response_cache import fingerprint
from jobs.errors import ConfigError, DataError, ModelError, UserError
from tests.app.conftest import make_model
from tests.app.fakes.harness_models import CONTEXT, ask, instances, ours, theirs
from tests.app.fakes.word_tokenizer import word_tokenizer

PAIRS = [
    ("Question: why is the sky blue?\nAnswer:", " Because of scattering"), ("Question: why is the sky blue?\nAnswer:", " No"),
    ("", "Hello there"), ("trailing  ", "space"), ("<|im_start|>user\nhi", " there<|im_end|>"), ("a " * 300, " long context"),
]  # fmt: skip
TEXTS = ["A short text.", "<|im_start|>begun already", "words and more of them, " * 40]
PROMPTS = ["Question: why is the sky blue?\nAnswer:", "Once upon a time", "one two three " * 60]


@pytest.fixture(scope="module")
def tokenizer(embedded: Any) -> Any:
    return AutoTokenizer.from_pretrained(embedded.model)


@pytest.fixture(scope="module", params=["llama", "gemma3-hybrid"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param, vocab_size=49152, max_position_embeddings=CONTEXT, initializer_range=0.2,
                      bos_token_id=1, eos_token_id=2, pad_token_id=2)  # fmt: skip


# ---- under causal, the harness's own model ----------------------------------------------------------------------------


def test_causal_equals_hflm(model: Any, tokenizer: Any) -> None:
    lm, hf = ours(model, tokenizer, "causal", batch_tokens=300), theirs(model, tokenizer)
    for got, want in zip(ask(lm, "loglikelihood", PAIRS), ask(hf, "loglikelihood", PAIRS), strict=True):
        assert got == (pytest.approx(want[0], abs=2e-3), want[1])
    assert lm.counts["contexts_truncated"] == 1  # the long one, and that without an error
    texts = [(text,) for text in TEXTS]
    assert ask(lm, "loglikelihood_rolling", texts) == pytest.approx(ask(hf, "loglikelihood_rolling", texts), rel=1e-4)
    for settings in ({"until": ["\n"], "max_gen_toks": 9}, {"until": ["e"], "max_new_tokens": 7, "temperature": 0}):
        prompts = [(prompt, {**settings, "do_sample": False}) for prompt in PROMPTS]
        assert ask(lm, "generate_until", prompts) == ask(hf, "generate_until", prompts)


def test_a_beginning_that_is_written_out_is_not_doubled() -> None:
    tokenizer = word_tokenizer("<s> $A")
    model = make_model("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=1)
    pairs = [("a b", " c"), ("<s> a b", " c"), ("", "c d"), ("", "<s> c d")]
    lm, hf = ours(model, tokenizer, "causal"), theirs(model, tokenizer)
    got, want = ask(lm, "loglikelihood", pairs), ask(hf, "loglikelihood", pairs)
    assert [score for score, _ in got] == pytest.approx([score for score, _ in want], abs=2e-3)
    assert got[0][0] == pytest.approx(got[1][0], abs=1e-4)


@pytest.mark.parametrize(("kind", "arguments"), [
    ("loglikelihood", [("a b", " c"), ("a b", " d")]),
    ("loglikelihood_rolling", [("a b c",), ("a b d",)]),
    ("generate_until", [(text, {"until": ["."], "max_gen_toks": 4}) for text in ("a b c", "a b d")]),
])  # fmt: skip
def test_a_token_without_a_row_in_the_embedding_is_refused_by_name(kind: str, arguments: list[Any]) -> None:
    tokenizer = word_tokenizer("<s> $A")
    rows = tokenizer.convert_tokens_to_ids("d")
    model = make_model("llama", vocab_size=rows, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with pytest.raises(DataError, match=rf"(request|prompt) 2: its token 'd' has the id {rows}, and the embedding of"):
        ask(ours(model, tokenizer, "causal"), kind, arguments)


# ---- what the prefix is -----------------------------------------------------------------------------------------------


def test_a_score_that_is_no_number_is_refused(model: Any, tokenizer: Any) -> None:
    lm, token = ours(copy.deepcopy(model), tokenizer, "prefix"), tokenizer.encode(" there")[0]
    with torch.no_grad():
        lm.loaded.model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(ModelError, match="request [12]: its log-likelihood is nan"):
        ask(lm, "loglikelihood", [("Hello", " you"), ("Hello there", " you")])


def test_the_same_tokens_split_elsewhere_score_otherwise_under_prefix_alone(model: Any, tokenizer: Any) -> None:
    """HFLM keeps logits by context + continuation[:-1], which under a prefix mask are not one thing but two."""
    pairs = [("one two three four", " five"), ("one two", " three four five"), ("one two three four", " six")]
    whole = ask(ours(model, tokenizer, "prefix"), "loglikelihood", pairs)
    for pair, together in zip(pairs, whole, strict=True):
        alone = ask(ours(model, tokenizer, "prefix"), "loglikelihood", [pair])
        assert together[0] == pytest.approx(alone[0][0], abs=2e-3)
    causal = ask(ours(model, tokenizer, "causal"), "loglikelihood", pairs)
    assert abs(whole[0][0] - causal[0][0]) > 1e-2


def test_a_truncated_context_stays_the_prefix(model: Any, tokenizer: Any) -> None:
    lm = ours(model, tokenizer, "prefix")
    context, rest = tokenizer("a b c d " * 60)["input_ids"], tokenizer(" and more")["input_ids"]
    cut = context[-(CONTEXT + 1 - len(rest)) :]
    long, short = lm._loglikelihood_tokens([(None, context, rest), (None, cut, rest)], disable_tqdm=True)
    assert long[0] == pytest.approx(short[0], abs=1e-4) and lm.get_model_info()["contexts_truncated"] == 1
    with pytest.raises(DataError, match="continuation of 200 tokens"):
        lm._loglikelihood_tokens([(None, [5], [6] * 200)])


def test_rolling_is_causal_within_one_window_and_not_in_the_last_of_several(model: Any, tokenizer: Any) -> None:
    causal, prefix = (ours(model, tokenizer, mask) for mask in ("causal", "prefix"))
    short, long = [(TEXTS[0],)], [(TEXTS[2],)]
    assert ask(prefix, "loglikelihood_rolling", short) == pytest.approx(ask(causal, "loglikelihood_rolling", short))
    gap = ask(prefix, "loglikelihood_rolling", long)[0] - ask(causal, "loglikelihood_rolling", long)[0]
    assert abs(gap) > 1e-2


def test_bidirectional_scores_with_a_label_and_does_not_generate(model: Any, tokenizer: Any, caplog: Any) -> None:
    lm = ours(model, tokenizer, "bidirectional")
    assert "LEAKS" in caplog.text and lm.get_model_info()["leaks"]
    lm.run.attentions.add("another")  # as where it was switched on the way
    assert lm.get_model_info()["attention"] == "another"
    assert len(ask(lm, "loglikelihood", PAIRS)) == len(PAIRS)  # the long one too: every token is fed, and all fit
    assert len(ask(lm, "loglikelihood_rolling", [(text,) for text in TEXTS])) == len(TEXTS)
    with pytest.raises(ConfigError, match="cannot generate"):
        ask(lm, "generate_until", [("a", {"until": ["\n"]})])


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}, {"max_gen_toks": 999}]
)
def test_what_is_not_greedy_is_refused(model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"generation_kwargs: ({next(iter(settings))}|do_sample)"):
        ask(ours(model, tokenizer, "prefix"), "generate_until", [("a", {"until": ["\n"], **settings})])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model_args: mask: expected one of causal, prefix"),
        ({"mask": "prefix", "masks": "x"}, "unknown key masks"),
        ({"mask": "prefix", "batch_tokens": "many"}, "batch_tokens: expected a positive integer"),
        ({"mask": "prefix", "device": "mps"}, "device: expected cpu or cuda"),
    ],
)
def test_wrong_model_args_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PrefillLM(**options)


def test_a_task_that_there_is_not_is_one_line_of_the_harness_s_own_command_too(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # fmt: skip
    words = ["run", "--model", "prefill", "--model_args", "profile=ci,mask=prefix", "--tasks", "nosuch"]
    monkeypatch.setattr("sys.argv", ["app.harness.model", *words])
    assert main() == 2
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "error: --tasks: Tasks not found: nosuch; see python -m app.harness ls tasks"
    )

    def broken() -> None:
        raise ValueError("something else")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", broken)
    with pytest.raises(ValueError, match="something else"):
        main()


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_profile_of_several_gpus_is_scored_on_one_with_a_notice(gpus: int, caplog: Any, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    text = Path("jobs/profiles/ci.yaml").read_text(encoding="utf-8")
    profile.write_text(f"{text}\ngpus: {gpus}\n", encoding="utf-8")
    with caplog.at_level("WARNING", logger="app"):
        PrefillLM("causal", str(profile))
    said = [record.getMessage() for record in caplog.records if "gpus" in record.getMessage()]
    assert said == (["profile ci: gpus: 2, and the harness's tasks are scored on one"] if gpus == 2 else [])


# ---- what the harness keeps, and the chat template --------------------------------------------------------------------


def test_a_response_cache_belongs_to_one_mask_and_model(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    file = str(tmp_path / "answers.db")
    first = CachingLM(ours(model, tokenizer, "prefix"), file)
    want = first.loglikelihood(instances("loglikelihood", PAIRS))
    first.dbdict.close()
    again = CachingLM(ours(model, tokenizer, "prefix"), file)
    again.lm.loglikelihood = None  # not asked: all of it is in the file
    assert again.loglikelihood(instances("loglikelihood", PAIRS)) == want
    again.dbdict.close()
    with pytest.raises(ConfigError, match=r"answers\.db: holds the answers of another mask"):
        CachingLM(ours(model, tokenizer, "causal"), file)
    other = make_model("llama", seed=9, vocab_size=49152, max_position_embeddings=CONTEXT)
    with pytest.raises(ConfigError, match="holds the answers of another weights"):
        CachingLM(ours(other, tokenizer, "prefix"), file)
    edited = copy.deepcopy(tokenizer)
    edited.add_special_tokens({"additional_special_tokens": ["the"]})  # under the same name, as an edited file is
    with pytest.raises(ConfigError, match="holds the answers of another tokenizer"):
        CachingLM(ours(model, edited, "prefix"), file)


def test_one_number_of_the_weights_or_of_the_configuration_is_another_model() -> None:
    def made() -> Any:
        return make_model("llama", seed=1)

    edited, wider, ended, half = made(), made(), made(), made().bfloat16()
    with torch.no_grad():
        edited.get_input_embeddings().weight[3, 1] += 1
    wider.config.rope_parameters = {**wider.config.rope_parameters, "rope_theta": 7.0}
    ended.generation_config.eos_token_id = 5
    found = [fingerprint(one) for one in (made(), edited, wider, ended, half)]
    assert len(set(found)) == 5 and fingerprint(made()) == found[0]
    moved = made()
    moved.config._name_or_path = "elsewhere"
    assert fingerprint(moved) == found[0]


def test_the_chat_template_is_hflms(model: Any, tokenizer: Any) -> None:
    lm, hf = ours(model, tokenizer, "prefix"), theirs(model, tokenizer)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert lm.apply_chat_template(turns) == hf.apply_chat_template(turns)
    begun = [*turns, {"role": "assistant", "content": "Hi,"}]
    assert lm.apply_chat_template(begun, False) == hf.apply_chat_template(begun, False)
    assert lm.tokenizer_name == hf.tokenizer_name and lm.chat_template(True) == hf.chat_template(True)
