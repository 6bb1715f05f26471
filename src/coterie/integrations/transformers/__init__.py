"""The bridge to transformers 5: importing this module registers it there, and nothing else happens.

* `AutoModelForCausalLM.from_pretrained(folder)` loads a quantised mixture-of-experts checkpoint in MLX's format, with
  its weights packed as they are stored; linear layers, embeddings and experts run on Coterie's CPU kernels.
* `experts_implementation="coterie"` runs the experts of an unquantised model on them.
"""

from coterie.errors import BackendUnavailableError

try:
    from transformers.core_model_loading import WeightConverter, WeightRenaming  # noqa: F401
    from transformers.integrations.moe import ExpertsInterface  # noqa: F401
except ImportError as cause:
    raise BackendUnavailableError(
        f"the bridge to transformers needs transformers 5.23 or newer and PyTorch ({cause}): "
        "pip install 'coterie[transformers]'"
    ) from cause

from coterie.integrations.transformers.experts import experts_forward, register_experts
from coterie.integrations.transformers.quantizer import MlxConfig, MlxQuantizer, register_quantizer

__all__ = ["MlxConfig", "MlxQuantizer", "experts_forward"]

register_experts()
register_quantizer()
