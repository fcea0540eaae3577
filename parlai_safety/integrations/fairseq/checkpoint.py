"""Reading a fairseq checkpoint without running anything that is in it, and without fairseq.

A checkpoint is a pickle, and a pickle may name any function to be called. torch's reader for weights alone refuses all
names but those of tensors. fairseq keeps its settings beside the weights as objects: `argparse.Namespace`, or in older
releases an object of omegaconf, with names of fairseq's own inside. Here each of these names stands for one inert
class, which keeps what it is given and does nothing. Any other name ends the reading before a byte is unpickled.
"""

from __future__ import annotations

import io
import itertools
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError

_INERT = ("argparse.", "omegaconf.", "fairseq.", "typing.", "enum.", "numpy.")
_INERT_TYPES = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("dict", "list", "tuple", "set", "str", "int", "float", "bool", "bytes", "object", "long")
) | {"copy_reg._reconstructor", "copyreg._reconstructor", "_codecs.encode", "collections.defaultdict"}
_KNOWN_TO_TORCH = ("torch.", "collections.OrderedDict")
_SECTIONS = ("encoder", "decoder", "quant_noise")
_LARGEST_PICKLE = 16_000_000  # bytes; that of a model of thousands of tensors with its optimizer has less than 1 MB
_MOST_VALUES, _DEEPEST = 20_000, 50


class Checkpoint(NamedTuple):
    """What an importer needs of a checkpoint."""

    weights: dict[str, Tensor]
    """Name -> tensor, as fairseq names them."""
    settings: dict[str, Any]
    """The model's settings in fairseq's flat names, as in `encoder_embed_dim`; with `task` the name of the task."""
    others: frozenset[str] = frozenset()
    """Names that belong to the task, the optimizer and so on, and not to the model; a flat `args` tells of none."""


class _Inert:
    """Stands for an object of the checkpoint: it keeps what it is given."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> _Inert:
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights and the settings of a checkpoint that `fairseq-train` saved.

    Args:
        path: a file in torch's present format or in that from before torch 1.6.

    Returns:
        Weights on the CPU in fp32, in which the parts that are made at import would be rounded otherwise, and settings
        as plain values.

    Raises:
        SafetyError: the file is missing or no checkpoint of fairseq, or it names code that a checkpoint has no use for.
    """
    path = Path(path)
    if not path.is_file():
        raise SafetyError(
            f"There is no file {str(path)!r}",
            "A checkpoint of fairseq is one file, such as checkpoint_best.pt",
            "Check the path, or name the file inside the folder of --save-dir",
        )
    try:
        names = _names_in(path)
        foreign = sorted(name for name in names if not _is_harmless(name))
        if foreign:
            raise SafetyError(
                f"The checkpoint {str(path)!r} names {', '.join(foreign[:3])}",
                "Weights and settings have no use for that, and unpickling it could run code: nothing was loaded",
                "Get the file from its makers again; if you trust it, save its weights anew with fairseq",
            )
        # torch reads the module names of Python 2, which pickles of protocol 2 have, as those of Python 3.
        inert: list[Any] = [(_Inert, name) for name in names | _INERT_TYPES if not name.startswith(_KNOWN_TO_TORCH)]
        with torch.serialization.safe_globals(inert):
            return _checkpoint(path, torch.load(path, map_location="cpu", weights_only=True))
    except SafetyError:
        raise
    except Exception as error:  # a made-up file can bring torch and the readers of zip and pickle to any
        # torch explains itself on many lines, the reason after this word.
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise _no_checkpoint(path, reason or str(error).partition("\n")[0] or "it ends early") from error


