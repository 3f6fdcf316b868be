"""What jobs say before they die: written after real ones, of torch, the hub's client, triton, the kernel and this project.

Each has the reason that it is to be given, and the exit code that it ends with.
"""

from __future__ import annotations

from typing import NamedTuple


class Failure(NamedTuple):
    reason: str
    exit_code: int
    log: str


_FRAMES = """Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/opt/prefill/app/__main__.py", line 61, in <module>
    main()
  File "/opt/prefill/app/stage.py", line 101, in train
    section = train(self.job, loaded, self.run, eval_items=guarded)
              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""

OOM = Failure("cuda-oom", 1, "train:  12%|#2        | 144/1200 [01:40<12:13,  1.44step/s]\r" + _FRAMES + """\
  File "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.23 \
GiB is free. Including non-PyTorch memory, this process has 77.86 GiB memory in use. Of the allocated memory 74.52 GiB is \
allocated by PyTorch, and 2.81 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try \
setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.
""")  # fmt: skip

CUBLAS = Failure("cuda-oom", 1, _FRAMES + """\
RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`
""")  # fmt: skip

# The error of one library wrapped by another: the reason is in the first, and the last is what ends the process.
SAFETENSORS_FULL = Failure("disk-full", 1, _FRAMES + """\
  File "/opt/venv/lib/python3.11/site-packages/safetensors/torch.py", line 352, in save_file
    serialize_file(_flatten(tensors), filename, metadata=metadata)
safetensors_rust.SafetensorError: I/O error: No space left on device (os error 28)
""")  # fmt: skip
CACHE_FULL = Failure("disk-full", 1, _FRAMES + """\
  File "/opt/venv/lib/python3.11/site-packages/huggingface_hub/file_download.py", line 512, in http_get
    temp_file.write(chunk)
OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

""" + _FRAMES + """\
  File "/opt/venv/lib/python3.11/site-packages/huggingface_hub/file_download.py", line 1008, in hf_hub_download
    raise
OSError: [Errno 28] No space left on device: '/cache/huggingface/hub/models--mistralai--x/blobs/7a21.incomplete'
""")  # fmt: skip
OUR_FULL = Failure("disk-full", 28, """\
error: /runs/stage5b/20261123-101500: no space left on the disk; free some space or choose another --runs-dir, then resume; \
earlier runs are untouched
""")  # fmt: skip

READ_TIMEOUT = Failure("hub-timeout", 1, _FRAMES + """\
  File "/opt/venv/lib/python3.11/site-packages/requests/adapters.py", line 713, in send
    raise ReadTimeout(e, request=request)
requests.exceptions.ReadTimeout: (ReadTimeoutError("HTTPSConnectionPool(host='huggingface.co', port=443): Read timed out. \
(read timeout=10)"), '(Request ID: 5c2d1b70-5d3c-4f59-9d5e-3a6a1f2b8c11)')
""")  # fmt: skip
GATEWAY = Failure("hub-timeout", 1, _FRAMES + """\
huggingface_hub.errors.HfHubHTTPError: 504 Server Error: Gateway Time-out for url: https://huggingface.co/api/models/a/b/tree/main
""")  # fmt: skip
NO_CACHE = Failure("hub-timeout", 1, _FRAMES + """\
huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub and we cannot find \
the requested files in the local cache. Please check your connection and try again or make sure your Internet connection is on.

The above exception was the direct cause of the following exception:

""" + _FRAMES + """\
  File "/opt/venv/lib/python3.11/site-packages/transformers/utils/hub.py", line 553, in cached_files
    raise OSError(
OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.
""")  # fmt: skip
DNS = Failure("hub-timeout", 1, _FRAMES + """\
httpx.ConnectError: [Errno -3] Temporary failure in name resolution
""")  # fmt: skip
GATED = Failure("user", 1, _FRAMES + """\
huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6921;7b)

Cannot access gated repo for url https://huggingface.co/mistralai/x/resolve/main/config.json.
Access to model mistralai/x is restricted. You must have access to it and be authenticated to access it.
""")  # fmt: skip

NO_GCC = Failure("missing-tool", 1, _FRAMES + """\
  File "/opt/venv/lib/python3.11/site-packages/triton/runtime/build.py", line 26, in _build
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl.")
torch._inductor.exc.InductorError: RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set \
triton.knobs.build.impl.

Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace (please do this especially if you're reporting a bug to PyTorch).
""")  # fmt: skip
NO_GIT = Failure("missing-tool", 127, "/opt/hook.sh: line 3: git: command not found\n")

HF_LOCK = Failure("stale-lock", 1, _FRAMES + """\
filelock._error.Timeout: The file lock '/cache/huggingface/hub/.locks/models--mistralai--x/7a21c0.lock' could not be acquired.
""")  # fmt: skip
RUN_LOCK = Failure("stale-lock", 2, """\
error: /runs/stage5b/20261123-101500: is in use by process 4711 on C.7000001; wait for it, or stop it
""")  # fmt: skip

XID = Failure("gpu-fault", 1, """\
[ 8412.103311] NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
""" + _FRAMES + """\
RuntimeError: CUDA error: unspecified launch failure
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
NVRM: Xid (PCI:0000:41:00): 79, pid=4711, GPU has fallen off the bus.
""")  # fmt: skip
ECC = Failure("gpu-fault", 1, _FRAMES + """\
torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered
Search for `cudaErrorECCUncorrectable' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
""")  # fmt: skip
NO_DRIVER = Failure("gpu-fault", 2, """\
error: model.device: cuda is asked for, and torch sees no CUDA device; set model.device: auto
""")  # fmt: skip

STOPPED_TWICE = Failure("stopped", 143, """\
error: /runs/stage3b/20261123-064245: stopped by a signal at step 50; the checkpoint is saved; go on with --resume
""")  # fmt: skip
KILLED = Failure("killed", 137, "train:   3%|3         | 36/1200 [00:21<11:40,  1.66step/s]\rKilled\n")
WORKER = Failure("killed", 1, _FRAMES + """\
RuntimeError: DataLoader worker (pid 5123) is killed by signal: Killed.
""")  # fmt: skip

BUG = Failure("bug", 1, _FRAMES + """\
  File "/opt/prefill/app/batch.py", line 88, in layout
    raise ValueError(f"row of {rows} tokens at {where}")
ValueError: row of 4097 tokens at 0x7f3b2c1d9e40
""")  # fmt: skip
ILLEGAL = Failure("bug", 1, _FRAMES + """\
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
NVRM: Xid (PCI:0000:41:00): 31, pid=4711, name=python, Ch 00000008, intr 00000000. MMU Fault
""")  # fmt: skip
TILE = Failure("bug", 1, _FRAMES + """\
triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 147456, Hardware limit: 101376. Reducing block \
sizes or `num_stages` may help.
""")  # fmt: skip
SEGFAULT = Failure(
    "bug", 139, "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f2a (most recent call first):\n"
)
USER = Failure("user", 2, 'error: jobs/stage5b.yaml: train.max_steps: expected a positive integer, found "1k"\n')
NAN = Failure(
    "nan", 3, "error: /runs/stage5b/20261123-101500: the loss is not a number at step 41; lower train.learning_rate\n"
)
SILENT = Failure("bug", 1, "")

ALL = {name: value for name, value in globals().items() if isinstance(value, Failure)}
