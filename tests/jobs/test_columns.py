"""The rule by which a table fits a terminal; tests/test_tables.py holds the real tables to it."""

from __future__ import annotations

from jobs.columns import Column, table_lines

COLUMNS = [Column("id"), Column("n", right=True, drop=1), Column("text\nof it", least=9), Column("more", drop=2)]
ROW = ["a-long-id", "12.5", "base/bidirectional (leaks) 0.450, then others", "extra"]


def shown(width: int, row: list[str] = ROW) -> str:
    return table_lines(COLUMNS, [row], width)[-1]


def test_columns_are_dropped_in_order_and_text_is_cut_after_whole_words() -> None:
    assert shown(100) == "a-long-id  12.5  base/bidirectional (leaks) 0.450, then others  extra"
    assert shown(79) == "a-long-id 12.5 base/bidirectional (leaks) 0.450, then others extra"
    assert shown(56) == "a-long-id 12.5 base/bidirectional (leaks) 0.450, … extra"
    assert shown(44) == "a-long-id 12.5 …                       extra"
    assert shown(44, ["a-long-id", "12.5", "/elsewhere/longer/stage5b.yaml: no such key", "extra"]) == (
        "a-long-id 12.5 …/stage5b.yaml: no …    extra"
    )
    assert shown(30) == "a-long-id 12.5 …         extra"
    assert shown(29) == "a-long-id 12.5 …"
    assert shown(23) == "a-long-id …"


def test_a_mask_that_leaks_keeps_its_warning_at_any_width() -> None:
    for width in range(10, 90):
        assert ("bidirectional" in shown(width)) == ("bidirectional (leaks)" in shown(width))


def test_what_is_never_dropped_or_cut_may_be_wider_than_the_terminal() -> None:
    assert shown(10) == "a-long-id …"


def test_line_breaks_become_blanks_and_wide_characters_take_two_columns() -> None:
    lines = table_lines([Column("a"), Column("b", right=True)], [["two\n lines", "1"], ["日本", "22"]], 80)
    assert lines[2:] == ["two lines   1", "日本       22"]


def test_a_name_of_two_lines_ends_on_the_rule_and_goes_with_its_column() -> None:
    columns = [Column("a"), Column("two\nlines", right=True, drop=1)]
    assert table_lines(columns, [["x", "1"]], 80) == ["     two", "a  lines", "─  ─────", "x      1"]
    assert table_lines(columns, [["x", "1"]], 5) == ["a", "─", "x"]


def test_the_last_column_that_may_be_cut_is_cut_first() -> None:
    columns = Column("Profile", least=8), Column("Text", least=4)
    assert table_lines(columns, [("embedded reading", "a text for people")], 30)[-1].startswith(
        "embedded reading a text"
    )
