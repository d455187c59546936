"""One repository on the Hugging Face Hub: created, filled in whole commits, tagged.

Lost connections and a busy Hub are tried again; whatever else goes wrong is one line that says how
to push again.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TypeVar

from httpx2 import HTTPError, TransportError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from agr_trl.errors import UserError
from agr_trl.model_cards import CURVES_FILE

logger = logging.getLogger(__name__)

Files = dict[str, Path | bytes]  # path in the repository -> local file or content
Result = TypeVar("Result")

MODEL_FILES = ("*.json", "*.safetensors", "*.parquet", CURVES_FILE)  # replaced by each upload
TEXT_FILES = (".json", ".md", ".txt", ".yaml", ".jinja", ".svg")
ATTEMPTS = 4
PASSING_STATUS = (408, 429, 500, 502, 503, 504)


@dataclass
class Repository:
    """A repository on the Hub; `source` and `token` are what no uploaded text may name."""

    api: HfApi
    repo_id: str
    kind: str
    source: Path
    token: str | None

    @property
    def url(self) -> str:
        """Return the page of the repository."""
        begin = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.kind]
        return f"{self.api.endpoint}/{begin}{self.repo_id}"

    def create(self, private: bool) -> None:
        """Create the repository where it is not there; refuse a public one for private work."""
        retried(
            lambda: self.api.create_repo(
                self.repo_id,
                repo_type=self.kind,
                private=private or None,
                exist_ok=True,
                space_sdk="gradio" if self.kind == "space" else None,
            )
        )
        if private:
            info = retried(lambda: self.api.repo_info(self.repo_id, repo_type=self.kind))
            if not info.private:
                raise UserError(f"`{self.repo_id}` is there and public; make it private first")

    def commit_round(self, files: Files, number: int, is_best: bool) -> str:
        """Commit a round's files, to `main` if it was exported, tag them, return the commit."""
        branch = "main" if is_best else f"rounds/{number}"
        if not is_best:
            retried(
                lambda: self.api.create_branch(
                    self.repo_id, branch=branch, repo_type=self.kind, exist_ok=True
                )
            )
        oid = self.commit(files, f"agr_trl: round {number}", branch)
        self._tag(f"round-{number}", oid)
        return oid

    def commit(self, files: Files, message: str, branch: str = "main") -> str:
        """Upload files as one commit, without model files that are no longer part of it.

        Only in the folders that it writes to: others hold what somebody else has added.
        """
        self._check(files)
        folders = {PurePosixPath(path).parent for path in files}

        def send() -> str:
            there = self.api.list_repo_files(self.repo_id, revision=branch, repo_type=self.kind)
            old = [
                CommitOperationDelete(path)
                for path in there
                if path not in files
                and PurePosixPath(path).parent in folders
                and any(fnmatch(path, pattern) for pattern in MODEL_FILES)
            ]
            new = [CommitOperationAdd(path, file) for path, file in files.items()]
            info = self.api.create_commit(
                self.repo_id,
                [*old, *new],
                commit_message=message,
                revision=branch,
                repo_type=self.kind,
            )
            return str(info.oid)

        return retried(send)

    def _tag(self, tag: str, oid: str) -> None:
        """Let a tag point to a commit, also where it pointed to another one."""

        def move() -> None:
            refs = self.api.list_repo_refs(self.repo_id, repo_type=self.kind)
            targets = {ref.name: ref.target_commit for ref in refs.tags}
            if targets.get(tag) == oid:
                return
            if tag in targets:
                self.api.delete_tag(self.repo_id, tag=tag, repo_type=self.kind)
            self.api.create_tag(
                self.repo_id, tag=tag, revision=oid, repo_type=self.kind, exist_ok=True
            )

        retried(move)

    def _check(self, files: Mapping[str, Path | bytes]) -> None:
        """Raise `UserError` where a text names the token or the run's place on this machine."""
        private = {"the Hub token": self.token, "this machine's path": str(self.source.resolve())}
        for path, file in files.items():
            if not path.endswith(TEXT_FILES):
                continue
            content = file.read_bytes() if isinstance(file, Path) else file
            for name, text in private.items():
                if text and text.encode() in content:
                    raise UserError(f"`{path}` of `{self.repo_id}` holds {name}; nothing was sent")


def check_name(repo_id: str) -> None:
    """Raise `UserError` for what the Hub does not take as the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"`{repo_id}` is no name for a repository: {error}") from None
    if "/" not in repo_id or repo_id.startswith("-"):
        raise UserError(f"`{repo_id}` is no name for a repository; give `user/name`")


def retried(action: Callable[[], Result]) -> Result:
    """Return an action's result; lost connections and a busy Hub are tried again, ever later."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except (HTTPError, RuntimeError) as error:
            if not _is_passing(error):
                raise
            logger.warning("%s; trying again", _reason(error, None))
            time.sleep(2**attempt)
    return action()


def _is_passing(error: BaseException) -> bool:
    root = _root(error)
    if isinstance(root, HfHubHTTPError):
        return root.response.status_code in PASSING_STATUS
    return isinstance(root, TransportError)


def _root(error: BaseException) -> BaseException:
    """Return what an upload's thread or the client met: the Hub's answer, or a lost connection."""
    for cause in _causes(error):
        if isinstance(cause, HTTPError):
            return cause
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextmanager
def one_line_errors(repo_id: str, token: str | None, again: str) -> Iterator[None]:
    """Turn what can go wrong on the way to the Hub into a `UserError` that says how to go on."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except UserError as error:
        raise UserError(f"cannot push to `{repo_id}`: {error}; {again}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = _reason(error, token)
        raise UserError(f"cannot push to `{repo_id}`: {reason}; {again}") from None


def _reason(error: BaseException, token: str | None) -> str:
    """Return in a few words why the Hub did not take an upload, without the token."""
    root = _root(error)
    if isinstance(root, LocalTokenNotFoundError):
        return "nobody is logged in; run `hf auth login`"
    if isinstance(root, HfHubHTTPError):
        status = root.response.status_code
        said = root.response.headers.get("X-Error-Message") or root.server_message or ""
        remedy = {401: "run `hf auth login` with a valid token", 403: "use a token that may write"}
        words = f"the Hub answered {status}" + (f" ({said})" if said else "")
        reason = f"{words}; {remedy[status]}" if status in remedy else words
    elif isinstance(root, TransportError):
        reason = f"the connection was lost ({type(root).__name__}: {root})"
    else:
        reason = str(root) or type(root).__name__
    reason = " ".join(reason.split())[:300]
    return reason.replace(token, "***") if token else reason
