"""The quantizer that transformers asks how to load a checkpoint in MLX's format, and how it is found.

MLX's config.json has no `quant_method`, by which transformers finds quantizers, so `get_hf_quantizer` is wrapped: a
config that declares a quantisation as MLX does is given one.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import modeling_utils
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers.auto import register_quantization_config
from transformers.quantizers.auto import register_quantizer as register
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from coterie.checkpoint import open_checkpoint
from coterie.errors import UnsupportedError
from coterie.integrations.transformers import swap
from coterie.integrations.transformers.names import Rename, renames_of
from coterie.ops import dispatch

METHOD = "mlx"
"""The `quant_method` under which transformers knows MLX's formats."""


class MlxConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """A quantisation as MLX's config.json declares it: group_size, bits, mode, and an entry for each odd module."""

    def __init__(self, **declared: Any) -> None:
        declared.pop("quant_method", None)
        self.quant_method = METHOD
        self.declared = declared

    def to_dict(self) -> dict[str, Any]:
        """As it was declared; a saved config.json is MLX's again."""
        return dict(self.declared)

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: there are no defaults to leave out."""
        return self.to_dict()


class MlxQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads packed weights into modules that run on Coterie's kernels; saves them as they were."""

    requires_calibration = False
    quantization_config: MlxConfig

    def validate_environment(self, device_map: Any = None, **_: Any) -> None:
        """Refuse devices that Coterie has no kernels for: an `UnsupportedError`, or a `BackendUnavailableError` that
        says what a GPU lacks here.
        """
        if not self.pre_quantized:
            raise UnsupportedError(
                "quantising while loading was asked for; convert first: `coterie convert` writes MLX's format",
                code="quantize_on_load",
            )
        for device in sorted(_devices(device_map)):
            if device not in ("cpu", "cuda"):
                raise UnsupportedError(
                    f'device_map names {device!r}; packed weights run on "cpu" and "cuda", GPUs of NVIDIA\'s',
                    code="device",
                )
            dispatch.get(device)

    def update_device_map(self, device_map: Any) -> Any:
        """ "auto" is the CPU."""
        return None if device_map in ("auto", "balanced", "balanced_low_0", "sequential") else device_map

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Any = None, dtype: Any = None, **_: Any
    ) -> Any:
        if not checkpoint_files:
            raise UnsupportedError(
                "no folder was given to load from; packed weights come from files: pass the checkpoint's folder",
                code="state_dict",
            )
        self.renames = renames_of(model.config.model_type)
        with open_checkpoint(Path(checkpoint_files[0]).parent) as checkpoint:
            swap.drop_absent_towers(model, checkpoint)
            swap.Swap(model, checkpoint, self.renames, dtype or torch.get_default_dtype()).run()
        return model

    def update_weight_conversions(self, *_: Any) -> Any:
        """MLX's names to those of the swapped modules; the model's own conversions are for other layouts."""
        return [_renaming(rename) for rename in self.renames]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        swap.freeze(model)
        return model

    def is_serializable(self) -> bool:
        """`save_pretrained` writes the packed weights, under MLX's names."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Coterie's operations have no gradient."""
        return False


def _renaming(rename: Rename) -> Any:
    return WeightRenaming(rename.mlx, rename.transformers)


def _devices(device_map: Any) -> set[str]:
    """The kinds of device that a device_map names; none for what lets the quantizer choose."""
    if device_map is None or (isinstance(device_map, str) and device_map in ("auto", "balanced", "sequential")):
        return set()
    named = device_map.values() if isinstance(device_map, dict) else [device_map]
    return {"cuda" if isinstance(device, int) else str(device).partition(":")[0] for device in named}


def _declared(config: Any) -> dict[str, Any] | None:
    """What a config says about a quantisation in MLX's words, or None."""
    for section in (config, config.get_text_config(decoder=True)):
        for key in ("quantization", "quantization_config"):
            value = getattr(section, key, None)
            if isinstance(value, dict) and "quant_method" not in value and {"group_size", "bits"} <= value.keys():
                return value
    return None


def register_quantizer() -> None:
    """Make MLX's formats known to transformers; a second call changes nothing."""
    original = modeling_utils.get_hf_quantizer
    if hasattr(original, "knows_mlx"):
        return
    register_quantization_config(METHOD)(MlxConfig)
    register(METHOD)(MlxQuantizer)

    def get_hf_quantizer(config: Any, *args: Any, **kwargs: Any) -> Any:
        declared = _declared(config)
        if declared is not None:
            config.quantization_config = {**declared, "quant_method": METHOD}
        return original(config, *args, **kwargs)

    get_hf_quantizer.knows_mlx = True  # type: ignore[attr-defined]
    modeling_utils.get_hf_quantizer = get_hf_quantizer
