"""Names to a checked job: what overrides what, and which file a mistake is reported in."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import strict_yaml
from jobs.config.job import Job
from jobs.config.load import resolve, stage_names
from jobs.errors import ConfigError


def complaint(stage: str, jobs_dir: Path, profile: str = "small", **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(stage, profile, jobs_dir=jobs_dir, **options)  # type: ignore[arg-type]
    return str(caught.value)


def add(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


# ---- what overrides what


def test_each_layer_overrides_the_one_before(jobs_dir: Path) -> None:
    profile = jobs_dir / "profiles" / "small.yaml"

    def steps(*sets: str) -> int:
        train = resolve("tune", "small", jobs_dir=jobs_dir, sets=sets).stage.train
        assert train is not None
        return train.max_steps

    assert steps() == 20  # the stage
    add(profile, "train: {max_steps: 30}\n")
    assert steps() == 30
    add(profile, "stages: {tune: {train: {max_steps: 40}}}\n")
    assert steps() == 40
    assert steps("train.max_steps=50") == 50
    assert steps("train.max_steps=50", "train.max_steps=60") == 60


def test_defaults_hold_where_no_layer_sets_a_value(jobs_dir: Path) -> None:
    train = resolve("tune", "small", jobs_dir=jobs_dir).stage.train
    assert train is not None
    assert (train.schedule, train.overlap_ngram, train.lora) == ("cosine", 13, None)


def test_mappings_merge_and_lists_are_replaced(jobs_dir: Path) -> None:
    add(jobs_dir / "tune.yaml", "  lora: {r: 4, targets: [q_proj, v_proj]}\n")
    add(jobs_dir / "profiles" / "small.yaml", "train: {lora: {targets: [k_proj]}}\n")
    train = resolve("tune", "small", jobs_dir=jobs_dir).stage.train
    assert train is not None and train.lora is not None
    assert (train.lora.r, train.lora.targets) == (4, ["k_proj"])


def test_null_switches_an_optional_section_off(jobs_dir: Path) -> None:
    add(jobs_dir / "tune.yaml", "  auto_stop: {patience: 1, min_delta: 0.1, min_steps: 1}\n")
    train = resolve("tune", "small", jobs_dir=jobs_dir, sets=["train.auto_stop=null"]).stage.train
    assert train is not None and train.auto_stop is None


def test_a_profiles_section_is_left_out_where_the_stage_has_none(jobs_dir: Path) -> None:
    add(jobs_dir / "profiles" / "small.yaml", "train: {max_steps: 30}\nscore: {limit: 5}\n")
    assert resolve("tune", "small", jobs_dir=jobs_dir).stage.score is None
    assert resolve("rate", "small", jobs_dir=jobs_dir).stage.train is None


def test_limit_and_seed_override_the_profile_and_set_overrides_them(jobs_dir: Path) -> None:
    add(jobs_dir / "profiles" / "small.yaml", "score: {limit: 5}\n")

    def limit_and_seed(**options: object) -> tuple[int | None, int]:
        stage = resolve("rate", "small", jobs_dir=jobs_dir, **options).stage  # type: ignore[arg-type]
        assert stage.score is not None
        return stage.score.limit, stage.seed

    assert limit_and_seed() == (5, 0)
    assert limit_and_seed(limit=7, seed=3) == (7, 3)
    assert limit_and_seed(limit=7, seed=3, sets=["score.limit=9", "seed=4"]) == (9, 4)


def test_a_limit_means_nothing_to_a_stage_that_only_trains(jobs_dir: Path) -> None:
    assert resolve("tune", "small", jobs_dir=jobs_dir, limit=7) == resolve("tune", "small", jobs_dir=jobs_dir)


def test_set_changes_model_and_data_of_the_profile(jobs_dir: Path) -> None:
    profile = resolve("tune", "small", jobs_dir=jobs_dir, sets=["model.device=cpu", "data.train.limit=9"]).profile
    assert (profile.model.device, profile.data.train.limit) == ("cpu", 9)


def test_a_profile_may_be_the_path_of_a_file(jobs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((jobs_dir / "profiles" / "small.yaml").read_text())
    assert resolve("tune", str(path), jobs_dir=jobs_dir).profile.name == "mine"


# ---- mistakes, and where they are reported


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  max_step: 3\n", 'jobs/tune.yaml: train.max_step: unknown key; did you mean "max_steps"?'),
        ("  warmup_steps: 1k\n", 'jobs/tune.yaml: train.warmup_steps: expected an integer of at least 0, found "1k"'),
        (
            '  learning_rate: "2e-5"\n',
            'train.learning_rate: expected a positive number, found "2e-5"; remove the quotes',
        ),
        ("  learning_rate: 1e999\n", "train.learning_rate: expected a positive number, found .inf"),
        ("scores: {}\n", 'jobs/tune.yaml: scores: unknown key; did you mean "score"?'),
        ("name: tune\n", "jobs/tune.yaml:8: name: given twice, first in line 1"),
        ("  - x\n", "jobs/tune.yaml:8: malformed YAML"),
        ("init_from: tune\n", 'jobs/tune.yaml: init_from: expected base or another stage, found "tune"'),
        ("init_from: rat\n", 'init_from: expected base or another stage, found "rat"; known: base'),
        ("init_from: rate\n", "jobs/tune.yaml: init_from: rate does not train, so it leaves no checkpoint"),
    ],
)
def test_a_mistake_in_the_stage_names_the_stages_file(jobs_dir: Path, text: str, message: str) -> None:
    add(jobs_dir / "tune.yaml", text)
    assert message in complaint("tune", jobs_dir)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {max_steps: 0}\n", "jobs/profiles/small.yaml: train.max_steps: expected a positive integer, found 0"),
        ("train: {steps: 1}\n", "jobs/profiles/small.yaml: train.steps: unknown key"),
        ("score: {mask: [prefix]}\n", 'jobs/profiles/small.yaml: score.mask: unknown key; did you mean "masks"?'),
        ("stages: {tun: {}}\n", 'jobs/profiles/small.yaml: stages.tun: unknown stage; did you mean "tune"?'),
        ("stages: {tune: {title: x}}\n", "jobs/profiles/small.yaml: stages.tune.title: unknown key"),
        ("stages: {tune: {score: {}}}\n", "jobs/profiles/small.yaml: stages.tune.score: tune has no section score"),
        ("stages: {tune: {train: {max_steps: x}}}\n", "small.yaml: stages.tune.train.max_steps: expected a positive"),
        ("stages: {rate: {score: {limit: x}}}\n", "small.yaml: stages.rate.score.limit: expected a positive integer"),
        ("train: {batch_size: 6}\n", "jobs/profiles/small.yaml: train.micro_batch_size: expected a divisor of"),
        ("train: {auto_stop: {patience: 2}}\n", "jobs/profiles/small.yaml: train.auto_stop.min_delta: missing"),
        ("train: 3\n", "jobs/profiles/small.yaml: train: expected a mapping or null, found 3"),
        ("train: {max_steps: 2026-01-01}\n", "jobs/profiles/small.yaml: train.max_steps: expected"),
        ("gpu: 2\n", 'jobs/profiles/small.yaml: gpu: unknown key; did you mean "gpus"?'),
        ("name: other name\n", "jobs/profiles/small.yaml: name: expected a name of a-z"),
    ],
)
def test_a_mistake_in_the_profile_names_the_profiles_file(jobs_dir: Path, text: str, message: str) -> None:
    add(jobs_dir / "profiles" / "small.yaml", text)
    assert message in complaint("tune", jobs_dir)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.max_steps=1k", '--set train.max_steps=1k: train.max_steps: expected a positive integer, found "1k"'),
        ("train.max_step=3", '--set train.max_step=3: train.max_step: unknown key; did you mean "max_steps"?'),
        ("trian.max_steps=3", '--set trian.max_steps=3: trian: unknown key; did you mean "train"?'),
        ("score.limit=3", "--set score.limit=3: tune has no section score; see jobs/tune.yaml"),
        ("train.batch_size=6", "--set train.batch_size=6: train.micro_batch_size: expected a divisor of batch_size 6"),
        ("train.max_steps", "--set train.max_steps: expected key=value; for example --set train.max_steps=20"),
        ("=3", "--set =3: expected key=value"),
        ("train..x=3", "--set train..x=3: expected key=value"),
        ("train.lora={r: 1, r: 2}", "--set train.lora={r: 1, r: 2}:1: r: given twice"),
        ("train.max_steps=[1", "malformed YAML"),
        ("name=other", "--set name=other: the name is that of the file"),
        ("init_from=tun", '--set init_from=tun: init_from: expected base or another stage, found "tun"'),
        ("model.dtype=float16", "--set model.dtype=float16: model.dtype: expected one of float32, bfloat16, auto"),
        ("data.train.format=text", "--set data.train.format=text: data.train.format: expected qa for source embedded"),
    ],
)
def test_a_mistake_in_set_names_the_option(jobs_dir: Path, text: str, message: str) -> None:
    assert message in complaint("tune", jobs_dir, sets=[text])


def test_a_later_layer_may_mend_a_combination(jobs_dir: Path) -> None:
    add(jobs_dir / "profiles" / "small.yaml", "train: {batch_size: 6}\n")
    train = resolve("tune", "small", jobs_dir=jobs_dir, sets=["train.micro_batch_size=3"]).stage.train
    assert train is not None and (train.batch_size, train.micro_batch_size) == (6, 3)


def test_a_layer_may_hold_values_that_only_fit_with_another_layer(jobs_dir: Path) -> None:
    add(jobs_dir / "tune.yaml", "  objective: {kl: 1.0}\n")
    add(jobs_dir / "profiles" / "small.yaml", "train: {objective: {ce: 0.0}}\n")
    train = resolve("tune", "small", jobs_dir=jobs_dir).stage.train
    assert train is not None and (train.objective.ce, train.objective.kl) == (0.0, 1.0)


def test_a_mistake_is_reported_even_where_a_later_layer_overrides_it(jobs_dir: Path) -> None:
    add(jobs_dir / "tune.yaml", "  warmup_steps: x\n")
    message = "jobs/tune.yaml: train.warmup_steps: expected an integer of at least 0"
    assert message in complaint("tune", jobs_dir, sets=["train.warmup_steps=3"])


def test_limit_and_seed_are_checked(jobs_dir: Path) -> None:
    assert complaint("rate", jobs_dir, limit=0).startswith("--limit 0: score.limit: expected a positive integer")
    assert complaint("rate", jobs_dir, seed=-1).startswith("--seed -1: seed: expected an integer of at least 0")


def test_unknown_names_are_answered_with_the_nearest(jobs_dir: Path) -> None:
    assert complaint("tuna", jobs_dir) == 'jobs: unknown stage "tuna"; did you mean "tune"? known: rate, tune'
    assert 'unknown profile "smal"; did you mean "small"?' in complaint("tune", jobs_dir, "smal")
    assert complaint("tune", jobs_dir, "no/such.yaml").startswith("no/such.yaml: no such profile file")
    assert "unknown stage" in complaint("../tune", jobs_dir)


def test_a_stage_must_be_called_like_its_file(jobs_dir: Path) -> None:
    (jobs_dir / "copy.yaml").write_text((jobs_dir / "tune.yaml").read_text())
    assert complaint("copy", jobs_dir).startswith("jobs/copy.yaml: name: expected copy, found")


def test_a_new_yaml_file_is_a_stage_and_reference_is_not(jobs_dir: Path) -> None:
    for name in ("stage9", "reference"):
        (jobs_dir / f"{name}.yaml").write_text((jobs_dir / "rate.yaml").read_text())
    assert stage_names(jobs_dir) == ["stage9", "rate", "tune"]


# ---- recording a job


def test_a_recorded_job_reads_back_equal(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "stage.yaml"
    path.write_text(strict_yaml.dump(job.record({"base": "base"})))
    record = strict_yaml.read(path, "x")
    assert Job.from_dict(record) == job
    assert Job.from_dict(record).fingerprint({"base": "base"}) == record["fingerprint"]


def test_a_record_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"stage\.yaml: (profile: missing|stage\.title: missing)"):
        Job.from_dict({"stage": {"name": "x"}}, where="stage.yaml")


def test_the_fingerprint_does_not_depend_on_words_or_other_stages(jobs_dir: Path) -> None:
    profile = jobs_dir / "profiles" / "small.yaml"
    before = resolve("tune", "small", jobs_dir=jobs_dir).fingerprint({})
    (jobs_dir / "tune.yaml").write_text((jobs_dir / "tune.yaml").read_text().replace("Train a little", "Train"))
    add(jobs_dir / "tune.yaml", "reference: {macro: 0.5}\n")
    add(profile, "score: {limit: 3}\nstages: {rate: {score: {limit: 4}}}\n")
    profile.rename(profile.with_name("renamed.yaml"))
    assert resolve("tune", "renamed", jobs_dir=jobs_dir).fingerprint({}) == before


def test_the_fingerprint_does_not_depend_on_the_number_of_gpus(jobs_dir: Path) -> None:
    before, after = (resolve("tune", "small", jobs_dir=jobs_dir, sets=sets) for sets in ([], ["gpus=2"]))
    assert before.fingerprint({}) == after.fingerprint({})


@pytest.mark.parametrize("change", ["seed=1", "train.max_steps=21", "model.dtype=float32", "data.train.limit=3"])
def test_the_fingerprint_depends_on_what_changes_results(jobs_dir: Path, change: str) -> None:
    before, after = (resolve("tune", "small", jobs_dir=jobs_dir, sets=sets) for sets in ([], [change]))
    assert before.fingerprint({}) != after.fingerprint({})


def test_the_fingerprint_depends_on_the_runs_it_starts_from(job: Job) -> None:
    assert job.fingerprint({"stage3b": "stage3b/1"}) != job.fingerprint({"stage3b": "stage3b/2"})


def test_the_fingerprint_is_the_same_in_every_process(job: Job) -> None:
    again = Job.from_dict(dict(reversed(job.to_dict().items())))
    assert again.fingerprint({"a": "1", "b": "2"}) == job.fingerprint({"b": "2", "a": "1"})
    assert len(job.fingerprint({})) == 64


@given(key=st.text(max_size=8), value=st.text(max_size=8))
def test_any_set_is_either_taken_or_answered_by_name(key: str, value: str) -> None:
    text = f"{key}={value}"
    try:
        resolve("stage1", "ci", sets=[text])
    except ConfigError as error:
        assert str(error).startswith(f"--set {text}")


# ---- less memory


@pytest.mark.parametrize(
    ("batch", "micro", "times", "expected"),
    [(16, 4, 0, 4), (16, 4, 1, 2), (16, 4, 2, 1), (16, 4, 9, 1), (15, 5, 1, 1), (18, 9, 1, 3), (12, 12, 1, 6)],
)
def test_a_halved_micro_batch_still_divides_the_batch(batch: int, micro: int, times: int, expected: int) -> None:
    sets = [f"train.batch_size={batch}", f"train.micro_batch_size={micro}"]
    job = replace(resolve("stage3b", "ci", sets=sets), halvings=times)
    assert job.train is not None and (job.train.batch_size, job.train.micro_batch_size) == (batch, expected)
    assert job.stage.train is not None and job.stage.train.micro_batch_size == micro


def test_scoring_takes_half_as_well_and_nothing_else_changes() -> None:
    job = resolve("stage5a", "ci")
    half = replace(job, halvings=1)
    assert job.score is not None and job.train is not None and half.train is not None
    assert half.score == job.score.model_copy(update={"batch_tokens": job.score.batch_tokens // 2})
    assert half.train == job.train.model_copy(update={"micro_batch_size": half.train.micro_batch_size})
    assert (half.stage, half.profile) == (job.stage, job.profile)


def test_rows_are_halved_to_one_token_at_least() -> None:
    job = resolve("stage5a", "ci")
    assert [replace(job, halvings=times).halved(4096) for times in (0, 1, 12, 16)] == [4096, 2048, 1, 1]


def test_a_halved_job_is_the_same_experiment_with_the_same_record() -> None:
    job = resolve("stage5a", "ci")
    assert replace(job, halvings=3).record({"stage3b": "run"}) == job.record({"stage3b": "run"})
