"""A submission as a batch script of Slurm. Source of the options: the manual pages of sbatch and srun.

Before the time limit Slurm sends SIGTERM to the step, the stage writes a checkpoint and exits with 75, and the script puts
the job back into the queue, where it resumes. A lost machine and a preemption requeue it by `--requeue`. `scancel` also ends
the script, so that nothing is requeued.
"""

import shlex
from pathlib import Path

from jobs.errors import EXIT_STOPPED
from jobs.submit.submission import GRACE_SECONDS, RESTARTS, RUNS, Submission, minutes

CONTAINERS = ("venv", "apptainer", "pyxis", "docker")


def script(job: Submission, *, root: Path, python: str, container: str) -> str:
    """The text of the batch script.

    root: the checkout, which all machines see at the same path. python: the interpreter that has everything, for "venv".
    """
    runs = Path(job.shared)
    logs = runs / "submitted"
    options = {
        "job-name": job.name, "nodes": job.nodes, "ntasks-per-node": 1,
        "gpus-per-node": ":".join(filter(None, (job.gpu.lower(), str(job.gpus)))) if job.gpus else None,
        "mem": job.memory_gb and f"{job.memory_gb}G", "time": minutes(job.hours), "signal": f"TERM@{GRACE_SECONDS}",
        "partition": job.queue or None,
        "array": f"0-{len(job.each) - 1}" if job.each else None, "chdir": str(root),
        "output": str(logs / ("%x-%A_%a.out" if job.each else "%x-%j.out")), "open-mode": "append",
    }  # fmt: skip
    given = {key: str(value) for key, value in options.items() if value is not None}
    lines = [f"#SBATCH --{key}={shlex.quote(text) if ' ' in text else text}" for key, text in given.items()]
    element = ["element=()"]
    if job.each:
        element = [f"values=({' '.join(job.each)})", f'element=({job.option} "${{values[$SLURM_ARRAY_TASK_ID]}}")']
    inside, step = _inside(job, runs, python, container)
    return "\n".join([
        "#!/bin/bash", f"# {job.name} on {job.nodes} machines; written by python -m jobs.submit", *lines, "#SBATCH --requeue", "",
        "set -uo pipefail", *element,
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        'address=$(scontrol show node "$first" | sed -n "s/.*NodeAddr=\\([^ ]*\\).*/\\1/p")',
        "export PREFILL_NODES=$SLURM_JOB_NUM_NODES PREFILL_MEET=${address:-$first}:$((20000 + SLURM_JOB_ID % 20000))", "",
        "# One launcher a machine; it starts a process a GPU.",
        f"srun --kill-on-bad-exit=0 {step}bash -c 'PREFILL_NODE_RANK=$SLURM_NODEID exec \"$@\"' launch \\",
        f'  {inside} "${{element[@]}}"', "code=$?",
        f"if [ $code = {EXIT_STOPPED} ]; then # stopped after a checkpoint",
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {RESTARTS} ]; then',
        f"    echo 'error: the job was requeued {RESTARTS} times; submit it again to go on' >&2; exit $code", "  fi",
        '  scontrol requeue "$SLURM_JOB_ID"', "fi", "exit $code", "",
    ])  # fmt: skip


def _inside(job: Submission, runs: Path, python: str, container: str) -> tuple[str, str]:
    """The command of a machine, and options of srun before it."""
    if container == "apptainer":
        return shlex.join(["apptainer", "exec", *["--nv"] * bool(job.gpus), "--bind", f"{runs}:{RUNS}",
                           f"docker://{job.image}", ""]).removesuffix("''") + job.command(RUNS), ""  # fmt: skip
    if container == "pyxis":
        step = [f"--container-image={job.image.replace('/', '#', 1)}", f"--container-mounts={runs}:{RUNS}"]
        return job.command(RUNS), shlex.join(step) + " "
    if container == "docker":
        arguments = "--network host --env PREFILL_NODES --env PREFILL_NODE_RANK --env PREFILL_MEET"
        settings = shlex.join([f"IMAGE={job.image}", f"RUNS={runs}", f"DOCKER_ARGS={arguments}",
                               *(f"{name}=1" for name in job.accepted)])  # fmt: skip
        # The engine is not a child of the step, so the GPUs that Slurm has given are passed to it by name.
        return (
            f'env GPU="${{CUDA_VISIBLE_DEVICES:-none}}" {settings} {shlex.join(["container/run.sh", *job.words])}',
            "",
        )
    return job.command(str(runs), python), ""
