"""Memory: weights are mapped and not copied, what is taken is reported, and a model that does not fit says its cost."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coterie
from coterie.checkpoint import open_checkpoint, write_checkpoint
from coterie.errors import CheckpointError, MemoryShortage
from coterie.runtime import load, loading, memory
from coterie.runtime.memory import resident_at, shortage, size
from models import tiny

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")

TIMES = 32
"""The experts of the tiny model so many times: 100 MiB of weights, far above what else a process takes."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = tiny.checkpoint("qwen3_moe", "plain"), tmp_path_factory.mktemp("large") / "model"
    config = json.loads((source / "config.json").read_text())
    tensors = {}
    with open_checkpoint(source) as checkpoint:
        for name, value in checkpoint.tensors.items():
            times = (TIMES,) + (1,) * (value.ndim - 1)
            tensors[name] = (
                np.tile(value, times) if ".switch_mlp." in name or name.endswith("mlp.gate.weight") else value
            )
        config["num_experts"] *= TIMES
        extra = {file.name: file.read_bytes() for file in source.glob("tokenizer*")}
        write_checkpoint(target, tensors, config, extra=extra)
    return target


MEASURED = """
import re, sys
from pathlib import Path
import coterie
def anonymous():
    return int(re.search(r"RssAnon:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
coterie.load(sys.argv[1]).generate([5, 6, 7], max_tokens=4)
before = anonymous()
model = coterie.load(sys.argv[2])
made = model.generate([5, 6, 7], max_tokens=4)
use = model.memory()
print(anonymous() - before, use.weights, use.weights_resident, use.resident, use.peak)
"""


@on_linux
def test_weights_are_mapped_and_not_copied(large: Path) -> None:
    small = tiny.checkpoint("qwen3_moe", "plain")
    told = subprocess.run(
        [sys.executable, "-c", MEASURED, str(small), str(large)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    grown, weights, weights_resident, resident, peak = map(int, told.stdout.split())
    assert weights > 90 << 20
    assert grown < weights / 10
    # Each byte was looked at once, so the mapping is in memory, unless the machine had to take it back.
    assert weights_resident < resident <= peak
    assert weights_resident <= weights + (1 << 20)


@on_linux
def test_what_a_model_takes_is_reported() -> None:
    model = load()
    made = model.generate("def", max_tokens=4)
    use = model.memory()
    assert use.weights == model.describe().nbytes
    assert use.weights_resident is not None
    assert 0 < use.weights_resident <= use.weights + (1 << 20)
    assert use.resident is not None
    assert use.weights_resident < use.resident <= use.peak
    assert 0 < made.cache_nbytes == model.generate_batch(["def"], max_tokens=4)[0].cache_nbytes


def test_resident_bytes_are_those_of_mapped_files_with_weights_in_them() -> None:
    smaps = (
        "1000-3000 r--s 00000000 fe:00 77 /models/a.safetensors\nSize: 8 kB\nRss: 8 kB\nPss: 4 kB\n"
        "3000-9000 rw-p 00000000 00:00 0 \nRss: 24 kB\n"
        "9000-a000 r--s 00000000 fe:00 78 /lib/other.so\nRss: 4 kB\n"
        "7f0000000000-7f0000002000 r--s 00000000 fe:00 79 /models/b.safetensors\nRss: 4 kB\n"
    )
    assert resident_at(smaps, [0x1000, 0x2FFF, 0x5000, 0x7F0000001FFF]) == 12 << 10
    assert resident_at(smaps, [0x3000, 0xA000]) == 0
    assert resident_at("", [0x1000]) is None


# A model that does not fit --------------------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_says_so_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.checkpoint("qwen3_moe", "4 bits g64")
    expected = load(folder).generate([5, 6], max_tokens=5)
    about = coterie.runtime.loading.describe(folder)
    monkeypatch.setattr(loading, "available_memory", lambda: about.nbytes // 2)
    with pytest.warns(MemoryShortage) as told:
        model = load(folder)
    assert model.generate([5, 6], max_tokens=5).token_ids == expected.token_ids
    (text,) = [str(warning.message) for warning in told]
    assert size(about.nbytes) in text
    assert size(about.nbytes // 2) in text
    assert size(about.nbytes_per_token) in text
    assert "disk" in text


@pytest.mark.parametrize("available", [None, 1 << 60])
def test_a_model_that_fits_says_nothing(available: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: available)
    load(tiny.checkpoint("qwen3_moe", "4 bits g64"))


def test_a_damaged_checkpoint_that_does_not_fit_is_refused_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny.checkpoint("qwen3_moe", "4 bits g64"), copy)
    (copy / "model.safetensors").write_bytes(b"\xff" * 4096)
    (copy / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(loading, "available_memory", lambda: 1)
    with pytest.raises(CheckpointError):
        load(copy)


def test_what_a_token_reads_from_the_disk() -> None:
    about = load().describe()
    always = sum(weight.nbytes for weight in about.weights if weight.nbytes == weight.nbytes_per_token)
    routed = about.nbytes_per_token - always

    def from_disk(available: int) -> str:
        told = shortage(about, available)
        assert told is not None
        return told

    assert f"about {size(routed)} come" in from_disk(always)
    assert f"about {size(routed / 2)} come" in from_disk((about.nbytes + always) // 2)
    assert f"about {size(about.nbytes_per_token)} come" in from_disk(always - 1)
    assert shortage(about, about.nbytes) is None
    dense = dataclasses.replace(
        about, nbytes=always, weights=tuple(w for w in about.weights if w.nbytes == w.nbytes_per_token)
    )
    assert shortage(dense, always - 1) is not None


def test_a_container_may_have_less_than_its_machine(tmp_path: Path) -> None:
    assert memory._control_group_room(tmp_path) is None
    for name, text in (("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 300\nfile 400\n")):
        (tmp_path / name).write_text(text)
    assert memory._control_group_room(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._control_group_room(tmp_path) is None


def test_macos_says_it_in_pages() -> None:
    told = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\nPages active:                             99.\n"
        "Pages inactive:                            5.\nPages speculative:                         2.\n"
        "Pages wired down:                         50.\nPages purgeable:                           1.\n"
    )
    assert memory.pages_of_vm_stat(told) == 18 * 16384
    assert memory.pages_of_vm_stat("no such thing") is None


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_read", lambda _path: "")
    assert memory.available_memory() is None
    use = memory.memory_use(5, [1])
    assert (use.resident, use.weights, use.weights_resident) == (None, 5, None)
    assert use.peak > 1 << 20


def test_the_machine_has_memory() -> None:
    assert 1 << 20 < (memory.available_memory() or 0) <= memory.physical_memory() < math.inf


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (17 << 30, "17.0 GiB"),
        (3 << 40, "3072.0 GiB"),
    ],
)
def test_sizes_for_readers(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
