"""`jobs` stands on the standard library, yaml and pydantic: it is used where torch is not installed."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
from jobs import errors

PACKAGE = Path(jobs.__file__).parent
MODULES = sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
                 if path.stem != "__init__")  # fmt: skip


def test_every_module_imports_and_resolves_without_torch() -> None:
    blocked = ("torch", "transformers", "datasets", "numpy", "app", "vast")
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
    code += "".join(f"import jobs.{module}\n" for module in MODULES)
    code += "from jobs.config.load import resolve\nprint(resolve('stage5b', 'ci').stage.name)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("stage5b\n", "")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_but_the_standard_library_yaml_and_pydantic(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    # The last two come with pydantic, which needs them.
    allowed = {*sys.stdlib_module_names, "jobs", "yaml", "pydantic", "pydantic_core", "typing_extensions"}
    assert {name.partition(".")[0] for name in named} <= allowed


def test_errors_read_as_path_fact_and_remedy() -> None:
    assert str(errors.ConfigError("jobs/x.yaml", "seed: wrong", "write 3")) == "jobs/x.yaml: seed: wrong; write 3"
    assert str(errors.DataError(Path("a.jsonl"), "empty")) == "a.jsonl: empty"


def test_an_error_survives_the_way_between_processes() -> None:
    error = errors.DiskFull("runs", "full", "free some")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.exit_code, again.remedy) == (str(error), 28, "free some")


def test_every_mistake_of_a_user_is_a_value_error_and_exits_with_2_or_28() -> None:
    kinds = [
        kind for kind in errors.UserError.__subclasses__() if kind.__module__ == errors.__name__
    ]  # vast has its own
    assert len(kinds) == 6
    assert all(issubclass(kind, ValueError) for kind in kinds)
    assert {kind.exit_code for kind in kinds} == {2, 28}
