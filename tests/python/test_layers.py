"""The order of the layers holds in this tree, and scripts/check_layers.py finds each way to break it."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("check_layers", ROOT / "scripts" / "check_layers.py")
check_layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_layers)


def findings(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return check_layers.check_tree(tmp_path)[0]


def test_this_tree():
    found, files = check_layers.check_tree(ROOT)
    assert files > 0
    assert found == []


def test_what_is_tracked():
    """No file that .gitignore names, none that is larger than the largest picture by far, no source that is more than a person reads at once."""
    listed = lambda *words: subprocess.run(["git", "ls-files", "-z", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]  # noqa: E731
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    assert listed("-ci", "--exclude-standard") == []
    files = [ROOT / name for name in listed() if (ROOT / name).is_file()]
    assert [str(file) for file in files if file.stat().st_size > 2**19] == []
    sources = [file for room in ("csrc", "kernels", "python") for file in files if file.is_relative_to(ROOT / room) and file.suffix in (".h", ".cpp", ".cu", ".cuh", ".py")]
    assert len(sources) > 300
    assert [str(file) for file in sources if len(file.read_text().splitlines()) > 450] == []


FILES = {"kernels/gpu/philox.h": "", "kernels/gpu/reduce.h": "", "kernels/op.h": '#include "kernels/gpu/philox.h"\n',
         "csrc/field.h": "", "csrc/ops/ops.h": "#include <ATen/ATen.h>\n", "csrc/model/decoder.h": '#include "csrc/ops/ops.h"\n',
         "csrc/data/random.h": '#include "kernels/gpu/philox.h"\n', "csrc/data/batch.h": "", "csrc/rl/rollout.h": '#include "csrc/data/random.h"\n',
         "csrc/train/config.h": '#include "csrc/rl/rollout.h"\n', "csrc/train/config.cpp": "#include <yaml-cpp/yaml.h>\n",
         "csrc/train/distributed.cpp": "#include <torch/csrc/distributed/c10d/Store.hpp>\n",
         "csrc/main.cpp": '#include "csrc/train/config.h"\n', "tests/csrc/op_test.cpp": '#include "csrc/train/config.h"\n',
         "kernels/op.cu": "k<<<1, 2>>>();\n"}


def test_a_tree_in_order_has_no_findings(tmp_path):
    assert findings(tmp_path, FILES) == []


@pytest.mark.parametrize("name, text, line, words", [
    ("kernels/op.cu", "\n#include <torch/torch.h>\n", 2, "know no torch"),
    ("kernels/op.cu", "#include <c10/util/Half.h>\n", 1, "know no torch"),
    ("tests/kernels/op_test.cpp", "#include <ATen/ATen.h>\n", 1, "know no torch"),
    ("kernels/gpu/reduce.h", '#include "kernels/op.h"\n', 1, "kernels/gpu/ may not include kernels/op.h"),
    ("kernels/op.h", '#include "csrc/ops/ops.h"\n', 1, "kernels/ may not include"),
    ("kernels/op.h", "constexpr int kRows = 1 << (2);\nISENTROPE_HOST_DEVICE constexpr int a(int x) { return x; }\nconstexpr bool has(Form form) {\n", 3, "ISENTROPE_HOST_DEVICE"),
    ("csrc/ops/op.cpp", '#include "csrc/model/decoder.h"\n', 1, "csrc/ops/ may not include"),
    ("csrc/model/decoder.h", '#include "csrc/rl/rollout.h"\n', 1, "csrc/model/ may not include"),
    ("csrc/model/decoder.h", '#include "csrc/data/batch.h"\n', 1, "csrc/model/ may not include"),
    ("csrc/rl/rollout.h", '\n\n  #  include "csrc/train/config.h"\n', 3, "csrc/rl/ may not include"),
    ("csrc/train/config.h", '#include "csrc/main.cpp"\n', 1, "csrc/train/ may not include"),
    ("csrc/data/random.h", '#include "kernels/gpu/reduce.h"\n', 1, "csrc/data/ may not include"),
    ("csrc/data/random.h", '#include <csrc/rl/rollout.h>\n', 1, "csrc/data/ may not include"),
    ("csrc/field.h", '#include "csrc/data/random.h"\n', 1, "no other room"),
    ("csrc/train/trainer.cpp", "#include <yaml-cpp/yaml.h>\n", 1, "config.cpp alone"),
    ("csrc/rl/reward.cpp", "#include <pcre2.h>\n", 1, "csrc/rl/pattern.cpp and csrc/data/split_pattern.cpp alone"),
    ("csrc/rl/rollout.h", "#include <torch/csrc/distributed/c10d/Store.hpp>\n", 1, "csrc/train/distributed.cpp alone"),
    ("csrc/ops/op.cpp", '#include "../field.h"\n', 1, "goes up"),
    ("csrc/ops/op.cpp", '#include "ops.h"\n', 1, "no such file"),
    ("csrc/ops/op.cpp", '#include "kernels/gpu/reduce.cuh"\n', 1, ".cuh files stay"),
    ("csrc/ops/op.cpp", "/* a\n b */ k<<<1, 2>>>();\n", 2, "launches"),
    ("csrc/ops/op.cu", "", 1, "CUDA sources"),
    ("csrc/new_room/op.h", "", 1, "belongs to no room"),
])
def test_each_breach_is_found_where_it_is(tmp_path, name, text, line, words):
    found = findings(tmp_path, FILES | {name: text})
    assert found, "nothing was found"
    assert found[0].startswith(f"{name}:{line}: ") and words in found[0], found


@pytest.mark.parametrize("text", ["// k<<<1, 2>>>()\n", 'const char* s = "<<<";\n', "/* k<<<1,\n2>>> */\n"])
def test_a_launch_in_a_comment_or_string_is_none(tmp_path, text):
    assert findings(tmp_path, FILES | {"csrc/ops/op.cpp": text}) == []
