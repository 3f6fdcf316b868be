"""A copy of the working tree as a repository with one commit: what may be changed, dirtied and built from in a test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.containers.engine import ROOT, run

DATE = "2026-01-02T03:04:05Z"  # of the commit
EPOCH = 1767323045  # the same, in seconds


def files() -> list[str]:
    """The paths that git tracks or would add."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    return sorted(path for path in set(listed) if (ROOT / path).is_file())


def copy_tree(to: Path) -> Path:
    for path in files():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, to / path)
    run("git", "init", "--quiet", cwd=to)
    commit(to)
    return to


def commit(tree: Path) -> str:
    """Commit everything; the commit's name, a function of the contents."""
    author = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    run("git", "add", "--all", cwd=tree)
    run(
        "git",
        *author,
        "commit",
        "--quiet",
        "--message",
        "A copy",
        cwd=tree,
        GIT_AUTHOR_DATE=DATE,
        GIT_COMMITTER_DATE=DATE,
    )
    return run("git", "rev-parse", "HEAD", cwd=tree).stdout.strip()


def build(tree: Path, tag: str, **settings: Any) -> str:
    """container/image.sh build, in a tree; its caller removes the tag."""
    run(tree / "container/image.sh", "build", cwd=tree, timeout=550, IMAGE=tag, **settings)
    return tag
