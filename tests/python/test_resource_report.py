"""scripts/resource_report.py reads what ptxas and the PTX say, and refuses spills."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "resource_report.py"
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3foov' for 'sm_90'
ptxas info    : Function properties for _Z3foov
    8 bytes stack frame, {spills} bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 96 bytes smem, 8 bytes cmem[0]
"""
PTX = b"""\0.version 9.0
.target sm_90
.visible .entry _Z3foov(
.param .u64 p
)
{
ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
ld.global.cs.v2.b64 {%rd2, %rd3}, [%rd1];
ld.global.L1::no_allocate.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
ld.global.nc.u16 %rs1, [%rd1];
ld.global.f32 %f1, [%rd1];
ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r9];
}
\0"""


def report(tmp_path, ptxas):
    binary = tmp_path / "foo.cu.o"
    binary.write_bytes(b"\x7fELF" + PTX)
    (tmp_path / "foo.cu.o.ptxas").write_text(ptxas)
    command = [sys.executable, SCRIPT, "--json", tmp_path / "report.json", binary]
    return subprocess.run(command, capture_output=True, text=True)


def test_reads_registers_shared_memory_and_loads(tmp_path):
    done = report(tmp_path, PTXAS.format(spills=0).replace("4 bytes spill loads", "0 bytes spill loads"))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert (row["architecture"], row["registers"], row["shared"], row["stack"], row["spills"]) == ("sm_90", 40, 96, 8, 0)
    assert (row["loads"], row["loads_16_bytes"]) == (5, 3)
    assert row["wide_share"] == round(48 / 54, 3)


def test_refuses_spills_and_empty_reports(tmp_path):
    done = report(tmp_path, PTXAS.format(spills=12))
    assert done.returncode == 1 and "16 bytes" in done.stderr
    assert not (tmp_path / "report.json").exists()
    done = report(tmp_path, "")
    assert done.returncode == 1 and "no kernel" in done.stderr
