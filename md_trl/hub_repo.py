"""One repository on the Hub: its newest commit, and new commits on top of exactly that one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling

from .errors import InputError


class OutdatedError(InputError):
    """Somebody else has committed to the repository since its newest commit was read."""


@dataclass(frozen=True)
class Head:
    r"""
    The newest commit of a repository.

    Args:
        commit (`str`):
            Its id.
        files (`dict[str, RepoSibling]`):
            Its files by name.
        private (`bool`):
            Whether the repository is private.
    """

    commit: str
    files: dict[str, RepoSibling]
    private: bool


class HubRepo:
    r"""
    A repository to publish to, with the token of huggingface_hub's own login or `HF_TOKEN`.

    Args:
        id (`str`):
            Hub id, as in `md/mixed-thoughts`.
        kind (`str`):
            `"dataset"` or `"space"`.

    Raises:
        `InputError`: There is no token.
    """

    def __init__(self, id: str, kind: str):
        if get_token() is None:
            raise InputError("There is no Hub token. Log in with `hf auth login`, or set the variable `HF_TOKEN`.")
        self.id, self.kind = id, kind
        self._api = HfApi()

    @property
    def url(self) -> str:
        """Address of the repository."""
        return f"{self._api.endpoint}/{self.kind}s/{self.id}"

    def head(self) -> Head | None:
        """Return the newest commit. `None` if there is no such repository, or it is hidden from this token."""
        with self._errors():
            try:
                info = self._api.repo_info(self.id, repo_type=self.kind, files_metadata=True)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None
        return Head(info.sha, {file.rfilename: file for file in info.siblings}, bool(info.private))

    def create(self, private: bool = False, sdk: str | None = None) -> Head:
        """Create the repository, and return its first commit."""
        with self._errors():
            self._api.create_repo(self.id, repo_type=self.kind, private=private, space_sdk=sdk)
        head = self.head()
        if head is None:
            raise InputError(f"The Hub created {self.id} but does not show it. Try again in a moment.")
        return head

    def download(self, name: str, head: Head, folder: Path) -> Path:
        """Download one file of a commit into a folder, and return it."""
        with self._errors():
            return Path(
                self._api.hf_hub_download(
                    self.id, name, repo_type=self.kind, revision=head.commit, local_dir=folder / "downloads"
                )
            )

    def changes(self, files: Mapping[str, Path], head: Head) -> list[CommitOperationAdd]:
        """Return the files that a commit does not hold with the same content, by their names in the repository."""
        added = [CommitOperationAdd(name, str(file)) for name, file in sorted(files.items())]
        return [operation for operation in added if not _holds(head.files.get(operation.path_in_repo), operation)]

    def commit(
        self, changed: Collection[CommitOperationAdd], deleted: Collection[str], head: Head, message: str
    ) -> str:
        r"""
        Commit all changes at once, on top of a commit that must still be the newest.

        Args:
            changed (`Collection[CommitOperationAdd]`):
                New files, from [`HubRepo.changes`].
            deleted (`Collection[str]`):
                Names of files to delete.
            head ([`Head`]):
                The newest commit.
            message (`str`):
                Title of the commit.

        Returns:
            `str`: Id of the new commit.

        Raises:
            `OutdatedError`: It is not the newest any more.
            `InputError`: The Hub refuses the commit or cannot be reached. The repository is as it was.
        """
        operations = [*changed, *(CommitOperationDelete(name) for name in sorted(deleted))]
        with self._errors():
            return self._api.create_commit(
                self.id, operations, commit_message=message, repo_type=self.kind, parent_commit=head.commit
            ).oid

    def find_tag(self, tag: str) -> str | None:
        """Return the commit that a tag points to, `None` if there is no such tag."""
        with self._errors():
            refs = self._api.list_repo_refs(self.id, repo_type=self.kind)
        return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)

    def add_tag(self, tag: str, commit: str) -> None:
        """Tag a commit."""
        with self._errors():
            self._api.create_tag(self.id, tag=tag, revision=commit, repo_type=self.kind)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what huggingface_hub raises into errors that say what to do."""
        try:
            yield
        except HFValidationError as error:
            raise InputError(f"{self.id!r} is not the id of a repository: {error} Write it as `NAME/REPO`.") from error
        except HfHubHTTPError as error:
            raise self._explain(error) from error
        except OfflineModeIsEnabled as error:
            raise InputError("huggingface_hub is offline (`HF_HUB_OFFLINE=1`). Unset that to publish.") from error
        except HTTPError as error:
            raise InputError(self._unreachable(error)) from error
        except RuntimeError as error:  # of an upload, which has its own message
            if isinstance(error.__cause__, HfHubHTTPError):
                raise self._explain(error.__cause__) from error
            if isinstance(error.__cause__, HTTPError):
                raise InputError(self._unreachable(error.__cause__)) from error
            raise

    def _unreachable(self, error: HTTPError) -> str:
        return (
            f"Cannot reach the Hub at {self._api.endpoint} ({type(error).__name__}). Nothing was published: {self.id} "
            "is as it was. Run the same command again when the Hub is reachable."
        )

    def _explain(self, error: HfHubHTTPError) -> InputError:
        status = error.response.status_code
        said = error.server_message or error.response.headers.get("X-Error-Message") or "no reason given"
        if isinstance(error, GatedRepoError):
            return InputError(f"{self.id} is gated and your token has no access to it. Request it at {self.url}.")
        if status == 401:
            return InputError(
                f"The Hub does not accept your token ({said}). Log in again with `hf auth login`, or correct the "
                "variable `HF_TOKEN`."
            )
        if status == 403:
            return InputError(
                f"Your token may not write to {self.id} ({said}). Use a token with write access to "
                f"{self.id.partition('/')[0]}, or another `--repo`."
            )
        if isinstance(error, RepositoryNotFoundError) or status == 409:
            return InputError(
                f"{self.id} is a repository that your token cannot see ({said}). Use a token with access to it, or "
                "another `--repo`."
            )
        if status == 412:
            return OutdatedError(f"Somebody else is committing to {self.id} at this moment ({said}). Try again later.")
        return InputError(
            f"The Hub failed with status {status} ({said}). Nothing was published: {self.id} is as it was. Run the "
            "same command again."
        )


def _holds(file: RepoSibling | None, operation: CommitOperationAdd) -> bool:
    """Return whether a file of a repository has the content of a local one."""
    if file is None or file.size != operation.upload_info.size:
        return False
    if file.lfs is not None:
        return file.lfs.sha256 == operation.upload_info.sha256.hex()
    # Git names a file by this digest. Only large files are in LFS, so this one fits into memory.
    content = Path(operation.path_or_fileobj).read_bytes()
    return file.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
