"""Programs that load models with mlx-lm, with every model patched as it is loaded."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from coterie.errors import BackendUnavailableError
from coterie.integrations.mlx_lm.patching import Patch, patch


@contextmanager
def patched_loading(
    *, linears: bool = True, all_logits: bool = False, tell: Callable[[Patch], None] | None = None
) -> Iterator[None]:
    """While this is open, every model that `mlx_lm.load` and its like load is patched; `tell` is given what was done.

    Arguments and errors are those of `patch`. Models stay patched afterwards. Adapters are loaded on top.
    """
    try:
        from mlx_lm import utils
    except ImportError as cause:
        raise BackendUnavailableError(
            f"mlx-lm cannot be imported ({cause}); pip install 'mlx-lm>=0.32', on Linux with 'mlx[cpu]'", code="mlx_lm"
        ) from cause
    original = utils.load_model

    @functools.wraps(original)
    def load_model(*args: Any, **options: Any) -> Any:
        loaded = original(*args, **options)
        done = patch(loaded[0], linears=linears, all_logits=all_logits)
        if tell is not None:
            tell(done)
        return loaded

    utils.load_model = load_model
    try:
        yield
    finally:
        utils.load_model = original
