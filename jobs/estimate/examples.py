"""The examples that a job trains on, as far as they are known before they are read: how long they are, and how many."""

import math
from statistics import fmean

from jobs.config.job import Job
from jobs.config.suites import read_suite

# Tokens of an example, mean, their standard deviation over it, and the share that is learnt: measured on the embedded questions
# and on reading; the mean also on alpaca-cleaned with a chat template; others a guess.
_TOKENS, _LEARNT_OF_EMBEDDED = {"qa": (51.0, 1.2), "alpaca": (140.0, 1.0), "messages": (400.0, 1.0)}, 0.08
_TWICE = 1.8  # as many tokens in an example of a profile whose prompt is written twice: on the embedded questions, 50.9 and 91.6
_READING, _READING_EXAMPLES = (101.0, 0.75, 0.04), 3600  # at most so many
# Of look-ups those of SmolLM2's tokenizer; Gemma 3's makes 67 of eight facts, where these are 73.5.
_FACT, _ASKED = 6.0, 25.5
_EVEN = 0.04  # deviation of look-ups of as many facts


def with_steps(job: Job) -> Job:
    """The same job with fewer steps, where it trains for some epochs of examples whose number is known."""
    train = job.stage.train
    if train is None or train.epochs is None or train.data == "profile" or job.stage.suite != "reading":
        return job
    steps = math.ceil(min(train.max_steps, train.epochs * _READING_EXAMPLES / train.batch_size))
    return job.changed({"train.max_steps": steps})


def times(job: Job) -> int:
    """How many times as long as an item by itself a suite's prompts are."""
    return (job.stage.shots + 1) * (2 if job.stage.order == "repeat" else 1)


def examples_of(job: Job) -> tuple[float, float, float]:
    """(tokens on average, their standard deviation over that, the share that is learnt) of the examples to train on."""
    train = job.stage.train
    longest = float(train.max_length if train is not None else 1024)
    if train is not None and train.data != "profile" and job.stage.suite in ("reading", "lookup"):
        mean, spread, learnt = _READING if job.stage.suite == "reading" else _lookups(job)
        mean *= times(job)
    else:
        sources = job.profile.data.sources.values()  # of several weighted by size, which is not known, all count alike
        weights = [one.weight or 1.0 for one in sources]
        means, spreads = zip(*(_TOKENS.get(one.format, (longest, 1.0)) for one in sources), strict=True)
        mean = sum(weight * min(one, longest) for weight, one in zip(weights, means, strict=True)) / sum(weights)
        mean *= _TWICE if job.stage.order == "repeat" else 1
        spread, learnt = max(spreads), _LEARNT_OF_EMBEDDED if all(one.source == "embedded" for one in sources) else 1.0
    return min(mean, longest), spread, 1.0 if train is not None and train.cut == "random" else learnt


def _lookups(job: Job) -> tuple[float, float, float]:
    tasks = read_suite(job.stage.suite).lookup
    learnt = [
        tasks[name] for name in (job.stage.score.tasks if job.stage.score is not None else tasks) if name in tasks
    ]
    sizes = [_ASKED + _FACT * one.facts for one in learnt if one.train_examples] or [_ASKED]
    weights = [one.train_examples for one in learnt if one.train_examples] or [1]
    mean = fmean(sizes, weights)
    spread = math.sqrt(fmean([(size - mean) ** 2 for size in sizes], weights)) / mean
    return mean, max(spread, _EVEN), 0.04
