"""The program of the burn-in that needs torch: each GPU multiplies, copies and fills its memory, and gets data from another.

A text, since the interpreter of vast/host has no torch; vast/host/burnin.py runs it with the image's: python -c PROGRAM SIDE
SECONDS [STEP...]. Without steps it takes all: multiply, copy, fill, receive.
It prints one JSON object: torch, cuda, and for each of `gpus` either `error`, or

right       entries of the bf16 product are exact: of 4 rows against the CPU, of all against the first product
tflops      of bf16 products of side SIDE, over SECONDS
to_gb_s, from_gb_s    between pinned memory of the host and the GPU
filled_gb   memory that was written and read back (GB of 2**30 bytes), `total_gb` of it there
peer_gb_s   from the GPU before it, in a ring over NVLink or PCIe, as NCCL sends; absent where there is one GPU
peer_right  the data arrived unchanged: with a wrong setting of the host's IOMMU copies between GPUs return garbage
"""

PROGRAM = r"""
import json, sys, threading, time
import torch

SIDE, SECONDS, GIB, COPIED = int(sys.argv[1]), float(sys.argv[2]), 2**30, 2**27
STEPS = sys.argv[3:] or ["multiply", "copy", "fill", "receive"]


def gpu(index):
    return torch.device("cuda", index)


def short(number):
    return float(f"{number:.4g}")


def timed(device, copy, size):
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(4):
        copy()
    torch.cuda.synchronize(device)
    return short(4 * size / (time.perf_counter() - begun) / 1e9)


def multiply(device, found):
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    generator = torch.Generator().manual_seed(0)
    # Sums of -1, 0 and 1 are whole numbers, exact in float32, and rounded to bfloat16 once.
    left, right = (torch.randint(-1, 2, (SIDE, SIDE), generator=generator, dtype=torch.int8) for _ in range(2))
    expected = (left[:4].float() @ right.float()).bfloat16()
    left, right = left.to(device).bfloat16(), right.to(device).bfloat16()
    first = left @ right
    torch.cuda.synchronize(device)
    begun, count = time.perf_counter(), 0
    while count < 4 or time.perf_counter() - begun < SECONDS:
        last = left @ right
        count += 1
        if count % 4 == 0:
            torch.cuda.synchronize(device)
    torch.cuda.synchronize(device)
    found["tflops"] = short(2 * SIDE**3 * count / (time.perf_counter() - begun) / 1e12)
    found["right"] = bool(torch.equal(first[:4].cpu(), expected) and torch.equal(first, last))


def copy(device, found):
    here, there = (torch.empty(COPIED, dtype=torch.uint8, **where) for where in ({"pin_memory": True}, {"device": device}))
    found["to_gb_s"] = timed(device, lambda: there.copy_(here, non_blocking=True), COPIED)
    found["from_gb_s"] = timed(device, lambda: here.copy_(there, non_blocking=True), COPIED)


def receive(index, count, found):
    sent = torch.randint(0, 256, (COPIED,), dtype=torch.uint8, device=gpu((index - 1) % count))
    got = torch.zeros(COPIED, dtype=torch.uint8, device=gpu(index))
    found["peer_gb_s"] = timed(got.device, lambda: got.copy_(sent, non_blocking=True), COPIED)
    found["peer_right"] = bool(torch.equal(got.cpu(), sent.cpu()))


def fill(device, found):
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    blocks = []
    for number in range(max(0, free // GIB - 1)):
        blocks.append(torch.full((GIB // 4,), number, dtype=torch.int32, device=device))
    whole = all(int(block.min()) == number == int(block.max()) for number, block in enumerate(blocks))
    found["filled_gb"], found["total_gb"] = (len(blocks) if whole else 0), round(total / GIB, 2)
    blocks.clear()
    torch.cuda.empty_cache()


def check(index, found):
    try:
        device = gpu(index)
        torch.cuda.set_device(device)
        for step in (multiply, copy, fill):
            if step.__name__ in STEPS:
                step(device, found)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"[:300]


answer = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
try:
    torch.cuda.init()
    answer["gpus"] = [{"index": index, "name": torch.cuda.get_device_name(index)} for index in range(torch.cuda.device_count())]
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {error}"[:300]
threads = [threading.Thread(target=check, args=(one["index"], one)) for one in answer["gpus"]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for one in answer["gpus"] if len(answer["gpus"]) > 1 and "receive" in STEPS else []:
    try:
        receive(one["index"], len(answer["gpus"]), one)
    except Exception as error:
        one["error"] = f"{type(error).__name__}: {error}"[:300]
print(json.dumps(answer))
"""
