"""Rules about the folder: which files are there, whether they are sound, and how the data lies in them."""

from collections import Counter
from collections.abc import Iterator

from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom
from coterie.doctor.registry import rule
from coterie.doctor.wording import counted, listed, plain

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".npz", ".gguf", ".h5", ".msgpack", ".onnx", ".safetensors")
_UNFINISHED = (".incomplete", ".part", ".partial", ".aria2", ".crdownload", ".download", ".tmp")
_ADAPTERS = ("adapters.safetensors", "adapter_model.safetensors", "adapter_model.bin")


@rule(Level.ERROR)
def weights_missing(evidence: Evidence) -> Iterator[Symptom]:
    """There is no file of weights: neither `model.safetensors` nor its shards."""
    if evidence.wanted or "index" in evidence.refused:
        return
    others = [plain(name) for name in evidence.listing if name.endswith(_OTHER_WEIGHTS)]
    found = f"no weights, but {listed(others)}" if others else "no file of weights"
    advice = "fetch a checkpoint in safetensors"
    yield Symptom("the folder", found, "model.safetensors, or its shards", advice, cause="no_weights")


@rule(Level.ERROR)
def file_refused(evidence: Evidence) -> Iterator[Symptom]:
    """A file of weights cannot be read: damaged, cut short, not safetensors, or outside of the folder. Tensors are then
    not looked at."""
    yield from evidence.refused.get("file", ())


@rule(Level.ERROR)
def shard_missing(evidence: Evidence) -> Iterator[Symptom]:
    """A file of weights is not there although the index, or the number in the name of a sibling, calls for it."""
    listing = frozenset(evidence.listing)
    refused = {symptom.where for symptom in evidence.refused.get("file", ())}
    for name, by in evidence.wanted.items():
        if name not in listing and plain(name) not in refused:
            found = f"no such file, which {plain(by)} names"
            yield Symptom(plain(name), found, "every shard", "fetch the checkpoint again", cause="shard_missing")


@rule(Level.ERROR)
def shard_stray(evidence: Evidence) -> Iterator[Symptom]:
    """A file of weights is there that the index does not name, so that one of the two is old."""
    shards = [name for name in evidence.listing if name.startswith("model") and name.endswith(".safetensors")]
    stray = [] if evidence.index is None else [name for name in shards if name not in evidence.wanted]
    if evidence.index is None and "model.safetensors" in shards and len(shards) > 1:
        stray = ["model.safetensors"]
    for name in stray:
        found = "weights that do not belong to the rest"
        advice = "move the file away, or fetch the checkpoint again"
        yield Symptom(plain(name), found, "only files that the index names", advice, cause="shard_stray")


@rule(Level.ERROR)
def index_refused(evidence: Evidence) -> Iterator[Symptom]:
    """The index of the shards cannot be read, or does not map tensors to files."""
    yield from evidence.refused.get("index", ())


@rule(Level.ERROR, "index", "weights")
def index_stale(evidence: Evidence) -> Iterator[Symptom]:
    """The index and the shards disagree about which tensor lies where."""
    index = evidence.index or {}
    absent = [name for name, file in index.items() if name not in evidence.files[file].tensors]
    unknown = [name for file in evidence.files.values() for name in file.tensors if name not in index]
    for names, what in ((absent, "that are not in the file that it names"), (unknown, "in the shards that it lacks")):
        if names:
            found = f"{counted(len(names), 'tensor')} {what}: {listed([plain(name) for name in names])}"
            expected, advice = "the index and the shards to agree", "fetch the checkpoint again"
            yield Symptom(evidence.index_name, found, expected, advice, cause="index_stale")


@rule(Level.WARNING, "index", "weights")
def index_size(evidence: Evidence) -> Iterator[Symptom]:
    """The index states another size of all tensors together than the shards have, so it was made for other files."""
    stated = evidence.index_total
    assert evidence.weights is not None
    actual = evidence.weights.nbytes
    if stated is not None and (type(stated) not in (int, float) or stated != actual):
        found = f"metadata.total_size = {plain(str(stated), 40)}"
        advice = "fetch the index and the shards again, together"
        yield Symptom(evidence.index_name, found, f"{actual}, the bytes of all tensors", advice)


@rule(Level.ERROR, "weights")
def tensor_in_two_files(evidence: Evidence) -> Iterator[Symptom]:
    """Two files hold a tensor of one name, and readers take either."""
    homes: dict[str, list[str]] = {}
    for name, file in evidence.files.items():
        for tensor in file.tensors:
            homes.setdefault(tensor, []).append(plain(name))
    for tensor, names in homes.items():
        if len(names) > 1:
            found = f"a tensor of this name in {listed(names)}"
            yield Symptom(plain(tensor), found, "one", "fetch the checkpoint again", cause="tensor_duplicate")


@rule(Level.WARNING)
def adapter_ignored(evidence: Evidence) -> Iterator[Symptom]:
    """An adapter (LoRA) lies beside the weights. It is not applied, so the model answers as without it."""
    for name in evidence.listing:
        if name in _ADAPTERS:
            advice = "fuse the adapter into the weights with the tool that trained it"
            yield Symptom(name, "an adapter, which is not applied", "weights that are complete", advice)


@rule(Level.WARNING)
def download_unfinished(evidence: Evidence) -> Iterator[Symptom]:
    """A file has the name of a download or a write that has not ended."""
    for name in evidence.listing:
        if name.endswith(_UNFINISHED):
            advice = "let the download end, or delete the file if nothing writes to it"
            yield Symptom(plain(name), "a file that is not finished", "finished files", advice)


@rule(Level.NOTE)
def file_unused(evidence: Evidence) -> Iterator[Symptom]:
    """A file of weights or code is not used: another format beside the safetensors, or Python, which is never run."""
    used = {*evidence.wanted, *_ADAPTERS}
    for name in evidence.listing:
        if name.startswith("model") and name.endswith(".safetensors"):
            continue
        if name.endswith((*_OTHER_WEIGHTS, ".py")) and name not in used and name != "__init__.py":
            what = "code, which is never run" if name.endswith(".py") else "weights that are not read"
            yield Symptom(plain(name), what, "only files that are used", "delete it if nothing else needs it")


@rule(Level.NOTE, "weights")
def metadata_format(evidence: Evidence) -> Iterator[Symptom]:
    """Quantised weights do not carry the mark `"format": "mlx"`, by which some readers tell names of MLX from published
    ones."""
    for name, file in evidence.files.items():
        mark = file.metadata.get("format")
        if mark != "mlx" and any(tensor.endswith(".scales") for tensor in file.tensors):
            found = f"format = {plain(mark, 40)}" if mark is not None else "no format in __metadata__"
            yield Symptom(plain(name), found, "mlx", "write the file again with metadata {'format': 'mlx'}")


@rule(Level.NOTE)
def tensors_unaligned(evidence: Evidence) -> Iterator[Symptom]:
    """Tensors start at addresses that their element size does not divide. Here they are read as they lie; readers that
    need aligned data copy them."""
    for name, file in evidence.files.items():
        odd = Counter(info.dtype.name for info in file.tensors.values() if info.begin % info.dtype.itemsize)
        if odd:
            first = min(info.begin for info in file.tensors.values())
            kinds = listed([f"{n:,} of {dtype}" for dtype, n in sorted(odd.items())])
            found = f"{counted(odd.total(), 'tensor')} at unaligned offsets ({kinds}); the data starts at byte {first}"
            expected = "offsets that are multiples of the element size, the first of 64"
            yield Symptom(plain(name), found, expected, "nothing, or write the file again with a padded header")
