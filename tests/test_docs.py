"""The documents match the code: links, commands, make targets, the captioned tree, hidden state, the help of the commands."""

from __future__ import annotations

import re
import shlex
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest

from app.__main__ import cli
from docs import generate_cli
from jobs.config.load import profile_names, stage_names
from vast.__main__ import cli as vast_cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "jobs", "vast")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests/README.md"])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=DOCUMENTS, ids=name_of)
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


# ---- links ------------------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """The anchor that a heading gets: lower case, punctuation dropped, spaces to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(path: Path) -> list[str]:
    broken = []
    for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, fragment = target.partition("#")
        linked = (path.parent / file) if file else path
        if not linked.exists():
            broken.append(target)
        elif fragment and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", linked.read_text(encoding="utf-8")), re.MULTILINE)
            if fragment not in map(anchor, headings):
                broken.append(target)
    return broken


def test_every_relative_link_resolves(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](page.md) [b](gone.md) [c](#a-title) [d](#gone)\n```\n[e](in-a-fence.md)\n```\n")
    assert broken_links(page) == ["gone.md", "#gone"]


# Paths of tests begin at the directory that a page names. What the log and the changelog describe may be gone.
STARTS = (ROOT, ROOT / "tests", ROOT / "tests/app", ROOT / "docs/results")
FILE = re.compile(
    r"(?<![\w./-])(?:app|jobs|vast|tests|container|benchmarks|docs|requirements)/[a-z0-9_/.-]+\.(?:py|ya?ml|sh|lock|md)\b"
)


def test_every_file_named_is_there() -> None:
    current = [path for path in DOCUMENTS if path.name not in ("log.md", "CHANGELOG.md") and "runs" not in path.parts]
    named = {(name_of(path), file) for path in current for file in FILE.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 100
    assert [one for one in sorted(named) if not any((start / one[1]).exists() for start in STARTS)] == []


# ---- commands ----------------------------------------------------------------------------------------------------------


def commands(text: str, start: str) -> list[str]:
    """What follows `start` wherever it is shown as a command: in code spans and in fenced blocks."""
    blocks = [block.strip("`").partition("\n")[2] for block in FENCE.findall(text)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    found = []
    for shown in [*lines, *spans]:
        for part in re.split(r"&&|;|\|", shown.partition(" #")[0]):
            words = part.strip().removeprefix("$ ")
            if words.startswith(start):
                found.append(words.removeprefix(start).strip())
    return found


@cache
def makefile() -> tuple[frozenset[str], frozenset[str]]:
    """Targets and settings of the Makefile, as make itself reads it."""
    done = subprocess.run(["make", "-pnq", "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    targets = {name for line in re.findall(r"^\.PHONY: (.*)$", done.stdout, re.MULTILINE) for name in line.split()}
    settings = re.findall(r"^([A-Z_]+) *\??=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(targets), frozenset(settings)


def wrong_make(shown: str) -> list[str]:
    """What is wrong with the words after `make`."""
    targets, settings = makefile()
    wrong = []
    for word in shlex.split(shown):
        name, assigned, _ = word.partition("=")
        if assigned and name not in settings | {"BASE_PYTHON"}:
            wrong.append(f"no setting {name}")
        if not assigned and name not in targets and "<" not in name and "..." not in name:
            wrong.append(f"no target {name}")
    return wrong


def wrong_app(shown: str) -> list[str]:
    """What is wrong with the words after `python -m app`: the command, its options, its stage and its profile."""
    words = shlex.split(shown.replace("[", "").replace("]", "").replace("|", " "))
    if not words or words[0].startswith("-"):
        return []
    command = cli.commands.get(words[0])
    if command is None:
        return [f"no command {words[0]}"]
    known = {option for parameter in command.params for option in parameter.opts if isinstance(parameter, click.Option)}
    wrong = [f"{words[0]} has no option {word}" for word in words if word.startswith("--") and word not in known]
    placeholder = re.compile(r"[A-Z_]+|.*[/.<].*")
    stage = words[1] if words[0] in ("run", "check") and len(words) > 1 else "-"
    if not stage.startswith("-") and stage not in stage_names() and not placeholder.fullmatch(stage):
        wrong.append(f"no stage {stage}")
    for flag, value in pairwise(words):
        if flag == "--profile" and value not in profile_names() and not placeholder.fullmatch(value):
            wrong.append(f"no profile {value}")
    return wrong


def wrong_vast(shown: str) -> list[str]:
    """What is wrong with the words after `python -m vast`: the command and its options."""
    words = shlex.split(shown.replace("[", "").replace("]", "").replace("|", " "))
    if not words or words[0].startswith("-"):
        return []
    command = vast_cli.commands.get(words[0])
    if command is None:
        return [f"no command {words[0]}"]
    known = {option for parameter in command.params for option in parameter.opts if isinstance(parameter, click.Option)}
    return [f"{words[0]} has no option {word}" for word in words if word.startswith("--") and word not in known]


def test_every_make_command_shown_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [(shown, wrong) for shown in commands(text, "make ") if (wrong := wrong_make(shown))] == []


def test_every_app_command_shown_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [(shown, wrong) for shown in commands(text, "python -m app ") if (wrong := wrong_app(shown))] == []


def test_every_vast_command_shown_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [(shown, wrong) for shown in commands(text, "python -m vast ") if (wrong := wrong_vast(shown))] == []


def test_a_wrong_command_would_be_found() -> None:
    text = "`make stage1 LIMIT=5` and `make stage9`\n```sh\nmake demo COLOUR=1  # why not\npython -m app run --limt 3\n```\n"
    assert [wrong_make(shown) for shown in commands(text, "make ")] == [["no setting COLOUR"], [], ["no target stage9"]]
    assert [wrong_app(shown) for shown in commands(text, "python -m app ")] == [["run has no option --limt"]]
    assert wrong_app("run stage9 --profile nobody") == ["no stage stage9", "no profile nobody"]
    assert wrong_app("walk") == ["no command walk"]
    assert wrong_vast("up stage1 --max-cots 3") == ["up has no option --max-cots"]
    assert wrong_vast("fly") == ["no command fly"]


def test_every_stage_is_a_make_target_and_in_the_help() -> None:
    targets, _ = makefile()
    shown, first = (subprocess.run(["make", name], cwd=ROOT, capture_output=True, text=True, check=True).stdout
                    for name in ("help-all", "help"))  # fmt: skip
    assert len(first.splitlines()) == 11  # ten to begin with, and help-all
    assert set(re.findall(r"^  make (\S+)", first, re.MULTILINE)) <= targets
    assert set(stage_names()) <= targets
    missing = [name for name in targets if not re.search(rf"^  make {re.escape(name)} ", shown, re.MULTILINE)]
    assert missing == []


@pytest.mark.parametrize("group", [cli, vast_cli])
def test_each_command_is_a_whole_sentence_in_the_list(group: click.Group) -> None:
    """click cuts what does not fit a line of 80 columns."""
    listed = group.make_context("python -m app", [], resilient_parsing=True, terminal_width=80, max_content_width=80)
    assert "..." not in group.get_help(listed).partition("Commands:")[2]


def test_the_command_line_page_is_the_help_of_the_commands() -> None:
    assert generate_cli.TARGET.read_text(encoding="utf-8") == generate_cli.text(), "run: make docs"


def test_every_test_named_exists(document: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", document.read_text(encoding="utf-8")))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert sorted(named - set(re.findall(r"^def (test_\w+)", source, re.MULTILINE))) == []


def test_every_test_file_named_exists() -> None:
    named = set(re.findall(r"[\w/]+\.py\b", (ROOT / "tests/README.md").read_text(encoding="utf-8")))
    tests = ROOT / "tests"  # not below ROOT: that would walk through the whole of .venv
    assert sorted(name for name in named if not list(tests.rglob(name.removeprefix("tests/")))) == []


# ---- the captioned tree -------------------------------------------------------------------------------------------------


def tree_paths(text: str) -> list[str]:
    """Paths in a page's tree: a fenced block of `name  caption` lines, two spaces of indent a level."""
    block = next(block for block in FENCE.findall(text) if re.search(r"^app/", block, re.MULTILINE))
    paths: list[str] = []
    above: list[str] = []
    for line in block.splitlines()[1:-1]:
        names = re.split(r"\s{2,}", line.strip())[0]
        level = (len(line) - len(line.lstrip())) // 2
        for name in names.split(", "):
            above[level:] = [name]
            paths.append("".join(above))
    return paths


@pytest.mark.parametrize("page", ["README.md", "docs/tree.md"])
def test_every_path_of_a_tree_exists(page: str) -> None:
    shown = tree_paths((ROOT / page).read_text(encoding="utf-8"))
    assert [path for path in shown if not list(ROOT.glob(path.rstrip("/")))] == []


def test_every_source_file_is_in_the_tree() -> None:
    shown = tree_paths((ROOT / "docs/tree.md").read_text(encoding="utf-8"))
    covered = {found for path in shown for found in ROOT.glob(path.rstrip("/"))} - {
        ROOT / folder for folder in PACKAGES
    }
    sources = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py") if path.stem != "__init__"]
    assert [name_of(path) for path in sources if covered.isdisjoint({path, *path.parents})] == []


# ---- the page of the design -------------------------------------------------------------------------------------------

# What a reader of a function's arguments does not see: state of the process, or of a library's objects.
HIDDEN_STATE = re.compile(
    r"ContextVar\(|\.__class__ = |\.forward = |_compiled_call_impl = |_attn_implementation = |Interface\.register\("
    r"|os\.environ\[[^]]+\] = |os\.environ\.setdefault|_(dynamo|inductor)\.config\.[\w.]+ = |use_duck_shape = |backends\.\w+\.enable_"
    r"|_managed_module = |_n_gpu = |, Trainer\):|register_forward\w*_hook\(|TorchFunctionMode\)|WeakKeyDictionary\(|^@(?:lru_)?cache|= lru_cache\("
    r"|fewshot_context = |_causal_layer = |\bobserving\(|^_?[A-Z]+: dict\[.* = \{\}"
    r"|signal\.signal\(|(?:random|torch)\.(?:manual_)?seed\(|\bsetLevel\(|logging\.disable\(|\bprctl\(",
    re.MULTILINE,
)


def hidden_state(source: str) -> list[str]:
    return HIDDEN_STATE.findall(source)


def test_hidden_state_is_listed() -> None:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    section = page.partition("## Hidden state")[2].partition("\n## ")[0]
    listed = {(ROOT / "docs" / target).resolve() for target in LINK.findall(section)}
    holders = {
        path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py") if hidden_state(path.read_text("utf-8"))
    }
    assert sorted(map(name_of, holders - listed)) == [], "list them in docs/design.md, Hidden state"
    assert sorted(map(name_of, listed - holders)) == [], (
        "they have none left, or of a kind that HIDDEN_STATE does not know"
    )


def test_every_name_on_the_page_of_the_design_is_in_a_file_that_it_links() -> None:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target.partition("#")[0]).resolve() for target in LINK.findall(page)} | {Path(__file__)}
    words = {word for path in linked for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert sorted(set(re.findall(r"`(\w+)`", page)) - words - set(PACKAGES)) == []


def test_hidden_state_would_be_found() -> None:
    assert hidden_state("a = ContextVar('a')\nlayer.forward = f\n@cache\nsignal.signal(2, f)\n_A: dict[str, int] = {}")
    assert hidden_state("kept = lru_cache(maxsize=2)(f)")
    assert hidden_state("forward = f\nGenerator().manual_seed(0)\nos.environ.get('A')\n") == []


def test_the_glossary_stays_short() -> None:
    words = re.findall(r"^\| (?!word)", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert 20 <= len(words) <= 40


# ---- what must not be in the repository -------------------------------------------------------------------------------


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def foreign_places(text: str) -> list[str]:
    """Addresses of package indexes and mirrors, and paths of somebody's machine."""
    index = r"https?://[^\s\"'`)>]*(?:/simple\b|/packages/|/wheels?\b|index|mirror|proxy|registry|download)[^\s\"'`)>]*"
    options = r"--(?:extra-)?index-url[ =]\S+|--find-links[ =]\S+|--trusted-host[ =]\S+"
    homes = r"(?<![\w.$}/~-])/(?:home|Users|root|work)/[\w.-]+"
    return re.findall(f"{index}|{options}|{homes}", text)


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    found = {}
    for path in tracked():
        if path != Path(__file__).resolve() and (places := foreign_places(path.read_text("utf-8", "replace"))):
            found[name_of(path)] = places
    assert found == {}


def test_a_package_index_or_a_path_of_one_machine_would_be_found() -> None:
    assert foreign_places("see https://host.example/simple/ and pip --index-url x")
    assert foreign_places("cache: /home/me/cache")
    assert foreign_places("jobs/work/x, ~/work/x, $ROOT/work/x, https://host.example/page") == []
