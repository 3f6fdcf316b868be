"""Remedies of suites, campaigns, stores, chats, layers and samples, which came after the cases: none is run yet. Take a line out here and write its case."""

from __future__ import annotations

from tests.remedies.cases import not_run

not_run(
    "no case yet",
    ("app/commands/ask.py", "leave them out"),
    ("app/commands/ask.py", "use --prompts"),
    ("app/commands/samples.py", "give the other one too"),
    ("app/commands/samples.py", "make it, or correct --runs-dir (make: RUNS)"),
    ("app/commands/samples.py", "name it once"),
    ('app/commands/textfiles.py', "end the chat with a user's question"),
    ('app/commands/textfiles.py', 'give lines such as {"messages": [{"role": "user", "content": "..."}]}'),
    ("app/scoring/conversation.py", "ask for one answer a chat"),
    ("app/scoring/conversation.py", "use mask prefix or causal"),
    ("app/scoring/judge.py", "check the address and its model"),
    ("app/scoring/judge.py", "give it as https://host/v1"),
    ("app/scoring/judge.py", "give it as https://host/v1; a key comes from {}"),
    ("app/scoring/judge.py", "give the address that ends in /v1"),
    ("app/scoring/judge.py", "set it anew"),
    ("app/scoring/judge.py", "set {} to a key that it takes"),
    ("app/scoring/judge.py", "use another model"),
    ("app/scoring/judge.py", "use https, or unset it"),
    ("app/scoring/samples.py", "give a file such as jobs/prompts/samples.yaml"),
    ("app/scoring/samples.py", "give another one"),
    ("app/scoring/samples.py", "see jobs/prompts/samples.yaml"),
    ("app/data/mixture.py", "use mask prefix or causal, or chats with one answer each"),
)  # fmt: skip

DOCTOR = "app/runtime/doctor.py"
not_run(
    "it changes the machine; tests/app/runtime/test_doctor.py sees each lack and the machine without it",
    (DOCTOR, "install its build for CUDA, as pytorch.org names it, or run in the image: RUNNER=docker"),
    (DOCTOR, "make room, or set PREFILL_CACHE"),
    (DOCTOR, "run: make setup, or: pip install -r requirements/base.lock"),
    (DOCTOR, "set PREFILL_CACHE to a directory that can"),
    (DOCTOR, "update the driver, or install torch for CUDA {}"),
    ("jobs/doctor.py", "make room, or choose another --runs-dir"),
)
