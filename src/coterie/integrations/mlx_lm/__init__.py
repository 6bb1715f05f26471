"""mlx-lm with this library's kernels: the expert layers of a loaded model, and on the CPU its quantised linear layers.

model, tokenizer = mlx_lm.load(...)
coterie.integrations.mlx_lm.patch(model)
"""

from coterie.integrations.mlx_lm.loading import patched_loading
from coterie.integrations.mlx_lm.patching import Patch, patch, unpatch

__all__ = ["Patch", "patch", "patched_loading", "unpatch"]
