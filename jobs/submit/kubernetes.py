"""A submission as a JobSet of Kubernetes, or as an indexed Job where no JobSet controller is installed.

Sources: the reference of batch/v1 Job and of jobset.x-k8s.io/v1alpha2. Kueue takes what has its queue's label.
"""

from typing import Any

from jobs.errors import EXIT_DISK_FULL, EXIT_NAN, EXIT_NO_LEARNING, EXIT_USER
from jobs.submit.submission import GRACE_SECONDS, MEET_PORT, RESTARTS, RUNS, Submission

_FINAL = (EXIT_USER, EXIT_NAN, EXIT_NO_LEARNING, EXIT_DISK_FULL)  # the same again would end the same


def manifests(job: Submission, *, jobset: bool) -> list[dict[str, Any]]:
    """What to apply, in this order. `shared` is a PersistentVolumeClaim that all pods may write (ReadWriteMany)."""
    about = {"name": job.name, **({"labels": {"kueue.x-k8s.io/queue-name": job.queue}} if job.queue else {})}
    if jobset:
        # The pods of a JobSet find each other as NAME-run-0-INDEX.NAME; a restart begins all of them anew.
        first = f"{job.name}-run-0-0.{job.name}"
        spec = {
            "failurePolicy": {"maxRestarts": RESTARTS, "rules": [
                {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]},
            "replicatedJobs": [{"name": "run", "replicas": 1, "template": {"spec": _job(job, first, "")}}],
        }  # fmt: skip
        return [{"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": about, "spec": spec}]
    service = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": job.name},
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": job.name}, "spec": service},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": about,
         "spec": {**_job(job, f"{job.name}-0.{job.name}", job.name), "backoffLimit": RESTARTS}},
    ]  # fmt: skip


def _job(job: Submission, first: str, subdomain: str) -> dict[str, Any]:
    """The specification of an indexed Job: a pod a machine; `first` is the name of the first pod in the cluster's DNS."""
    limits = {"nvidia.com/gpu": str(job.gpus)} if job.gpus else {}
    memory = {} if job.memory_gb is None else {"memory": f"{job.memory_gb}Gi"}
    container = {
        "name": "run", "image": job.image, "command": ["bash", "-c"], "workingDir": "/opt/prefill",
        "args": [f"PREFILL_NODE_RANK=$JOB_COMPLETION_INDEX exec {job.command(RUNS)}"],
        "env": [{"name": "PREFILL_NODES", "value": str(job.nodes)}, {"name": "PREFILL_MEET", "value": f"{first}:{MEET_PORT}"}],
        "resources": {"requests": {**memory, "ephemeral-storage": f"{job.disk_gb}Gi"}, "limits": limits},
        "volumeMounts": [{"name": "runs", "mountPath": RUNS}, {"name": "shm", "mountPath": "/dev/shm"}],
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE_SECONDS, "containers": [container],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
        **({"subdomain": subdomain} if subdomain else {}),
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": job.shared}},
                    {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
    }  # fmt: skip
    return {
        "completions": job.nodes, "parallelism": job.nodes, "completionMode": "Indexed", "backoffLimit": 0,
        "activeDeadlineSeconds": round(3600 * job.hours),
        "podFailurePolicy": {"rules": [
            {"action": "FailJob", "onExitCodes": {"containerName": "run", "operator": "In", "values": list(_FINAL)}}]},
        "template": {"spec": pod},
    }  # fmt: skip