def _names_in(path: Path) -> set[str]:
    """The globals that the pickles of a file name, found by reading their opcodes."""
    names: set[str] = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, which torch never does")
            pickles = [entry for entry in entries if Path(entry.filename).name == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError(f"it has {len(pickles)} entries data.pkl, and not one")
            if pickles[0].file_size > _LARGEST_PICKLE:
                raise ValueError(f"its pickle has more than {_LARGEST_PICKLE:,} bytes")
            names |= set(_globals_of(io.BytesIO(archive.read(pickles[0]))))
    else:
        # From before torch 1.6: magic number, version, system, the object and the keys of its storages, then raw bytes.
        with path.open("rb") as stream:
            for _ in range(5):
                names |= set(_globals_of(stream))
    return names


def _globals_of(stream: BinaryIO) -> Iterator[str]:
    begin = stream.tell()
    for opcode, argument, position in pickletools.genops(stream):
        if position is not None and position - begin > _LARGEST_PICKLE:
            raise ValueError(f"its pickle has more than {_LARGEST_PICKLE:,} bytes")
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name in ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"its pickle uses {opcode.name}, which torch never writes")


def _is_harmless(name: str) -> bool:
    return name in _INERT_TYPES or name.startswith((*_INERT, *_KNOWN_TO_TORCH))


def _checkpoint(path: Path, state: Any) -> Checkpoint:
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise _no_checkpoint(path, "there is no entry 'model' in it")
    weights = {name: _weight(name, value) for name, value in state["model"].items() if isinstance(value, Tensor)}
    tree = _plain(state.get("cfg"))
    tree = tree if isinstance(tree, dict) else {}
    # 0.9 and older keep all settings in one flat `args`; later releases a tree with the model's own in `model`.
    settings = _plain(state.get("args")) or tree.get("model")
    if not isinstance(settings, dict):
        raise _no_checkpoint(path, "there are no settings in it, neither as 'args' nor as 'cfg'")
    flat = {name: value for name, value in settings.items() if name not in _SECTIONS or not isinstance(value, dict)}
    for section in _SECTIONS:
        inner = settings.get(section)
        for name, value in inner.items() if isinstance(inner, dict) else ():
            flat[f"{section}_{name}"] = value
    task = tree.get("task")
    if isinstance(task, dict):
        flat["task"] = task.get("_name", flat.get("task"))
    others = {
        name for section, inner in tree.items() if section != "model" and isinstance(inner, dict) for name in inner
    }
    return Checkpoint(weights, {name: _resolved(value, tree) for name, value in flat.items()}, frozenset(others))


def _weight(name: Any, value: Tensor) -> Tensor:
    if not isinstance(name, str):
        raise ValueError(f"a weight has the name {name!r}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{name} has more numbers than are stored for it")
    return value.float() if value.is_floating_point() else value


def _resolved(value: Any, tree: Mapping[str, Any]) -> Any:
    """What omegaconf's `${section.name}` stands for; what cannot be found stays as it is."""
    match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    if match is None:
        return value
    found: Any = tree
    for name in match[1].split("."):
        if not isinstance(found, dict) or name not in found:
            return value
        found = found[name]
    return found


def _plain(value: Any) -> Any:
    """Settings as plain values, whatever object held them.

    Raises:
        ValueError: they are deeper or more than settings are, as objects that hold themselves would be.
    """
    return _plain_within(value, itertools.count(), 0)


def _plain_within(value: Any, counter: Iterator[int], depth: int) -> Any:
    if next(counter) > _MOST_VALUES or depth > _DEEPEST:
        raise ValueError(f"its settings have more than {_MOST_VALUES:,} values, or {_DEEPEST} inside one another")

    def inner(item: Any) -> Any:
        return _plain_within(item, counter, depth + 1)

    if isinstance(value, _Inert):
        state = value.state
        if isinstance(state, tuple):  # of a class with slots: its dictionary, and its slots
            state = {name: item for part in state if isinstance(part, Mapping) for name, item in part.items()}
        if not isinstance(state, Mapping) or not state:
            return inner(value.args[0]) if len(value.args) == 1 else None  # an enumeration's member
        for inside in ("_content", "_val"):  # of omegaconf's containers and of its leaves
            if inside in state:
                return inner(state[inside])
        return inner(state)
    if isinstance(value, Mapping):
        return {str(inner(name)): inner(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [inner(item) for item in value]
    return value


def _no_checkpoint(path: Path, found: str) -> SafetyError:
    return SafetyError(
        f"{str(path)!r} cannot be read as a checkpoint of fairseq: {found}",
        "It must be a file that fairseq-train saved, with weights in 'model' and settings in 'cfg' or 'args'",
        "Check the path, and that the file is whole",
    )
