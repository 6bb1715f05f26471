"""From "a folder or an id of the hub" to a folder. The network is touched only for an id, and never when offline.

huggingface_hub does the work: it caches, resumes, verifies, honours HF_HUB_OFFLINE, HF_HOME and tokens, and draws its
progress on stderr. Only the files that Coterie reads are fetched; code is not among them.
"""

import os
import re
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import show
from coterie.errors import ArgumentError, CheckpointError

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPO = re.compile(rf"{_PART}/{_PART}")


def local_folder(path_or_repo: str | Path) -> Path:
    """The folder itself if there is one; else the hub's snapshot of the id, fetched if need be.

    `ArgumentError` for what is neither a folder nor a well-formed id; `CheckpointError` if the hub does not have it, is
    out of reach, or may not be asked.
    """
    path = Path(path_or_repo)
    # os.path answers False where pathlib raises (names that are too long) or means another ("" is not here).
    if os.path.isdir(path_or_repo):
        return path
    if os.path.exists(path_or_repo):
        raise ArgumentError(
            f"{path}: found a file, expected the folder that holds config.json and the weights", code="not_a_folder"
        )
    repo = str(path_or_repo)
    if isinstance(path_or_repo, Path) or not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ArgumentError(
            f"found {show(repo)}, expected an existing folder or an id of the hub like owner/name "
            "(letters, digits, and . _ - inside)",
            code="repo_id",
        )
    return _snapshot(repo)


def _snapshot(repo: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(PATTERNS), ignore_patterns="*/*"))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _failed(
            repo,
            "hub_offline",
            "it is not in the local cache and the hub cannot be asked (offline, or no connection)",
            "connect, unset HF_HUB_OFFLINE, or give a folder",
            error,
        ) from error
    except errors.GatedRepoError as error:
        raise _failed(
            repo, "hub_gated", "access is restricted", "accept its terms and log in with `hf auth login`", error
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise _failed(
            repo, "hub_not_found", "the hub does not have it", "check the spelling, or log in if it is private", error
        ) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise _failed(
            repo, "hub_failed", "fetching failed", "try again: what has arrived is kept and will be resumed", error
        ) from error


def _failed(repo: str, code: str, reason: str, advice: str, error: Any) -> CheckpointError:
    detail = show(str(error).partition("\n")[0], 200)
    return CheckpointError(f"{repo}: {reason} ({detail}); {advice}", code=code)
