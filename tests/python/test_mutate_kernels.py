"""scripts/mutate_kernels.py finds every synchronisation of every op, whatever its sources are called."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("mutate_kernels", ROOT / "scripts" / "mutate_kernels.py")
mutate_kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate_kernels)


def test_each_kernel_source_belongs_to_one_op_and_each_op_has_tests():
    ops = mutate_kernels.all_ops()
    owned = [path for op in ops for path in mutate_kernels.files_of(ROOT / "kernels", op, ".cu", ops)]
    assert sorted(owned) == sorted((ROOT / "kernels").glob("*.cu"))
    for op in ops:
        assert mutate_kernels.files_of(ROOT / "tests/kernels", op, "_test.cpp", ops), op


def test_no_synchronisation_is_left_out():
    ops, found = mutate_kernels.all_ops(), set()
    for op in ops:
        for name in mutate_kernels.included(ROOT, mutate_kernels.files_of(ROOT / "kernels", op, ".cu", ops)):
            found |= {(name, line) for line, _, _ in mutate_kernels.mutants((ROOT / name).read_text())}
    word = re.compile(r"__syncthreads|GPU_SYNC_THREADS_HERE|__syncwarp|named_barrier|copy_async_commit|copy_async_wait")
    wanted = set()
    for path in (ROOT / "kernels").rglob("*"):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".cu", ".cuh", ".h") and not name.startswith(mutate_kernels.DEFINITIONS):
            lines = path.read_text().splitlines()
            wanted |= {(name, n) for n, line in enumerate(lines, 1) if word.search(line.split("//")[0])}
    assert found == wanted
    assert any(name.startswith("kernels/gpu/") for name, _ in found)


def test_mutants_of_a_source():
    source = "int x;\n  __syncthreads();  // all have read\n  // __syncwarp();\n  gpu::copy_async_wait<1>(); GPU_SYNC_THREADS_HERE();\n"
    told = [(line, what) for line, what, _ in mutate_kernels.mutants(source)]
    assert told == [(2, "no __syncthreads();"), (4, "no gpu::copy_async_wait<1>();"),
                    (4, "gpu::copy_async_wait<1>(); → gpu::copy_async_wait<2>();"), (4, "no GPU_SYNC_THREADS_HERE();")]
    assert mutate_kernels.mutants(source)[0][2] == source.replace("__syncthreads();", ";", 1)
    assert mutate_kernels.mutants(source)[2][2] == source.replace("<1>", "<2>")


def test_sources_by_stem(tmp_path):
    for name in ("token_entropy.cu", "token_entropy_more.cu", "token_entropy.cuh", "linear_token_entropy.cu", "token.cu"):
        (tmp_path / name).write_text("")
    ops = ["token", "token_entropy", "linear_token_entropy"]
    names = lambda op: [path.name for path in mutate_kernels.files_of(tmp_path, op, ".cu", ops)]
    assert names("token_entropy") == ["token_entropy.cu", "token_entropy_more.cu"]
    assert names("token") == ["token.cu"]


def test_a_mutant_of_a_header_is_noticed_where_one_op_notices_it():
    row = {"file": "kernels/gpu/reduce.h", "line": 57, "what": "no barrier", "plain": "passed", "checked": "passed"}
    seen = row | {"checked": "failed: A.B, RACE"}
    assert mutate_kernels.survivors({"one": [row], "two": [seen]}) == []
    assert mutate_kernels.survivors({"one": [row], "two": [seen | {"line": 55}]}) == ["kernels/gpu/reduce.h:57, no barrier"]
    assert "not noticed: none" in mutate_kernels.page({"one": [row], "two": [seen]}, ["one", "two"])
