"""Which of several machines this is: from three variables, or refused."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.runtime.launch import arguments, interface_to
from app.runtime.nodes import ONE_NODE, Nodes, nodes_of
from jobs.errors import ConfigError

TWO = {"PREFILL_NODES": "2", "PREFILL_NODE_RANK": "1", "PREFILL_MEET": "10.0.0.1:29400"}


def test_one_machine_needs_no_variables() -> None:
    assert nodes_of({}) == nodes_of({"PREFILL_NODES": ""}) == nodes_of({"PREFILL_NODES": "1"}) == ONE_NODE


def test_the_second_of_two() -> None:
    assert nodes_of(TWO) == Nodes(2, 1, "10.0.0.1", 29400)
    assert nodes_of({**TWO, "PREFILL_MEET": "[fd00::1]:29400"}).address == "fd00::1"


@pytest.mark.parametrize("wrong", [
    {"PREFILL_NODES": "two"}, {"PREFILL_NODES": "0"}, {"PREFILL_NODES": "-1"}, {"PREFILL_NODES": "٢"}, {"PREFILL_NODE_RANK": ""},
    {"PREFILL_NODE_RANK": "2"}, {"PREFILL_MEET": ""}, {"PREFILL_MEET": "10.0.0.1"}, {"PREFILL_MEET": "10.0.0.1:0"},
    {"PREFILL_MEET": ":29400"}, {"PREFILL_MEET": "10.0.0.1:70000"}, {"PREFILL_MEET": "a:" + "9" * 5000},
])  # fmt: skip
def test_what_is_not_three_right_variables_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"PREFILL_\w+: .*; set PREFILL_NODES"):
        nodes_of({**TWO, **wrong})


def test_the_launcher_is_told_of_all_processes_and_of_the_meeting_point() -> None:
    words = arguments(["run", "stage1"], 8, 4, nodes=nodes_of(TWO))
    given = dict(pairwise(words))
    assert (given["--num_processes"], given["--num_machines"], given["--machine_rank"]) == ("16", "2", "1")
    assert (given["--main_process_ip"], given["--main_process_port"]) == ("10.0.0.1", "29400")
    assert "--same_network" not in arguments(["run", "stage1"], 8, 4)


def test_processes_meet_by_the_interface_that_leads_to_the_meeting_point() -> None:
    """Not by the address of the host's name, which many hosts have as 127.0.1.1."""
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") is None
