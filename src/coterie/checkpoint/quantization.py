"""Which layer is quantised how: the rules that config.json and the stored shapes give together, as mlx-lm reads them.

    "quantization": {"group_size": 64, "bits": 4, "mode": "affine", "<module path>": {...} | false, ...}

An entry for the module's path wins. A dict is complete in itself: a missing "mode" is affine and a missing or null
"bits" or "group_size" is that mode's default, never the top level's. `false` is not quantised; `true` is the top level.
Without an entry a module is quantised exactly if `<path>.scales` is stored, and its format follows from the shapes:
bits = 32 * words / inputs, group size = inputs / groups, and byte scales mean nvfp4, mxfp4 or mxfp8. The inputs come
from the architecture, because words and groups alone are ambiguous (4 bits in groups of 64 fill what 8 bits in groups
of 32 fill).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.files import show
from coterie.errors import ArgumentError, CheckpointError, ConfigError, UnsupportedError
from coterie.formats import Format

_FORMAT_KEYS = ("group_size", "bits", "mode")
_FLAG_KEYS = ("global_scale", "quantize_input")
_BYTE_SCALE_MODES = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}


@dataclass(frozen=True, slots=True)
class QuantizationRules:
    """What config.json says about quantisation. `default` is None where it says nothing.

    entries: per module path its format, or None for "not quantised".
    """

    default: Format | None
    entries: Mapping[str, Format | None]

    def format_for(
        self, path: str, words: int, n_scale_groups: int | None, scale_dtype: str | None, in_dims: int
    ) -> Format | None:
        """The format of the module at `path`, or None if it is not quantised.

        words: last axis of `<path>.weight`. n_scale_groups, scale_dtype: last axis and dtype name of `<path>.scales`,
        None where no scales are stored. in_dims: inputs of the layer. `CheckpointError` where file and config disagree.
        """
        explicit = path in self.entries
        fmt = self.entries.get(path)
        if n_scale_groups is None or scale_dtype is None:
            if fmt is not None:
                found = f"no {path}.scales in the file though config.json says {fmt}"
                raise _mismatch(path, "scales_missing", found, "scales beside the weight")
            return None
        if self.default is None:
            found = 'scales in the file and no "quantization" in config.json'
            raise _mismatch(path, "quantization_undeclared", found, "both or neither")
        if explicit and fmt is None:
            raise _mismatch(path, "scales_undeclared", "scales in the file though config.json says false", "no scales")
        if fmt is None:
            fmt = _inferred(path, words, n_scale_groups, scale_dtype, in_dims)
        _check_fit(path, fmt, words, n_scale_groups, scale_dtype, in_dims)
        return fmt


def rules(config: Mapping[str, Any], where: str = "config.json", *, published: bool = False) -> QuantizationRules:
    """The rules in a validated config. `ConfigError` for absurd ones, `UnsupportedError` for other tools' layouts.

    published: the layout that gpt-oss was published in, which a conversion turns into MLX's, is let through.
    """
    declared = _declared(config, where, published=published)
    if declared is None:
        return QuantizationRules(None, {})
    where = f'{where}: "quantization"'
    settings = (*_FORMAT_KEYS, *_FLAG_KEYS)
    default = _format({key: declared[key] for key in settings if key in declared}, where)
    entries: dict[str, Format | None] = {}
    for path, entry in declared.items():
        if path in settings:
            continue
        if entry is True or entry is False:
            entries[path] = default if entry else None
        elif isinstance(entry, dict):
            entries[path] = _format(entry, f"{where}: {show(path)}")
        else:
            raise ConfigError(
                f"{where}: found {show(path)}: {show(entry)}, expected {', '.join(_FORMAT_KEYS)}, or a module's path "
                "with an object, true or false; remove it if it has no meaning",
                code="quantization_key",
            )
    return QuantizationRules(default, entries)


def is_in_blocks(declared: Any) -> bool:
    """Whether a "quantization_config" means experts in mxfp4 as gpt-oss was published."""
    return isinstance(declared, dict) and declared.get("quant_method") == "mxfp4"


def _declared(config: Mapping[str, Any], where: str, *, published: bool) -> dict[str, Any] | None:
    """The one object that declares the quantisation, wherever it stands; None if there is none."""
    if config.get("quantize_activations"):
        raise UnsupportedError(
            f"{where}: quantize_activations is set; Coterie computes with the activations as they are: "
            "use a checkpoint without it",
            code="quantize_activations",
        )
    nested = config.get("text_config")
    sources = [(config, ""), (nested, "text_config.")] if isinstance(nested, dict) else [(config, "")]
    found: dict[str, dict[str, Any]] = {}
    for section, prefix in sources:
        for key in ("quantization", "quantization_config"):
            value = section.get(key)
            if value is None:
                continue
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{where}: {prefix}{key} is {show(value)}, expected an object", code="quantization_type"
                )
            if not (published and is_in_blocks(value)):
                found[prefix + key] = value
    if not found:
        return None
    for key, value in found.items():
        if is_in_blocks(value):
            raise UnsupportedError(
                f"{where}: {key}: quant_method is mxfp4, the layout that gpt-oss was published in; `coterie convert` "
                "turns it into MLX's, which Coterie reads",
                code="quant_method",
            )
        if "quant_method" in value:
            _refuse_method(value["quant_method"], f"{where}: {key}")
    (first, declared), *others = found.items()
    for key, value in others:
        if value != declared:
            raise ConfigError(
                f"{where}: {first} and {key} say different things, expected the same; keep the one that is true",
                code="quantization_contradiction",
            )
    return declared


def _refuse_method(method: Any, where: str) -> None:
    raise UnsupportedError(
        f"{where}: quant_method is {show(method)}, a layout of another tool; Coterie reads MLX's formats (affine, "
        "mxfp4, mxfp8, nvfp4): take a checkpoint in MLX's format, or convert the unquantised original with "
        "`coterie convert`",
        code="quant_method",
    )


def _format(entry: Mapping[str, Any], where: str) -> Format:
    """A complete format from one object; what is missing or null is the mode's default."""
    for key, value in entry.items():
        if key in _FLAG_KEYS:
            if value not in (False, None):
                raise UnsupportedError(
                    f"{where}: {key} is {show(value)}; Coterie has no kernel for it yet: use a checkpoint without it",
                    code=key,
                )
        elif key not in _FORMAT_KEYS:
            raise ConfigError(
                f"{where}: found the key {show(key)}, expected {', '.join(_FORMAT_KEYS)}", code="quantization_key"
            )
    mode = entry.get("mode", "affine")
    if not isinstance(mode, str):
        raise ConfigError(f"{where}: mode is {show(mode)}, expected a string", code="quantization_format")
    try:
        return Format.resolve(mode, entry.get("bits"), entry.get("group_size"))
    except ArgumentError as error:
        raise ConfigError(f"{where}: {error}", code="quantization_format") from error


