"""A submission as a task of SkyPilot, for `sky jobs launch`. Source: SkyPilot's reference of the task YAML (0.14)."""

from typing import Any

from jobs.errors import EXIT_STOPPED, ConfigError
from jobs.estimate.gpus import gpu_named
from jobs.submit.submission import MEET_PORT, RESTARTS, RUNS, Submission


def task(job: Submission) -> dict[str, Any]:
    """The task. `shared` is a bucket's URL such as s3://name/runs, or the name of a volume.

    Raises:
        ConfigError: a bucket for several machines.
    """
    resources: dict[str, Any] = {
        "image_id": f"docker:{job.image}", "disk_size": job.disk_gb, "use_spot": job.spot,
        # The managed job ends by itself; this ends a machine whose controller is gone.
        "autostop": {"idle_minutes": 10, "down": True},
        "job_recovery": {"max_restarts_on_errors": RESTARTS, "recover_on_exit_codes": [EXIT_STOPPED]},
    }  # fmt: skip
    if job.memory_gb is not None:
        resources["memory"] = f"{job.memory_gb}+"
    if job.gpus:
        resources["accelerators"] = f"{_accelerator(job.gpu)}:{job.gpus}"
    if job.max_price is not None:
        resources["max_hourly_cost"] = job.max_price
    storage: dict[str, Any] = {"volumes": {RUNS: job.shared}}
    if "://" in job.shared:
        if job.nodes > 1:
            fact = f"{job.shared} is a bucket, in which machines do not see each other's files at once"
            raise ConfigError("--shared", fact, "give the name of a volume, or --nodes 1")
        storage = {"file_mounts": {RUNS: {"source": job.shared, "mode": "MOUNT_CACHED"}}}
    return {
        "name": job.name, "num_nodes": job.nodes, "resources": resources,
        **storage,
        "run": "\n".join([
            "export PREFILL_NODES=$SKYPILOT_NUM_NODES PREFILL_NODE_RANK=$SKYPILOT_NODE_RANK",
            f'export PREFILL_MEET=$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):{MEET_PORT}',
            f"exec timeout --signal=TERM --kill-after=300 {round(3600 * job.hours)} {job.command(RUNS)}", "",
        ]),
    }  # fmt: skip


def _accelerator(gpu: str) -> str:
    """SkyPilot's name of a GPU: its catalogue has one for all forms of it, but names the larger A100."""
    found = gpu_named(gpu)
    base = found.name.partition("_")[0] if found.name.startswith(("A100", "H100", "H200", "B200")) else found.name
    return "A100-80GB" if base == "A100" and found.memory_gb > 40 else base.replace("_", "-").replace("RTX-", "RTX")
