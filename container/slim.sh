#!/bin/bash
# Removes from the image's site-packages what no run needs, then compiles the modules that runs import. The Dockerfile calls it:
# slim.sh VARIANT SITE_PACKAGES. docs/containers.md lists what is removed, and the sizes.
set -euo pipefail
variant=$1
cd "$2"

# The libraries' own tests: a tenth of the image.
rm -rf torch/test
rm -f torch/lib/libtorchbind_test.so torch/lib/libjitbackend_test.so torch/lib/libbackend_with_compiler.so torch/lib/libaoti_custom_ops.so
find . -depth -type d -name tests -path '*/tests' -exec rm -rf {} +
# Type stubs, sources and headers of C extensions (nothing is built here), and the sources from which transformers generates
# its modeling files.
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.a' -o -name '*.lib' \) -delete
rm -rf pyarrow/include pyarrow/src numpy/_core/include
find transformers/models -type f -name 'modular_*.py' -delete
# protoc and test programs; torch's Python code calls only torch_shm_manager.
find torch/bin -type f ! -name torch_shm_manager -delete
# Arrow over the network (Flight) and from S3: pyarrow imports them only on request.
rm -f pyarrow/libarrow_flight.so* pyarrow/libarrow_python_flight.so* pyarrow/_flight.*.so
rm -f pyarrow/libarrow_s3.so* pyarrow/_s3fs.*.so
# The APIs of 400 services: s3fs calls S3, and the others to log in.
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name 'sso*' -exec rm -rf {} +
# Two more copies of a library, under names for linkers and people; the loader asks for libarrow_python*.so.2600.
rm -f pyarrow/libarrow_python*.so pyarrow/libarrow_python*.so.*.*

# Without a compiler nothing needs torch's headers. Symbol tables serve debuggers only: the loader uses another table. They
# stay in cuda, where they are a twentieth of the whole, and in *.libs, whose files auditwheel has rewritten: stripped, such
# a file does not always load.
if [ "$variant" = cpu ]; then
  rm -rf torch/include
  find . -type f -name '*.so*' ! -path './*.libs/*' -exec strip --strip-unneeded {} +
fi

# Bytecode of the modules that a run imports, and no others: all of it would add 200 MB. In cuda the compiler's too, of which a run
# imports what its kernels need: without it each start that compiles takes two seconds more. `unchecked-hash` makes it a function
# of the source alone, so that two builds are equal, and a start does not check the sources' times.
SOURCE_DATE_EPOCH=0 ../../../bin/python -I -B - "$variant" <<'PYTHON'
import compileall
import importlib
import py_compile
import sys
from pathlib import Path

RUN = """torch torch._dynamo torch.nn.attention.flex_attention transformers transformers.modeling_gguf_pytorch_utils
transformers.models.auto.modeling_auto transformers.models.llama.modeling_llama transformers.models.mistral.modeling_mistral
transformers.models.ministral3.modeling_ministral3 transformers.models.gemma3.modeling_gemma3 transformers.integrations.sdpa_attention
accelerate peft datasets s3fs gguf sentencepiece click jinja2 pydantic yaml rich.console rich.text tqdm
pip._internal.cli.main pip._internal.commands.download""".split()
for name in RUN:
    importlib.import_module(name)
loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
COMPILER = ("torch/_dynamo", "torch/_functorch", "torch/_inductor", "triton") if sys.argv[1] == "cuda" else ()
loaded.update(str(file.resolve()) for package in COMPILER for file in Path(package).rglob("*.py"))
files = sorted(file for file in loaded if file.startswith(sys.prefix) and file.endswith(".py"))
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for file in files:
    if not compileall.compile_file(file, quiet=1, invalidation_mode=mode):
        sys.exit(f"cannot compile {file}")
print(f"compiled {len(files)} modules")
PYTHON
