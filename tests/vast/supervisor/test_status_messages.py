"""What a machine's status message means: the image, which no machine can pull, or the host, which is then banned."""

from __future__ import annotations

import pytest

from vast.supervisor.reasons import of_message

DENIED = [
    'Error response from daemon: Head "https://ghcr.io/v2/you/prefill/manifests/1-host": denied: denied',
    'Error response from daemon: Head "https://ghcr.io/v2/you/prefill/manifests/1": unauthorized: authentication required',
    "Error response from daemon: denied: requested access to the resource is denied",
    'Error response from daemon: Head "https://1.dkr.ecr.eu-west-1.amazonaws.com/v2/prefill/manifests/1": no basic auth credentials',
    "Error response from daemon: pull access denied for 1.dkr.ecr.us-east-1.amazonaws.com/prefill, repository does not exist or may "
    "require 'docker login': denied: Your authorization token has expired. Reauthenticate and try again.",
    "denied: Your authorization token has expired. Reauthenticate and try again.",
    "failed to resolve reference: failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized",
    "failed to resolve reference: unexpected status from HEAD request: 403 Forbidden",
    "Error response from daemon: name unknown: The repository with name 'prefill' does not exist in the registry",
    "Error response from daemon: manifest unknown",
]
HOST = [
    "Error response from daemon: mkdir /var/lib/docker/overlay2/x: permission denied",
    "Error response from daemon: failed to create task: OCI runtime create failed: nvidia-container-cli: driver error",
    "write /var/lib/docker/tmp/x: no space left on device",
]


@pytest.mark.parametrize("message", DENIED)
def test_a_registry_that_denies_bans_no_machine(message: str) -> None:
    assert of_message(message) == "image"


@pytest.mark.parametrize("message", HOST)
def test_a_fault_of_the_host_is_none_of_the_image(message: str) -> None:
    assert of_message(message) == "host-fault"


@pytest.mark.parametrize("message", ["", "success, running prefill_1/ssh", "Pulling from you/prefill"])
def test_other_messages_are_no_fault(message: str) -> None:
    assert of_message(message) is None