def _inferred(path: str, words: int, n_groups: int, scale_dtype: str, in_dims: int) -> Format:
    """The one format whose widths these can be; `_check_fit` then sees whether they are exactly that."""
    bits = words * 32 // in_dims if in_dims > 0 else 0
    group_size = in_dims // n_groups if n_groups > 0 else 0
    found = f"{words} words and {n_groups} {scale_dtype} scales a row for {in_dims} inputs"
    mode = "affine" if scale_dtype != "uint8" else _BYTE_SCALE_MODES.get((bits, group_size))
    if mode is None:
        raise _mismatch(path, "packed_width", found, "the widths of one of MLX's formats")
    try:
        return Format.resolve(mode, bits, group_size)
    except ArgumentError as error:
        raise _mismatch(path, "packed_width", f"{found} ({error})", "the widths of one of MLX's formats") from error


def _check_fit(path: str, fmt: Format, words: int, n_groups: int, scale_dtype: str, in_dims: int) -> None:
    if in_dims % fmt.group_size:
        found = f"{in_dims} inputs, which {fmt} does not divide"
        raise _mismatch(path, "group_size", found, f"a multiple of {fmt.group_size}")
    expected = (fmt.words(in_dims), fmt.n_groups(in_dims))
    if (words, n_groups) != expected:
        found = f"{words} words and {n_groups} scales a row"
        wanted = f"{expected[0]} and {expected[1]} for {fmt} and {in_dims} inputs"
        raise _mismatch(path, "packed_width", found, wanted)
    if scale_dtype not in fmt.scale_dtypes:
        raise _mismatch(path, "scale_dtype", f"{scale_dtype} scales", f"{' or '.join(fmt.scale_dtypes)} for {fmt}")


def _mismatch(path: str, code: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: found {found}, expected {expected}; the weights and config.json do not belong together: "
        "fetch both again",
        code=code,
    )
