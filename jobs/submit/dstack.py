"""A submission as a task of dstack, for `dstack apply`. Source: dstack's reference of the task configuration (0.22)."""

from typing import Any

from jobs.submit.submission import GRACE_SECONDS, MEET_PORT, RUNS, Submission, minutes


def task(job: Submission) -> dict[str, Any]:
    """The configuration. `shared` is the name of a network volume, or a path of the fleet's own machines."""
    resources: dict[str, Any] = {"disk": f"{job.disk_gb}GB..", "shm_size": "8GB"}
    if job.memory_gb is not None:
        resources["memory"] = f"{job.memory_gb}GB.."
    if job.gpus:
        resources["gpu"] = {"name": job.gpu.split("_")[0], "count": job.gpus}
    return {
        "type": "task", "name": job.name, "nodes": job.nodes, "image": job.image, "resources": resources,
        "volumes": [f"{job.shared}:{RUNS}"], "spot_policy": "auto" if job.spot else "on-demand",
        **({} if job.max_price is None else {"max_price": job.max_price}),
        "max_duration": f"{minutes(job.hours)}m", "stop_duration": f"{GRACE_SECONDS}s",
        # An error is a user's mistake or a checkpoint after SIGTERM; a lost machine is neither.
        "retry": {"on_events": ["no-capacity", "interruption"], "duration": f"{2 * minutes(job.hours)}m"},
        "commands": [
            "export PREFILL_NODES=$DSTACK_NODES_NUM PREFILL_NODE_RANK=$DSTACK_NODE_RANK",
            f"export PREFILL_MEET=$DSTACK_MASTER_NODE_IP:{MEET_PORT}",
            f"exec {job.command(RUNS)}",
        ],
    }  # fmt: skip
