"""Remedies of suites, campaigns and stores, which came after the cases: none is run yet. Take a line out here and write its case."""

from __future__ import annotations

from tests.remedies.cases import not_run

not_run(
    "no case yet",
    ("app/commands/campaign.py", "such as 0/4"),
    ("app/commands/power.py", "give --items and --discordance too"),
    ("app/commands/power.py", "give both, or none of them to read runs"),
    ("app/commands/power.py", "run: make demo"),
    ("app/data/examples.py", "use data.train.template plain or alpaca, of format qa or alpaca"),
    ("app/data/reading.py", "give data laid out like hf_datasets/ of the data wheel"),
    ("app/data/reading.py", "set shots to {} or less"),
    ("app/data/reading.py", "use the set as it is distributed"),
    ("app/data/suites.py", "give data with more rows"),
    ("app/report/campaign.py", "start the campaign again, or delete the file"),
    ("app/runtime/artifact_store.py", "<STORE_REMEDY>"),
    ("app/runtime/artifact_store.py", "<remedy>"),
    ("app/stage/campaign.py", "one worker a GPU"),
    ("app/stage/campaign.py", "restore it, or give this one a file of its own"),
    ("app/stage/campaign.py", "start the campaign again: it goes on"),
    ("jobs/config/campaign.py", "<nearest(one, known)>"),
    ("jobs/config/campaign.py", "its orders: {}"),
    ("jobs/config/campaign.py", "leave one out"),
    ("jobs/config/campaign.py", "name the one that decides"),
    ("jobs/config/campaign.py", "set gpus: 1 in the profile, and deal the runs with --workers"),
    ("jobs/config/campaign.py", "{}, or the path of a YAML file"),
    ("jobs/config/load.py", "<nearest(name, recipe_names(directory))>"),
    ("jobs/config/load.py", "<nearest(unknown, suite.task_names)>"),
    ("jobs/config/load.py", "give it to a stage with a section train"),
    ("jobs/config/load.py", "its orders: {}"),
    ("jobs/config/load.py", "set score.format: harness"),
    ("jobs/config/load.py", "set shots: 0, or another suite"),
    ("jobs/config/schema.py",
     "write s3://BUCKET/PREFIX, hf://OWNER/REPOSITORY or file:///DIRECTORY; credentials come from the environment"),
    ("jobs/config/suites.py", "<nearest(name, suite_names(directory))>"),
)  # fmt: skip
