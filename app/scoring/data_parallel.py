"""Data-parallel scoring: each process of a run scores whole items, and every process gets all results."""

from collections.abc import Callable, Sequence

from app.model.load import Loaded
from app.runtime.ending import RunEnded
from app.runtime.ranks import Ranks
from app.scoring.encode import Request
from app.scoring.loglikelihood import Count, Scored, loglikelihood, tokens_of
from jobs.config.schema import Mask
from jobs.errors import UserError


def shard(sizes: Sequence[int], world: int) -> list[list[int]]:
    """Indices for each of `world` processes, with about equal sums of sizes.

    Longest first, in serpentine order: 0 1 2 2 1 0 0 1 ...
    """
    parts: list[list[int]] = [[] for _ in range(world)]
    for turn, index in enumerate(sorted(range(len(sizes)), key=lambda i: -sizes[i])):
        round_, at = divmod(turn, world)
        parts[at if round_ % 2 == 0 else world - 1 - at].append(index)
    return parts


def loglikelihood_shared(loaded: Loaded, requests: Sequence[Request], spans: Sequence[range], mask: Mask, ranks: Ranks, *,
                         batch_tokens: int | None, progress: Callable[[int, int], None] | None,
                         count: Count) -> list[Scored]:  # fmt: skip
    """`loglikelihood` of all requests, each process running its share of the items.

    Args:
        spans: per item, the indices of its requests: they share a prompt, and so stay together.
        progress: called with this process's share, scaled to the whole.

    Raises:
        RunEnded, UserError: in every process, if `progress` or the model's self-check raised it in one.
    """
    if ranks.world == 1:
        return loglikelihood(loaded, requests, mask, batch_tokens=batch_tokens, progress=progress, count=count)
    sizes = [sum(len(requests[i].context) + len(requests[i].continuation) for i in span) for span in spans]
    work_of_all = tokens_of(loaded, requests, mask, batch_tokens)
    parts = [[i for item in part for i in spans[item]] for part in shard(sizes, ranks.world)]

    def scaled(done: int, total: int) -> None:
        if progress is not None:
            progress(done * ranks.world, total * ranks.world)

    def work() -> tuple[list[Scored], Count]:
        mine = Count()
        some = [requests[i] for i in parts[ranks.rank]]
        return loglikelihood(loaded, some, mask, batch_tokens=batch_tokens, progress=scaled, count=mine,
                             work=work_of_all), mine  # fmt: skip

    answers = ranks.together(work, (RunEnded, UserError))
    found: dict[int, Scored] = {}
    for part, (scored, theirs) in zip(parts, answers, strict=True):
        found.update(zip(part, scored, strict=True))
        count.tokens += theirs.tokens
        count.padded += theirs.padded
        count.attentions |= theirs.attentions
    return [found[i] for i in range(len(requests))]
