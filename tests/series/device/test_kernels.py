"""The kernels, compiled ahead of time: no GPU is needed to see what a GPU would run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIGNATURES = {
    "stamp": {"row": "*i64", "slot": "i32"},
    "spin": {"bounds": "*i64", "duration_ns": "i32"},
    "read_clock": {"readings": "*i64", "count": "i32"},
    "answer": {"question": "*i64", "answers": "*i64", "exchanges": "i32", "patience_ns": "i32"},
}
"""As they are launched."""
CAPABILITIES = [80, 90, 100]
CLOCK = re.compile(r"mov\.u64\s+%rd\d+,\s*%globaltimer;")
BARRIER = re.compile(r"\b(bar|barrier|mbarrier)\.")


Compile = Callable[[str, int], Any]


@pytest.fixture
def compile_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Return what compiles a kernel for a kind of GPU. Triton is imported here: environments for vLLM have none."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from swtrace.series.device import kernels

    def compile_kernel(name: str, capability: int) -> Any:
        source = ASTSource(fn=getattr(kernels, name), signature=SIGNATURES[name], constexprs={})
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})

    return compile_kernel


def body(compiled: Any) -> str:
    """Return the PTX instructions, without what follows for debuggers."""
    ptx: str = compiled.asm["ptx"]
    return ptx[ptx.index(".entry") : ptx.index("ret;")]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", SIGNATURES)
def test_a_kernel_is_one_warp_without_a_barrier(compile_kernel: Compile, name: str, capability: int) -> None:
    """Each kernel reads the device's clock, waits for no other warp, and is assembled for Ampere to Blackwell."""
    compiled = compile_kernel(name, capability)
    code = body(compiled)
    assert CLOCK.search(code)
    assert not BARRIER.search(code)
    assert ".reqntid 32" in code
    assert compiled.metadata.shared == 0
    assert compiled.metadata.target.arch == capability
    assert compiled.asm["cubin"].startswith(b"\x7fELF"), "ptxas, which Triton brings along, made a binary of it"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_stamp_is_one_read_and_one_store(compile_kernel: Compile, capability: int) -> None:
    """A stamp reads the clock once, and one thread stores these 8 bytes, once, without a loop: nothing to tear."""
    code = body(compile_kernel("stamp", capability))
    (read,) = re.findall(r"mov\.u64\s+(%rd\d+),\s*%globaltimer;", code)
    (store,) = re.findall(r"(.*st\..*;)", code)
    assert re.match(rf"\s*@%p\d+ st\.global\.b64 \[.*\], {{ {read} }};", store), store
    assert "bra" not in code
    assert "ld.global" not in code


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_an_answer_goes_past_every_cache(compile_kernel: Compile, capability: int) -> None:
    """Questions are loaded again each time, answers written through; the clock is read once the question is seen."""
    code = body(compile_kernel("answer", capability))
    loads = re.findall(r"\bld\.\S*global\S*", code)
    stores = re.findall(r"\bst\.\S*", code)
    assert loads
    assert set(loads) == {"ld.volatile.global.b64"}
    assert stores == ["st.global.wt.b64"]
    # The block that stores reads the clock itself: an earlier reading would be from before the question.
    stored = code[: code.index("st.global.wt.b64")]
    assert CLOCK.search(stored[stored.rindex("$L__BB") :])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_spin_reads_the_clock_in_its_loop(compile_kernel: Compile, capability: int) -> None:
    """The loop of the spin contains a read of its own: a hoisted one would spin forever."""
    code = body(compile_kernel("spin", capability))
    loop = re.search(r"(\$L__BB0_\d+):((?:(?!\$L__BB)[\s\S])*)@%p\d+ bra\s+\1;", code)
    assert loop
    assert CLOCK.search(loop[2])


def test_the_device_package_loads_no_triton() -> None:
    """Importing the package and all that a series needs of it leaves Triton alone: stamps are made when asked for."""
    program = (
        "import sys\n"
        "from swtrace.series.device import accelerator, anchors, event_clock, stamp_clock, stamps\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'triton'))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"
