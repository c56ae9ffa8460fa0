"""Published checkpoints from the Hugging Face hub: only the needed files, resumable, kept in the hub's own cache.

The cache is the one of `huggingface_hub` (``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are read by
it), so that what other programs have downloaded is used, and the other way round. The weights are fetched here, because
`huggingface_hub` throws a partly downloaded file away when its process ends.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import (
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # documented there

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm.state import SUFFIXES, file_sha256

log = logging.getLogger(__name__)

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILE = "sentencepiece.bpe.model"
_OPTIONAL_FILES = ("config.json", "added_tokens.json")
_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,63})(?:@([\w./-]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_id(spec: str) -> tuple[str, str | None] | None:
    """``OWNER/NAME[@REVISION]`` -> (id, revision); None for what looks like a path."""
    found = _ID.fullmatch(spec)
    if found is None or found[1].endswith(SUFFIXES):
        return None
    return found[1], found[2]


def download(
    repo_id: str, revision: str | None = None, *, cache_dir: Path | None = None, endpoint: str | None = None
) -> Path:
    """The folder in the cache with weights, tokenizer and, where there is one, config of ``repo_id``.

    Where the hub cannot be asked or refuses, a complete copy in the cache is used. Raises `WeightsError`.
    ``cache_dir``, ``endpoint``: in place of `huggingface_hub`'s own.
    """
    hub = _Hub(repo_id, revision or "main", Path(cache_dir or constants.HF_HUB_CACHE), endpoint)
    try:
        return hub.fetch()
    except HFValidationError as error:
        raise WeightsError(f"{repo_id!r} is no Hugging Face id, and there is no such path: {error}") from error
    except (httpx2.HTTPError, EntryNotFoundError, OSError) as error:
        reason = _reason(error)
        kept = hub.cached()
        if kept is None:
            raise WeightsError(
                f"{repo_id} ({hub.revision}): {reason}; it is not in the cache {hub.cache_dir} either. Expected "
                f"there: {' or '.join(WEIGHTS_FILES)}, and {TOKENIZER_FILE}. {_advice(error)}"
            ) from error
        log.warning("%s (%s): %s; the copy in the cache is used", repo_id, hub.revision, reason)
        return kept


@dataclass(frozen=True, slots=True)
class _Hub:
    """One repository at one revision."""

    repo_id: str
    revision: str
    cache_dir: Path
    endpoint: str | None

    def fetch(self) -> Path:
        """Download what is missing. The tokenizer comes last: it moves the cache's pointer to the new commit."""
        tokenizer = self._metadata(TOKENIZER_FILE, self.revision)
        commit = tokenizer.commit_hash or self.revision
        weights = self._fetch_weights(commit)
        for name in _OPTIONAL_FILES:
            try:
                self._small(name, commit)
            except RemoteEntryNotFoundError:
                log.debug("%s has no %s", self.repo_id, name)
        if self._small(TOKENIZER_FILE, self.revision).parent != weights.parent:
            raise OSError("the repository changed while it was downloaded: start again")
        return weights.parent

    def cached(self) -> Path | None:
        """The folder, if weights and tokenizer of the revision are in the cache."""
        found = {name: self._cached(name) for name in (*WEIGHTS_FILES, TOKENIZER_FILE)}
        weights = next((found[name] for name in WEIGHTS_FILES if found[name] is not None), None)
        return None if weights is None or found[TOKENIZER_FILE] is None else weights.parent

    def _fetch_weights(self, commit: str) -> Path:
        """The pointer file of the first of `WEIGHTS_FILES` that the repository has."""
        for name in WEIGHTS_FILES:
            try:
                metadata = self._metadata(name, commit)
            except RemoteEntryNotFoundError:
                continue
            if metadata.etag is not None:
                self._fetch_blob(name, commit, metadata.etag, metadata.size)
            return self._small(name, commit)
        raise WeightsError(f"{self.repo_id} ({self.revision}) has no {' or '.join(WEIGHTS_FILES)}: is it a VLSM?")

    def _fetch_blob(self, name: str, commit: str, etag: str, size: int | None) -> None:
        """Put a file's content where the cache expects it; what a broken download left is added to."""
        storage = self.cache_dir / repo_folder_name(repo_id=self.repo_id, repo_type="model")
        blob, lock = storage / "blobs" / etag, self.cache_dir / ".locks" / storage.name / f"{etag}.rsvp.lock"
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                return
            partial = blob.with_name(f"{etag}.rsvp-partial")
            with partial.open("ab") as stream:
                if size is not None and stream.tell() > size:
                    stream.truncate(0)
                    stream.seek(0)
                if stream.tell():
                    log.info("%s: going on after %d of %s bytes", name, stream.tell(), size)
                url = hf_hub_url(self.repo_id, name, revision=commit, endpoint=self.endpoint)
                http_get(
                    url,
                    stream,
                    resume_size=stream.tell(),
                    headers=build_hf_headers(),
                    expected_size=size,
                    displayed_filename=name,
                )
            _check_content(partial, etag)
            partial.replace(blob)

    def _metadata(self, name: str, revision: str) -> HfFileMetadata:
        url = hf_hub_url(self.repo_id, name, revision=revision, endpoint=self.endpoint)
        return get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=self.endpoint)

    def _small(self, name: str, revision: str) -> Path:
        """Download a file by `huggingface_hub` itself, which makes its pointer; a blob that is there is only linked."""
        return Path(
            hf_hub_download(self.repo_id, name, revision=revision, cache_dir=self.cache_dir, endpoint=self.endpoint)
        )

    def _cached(self, name: str) -> Path | None:
        found = try_to_load_from_cache(self.repo_id, name, self.cache_dir, self.revision)
        return Path(found) if isinstance(found, str) else None


def _check_content(file: Path, etag: str) -> None:
    """Large files' etags are their sha256."""
    if _SHA256.fullmatch(etag) and (seen := file_sha256(file)) != etag:
        file.unlink()
        raise WeightsError(
            f"the download is damaged: its sha256 is {seen}, the hub says {etag}. It was thrown away; start again"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "the hub gives it only to users who have accepted its terms"
    if isinstance(error, RevisionNotFoundError):
        return "the hub has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such public repository"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"the repository lacks {TOKENIZER_FILE}: it is no VLSM"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}"
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    return f"the download failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'})"


def _advice(error: Exception) -> str:
    folder = "set RSVP_VLSM to a folder with these files"
    if isinstance(error, GatedRepoError):
        return f"Accept the terms on its page and set HF_TOKEN, or {folder}."
    unknown = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | RemoteEntryNotFoundError)
    if unknown or (isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)):
        return f"Check the id (there is no such path here either), set HF_TOKEN if it is private, or {folder}."
    if constants.is_offline_mode():
        return f"Unset HF_HUB_OFFLINE once to download it, or {folder}."
    return f"Start again to go on where it stopped, set HF_ENDPOINT to a mirror, or {folder}."
