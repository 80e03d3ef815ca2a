"""The way to the Hub: one commit of given files to a repository that is made, or was ours before.

Tried again where the Hub or the network falters; ended all the same, the same call goes on: what was uploaded is known
to the Hub by its hash and is not sent a second time. The token is read by huggingface_hub and appears in no message.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from align.errors import UserError
from align.share.card import TAG
from align.share.publish import IMAGES, File

WAITS = (2, 8, 30)  # seconds before each further attempt
PASSING = (408, 429, 500, 502, 503, 504)
EMPTY = {".gitattributes"}  # what a repository that was just made holds

T = TypeVar("T")


def push(
    repo: str,
    files: Sequence[File],
    *,
    private: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> str:
    """Makes `repo` (owner/name) hold `files`, and returns its address.

    A repository that is there already must hold an adapter published from here, or `overwrite` be given; with
    `private` it must be private.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    token = get_token()
    if token is None:
        raise UserError("there is no token for the Hub. Log in with `hf auth login`, or set HF_TOKEN.")
    if leaking := [file.name for file in files if token.encode() in file.content]:
        raise UserError(f"{leaking[0]}: holds your token for the Hub. Take it out; nothing was published.")
    api = HfApi(token=token, library_name="diffalign")
    with _in_a_line(repo):
        there = _retrying(lambda: _open(api, repo, private, overwrite), say)
        names = {file.name for file in files}
        stale = [name for name in there - names if re.fullmatch(IMAGES + r"/\d{4}-(before|after)\.png", name)]
        operations: list[Any] = [CommitOperationAdd(file.name, file.content) for file in files]
        operations += [CommitOperationDelete(name) for name in sorted(stale)]
        message = "Update the adapter" if there - EMPTY else "Publish the adapter"
        _retrying(lambda: api.create_commit(repo, operations, commit_message=message), say)
        return f"{api.endpoint}/{repo}"


def _open(api: Any, repo: str, private: bool, overwrite: bool) -> set[str]:
    """The names of the files in the repository, which is made if it is not there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo)
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:  # without a valid token the Hub does not say whether it is there
            raise
        api.create_repo(repo, private=private or None)
        return set()
    names = {file.rfilename for file in info.siblings}
    if private and not info.private:
        raise UserError(
            f"--private: {repo} is there already and is public. Make it private on the Hub, or choose another name."
        )
    if names - EMPTY and TAG not in (info.tags or ()) and not overwrite:
        raise UserError(
            f"{repo}: the name is taken by something that was not published from here. Choose another --repo, or give "
            "--overwrite if its card and adapter may be replaced."
        )
    return names


def _retrying(call: Callable[[], T], say: Callable[[str], None]) -> T:
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not _passing(error):
                raise
            say(f"the Hub falters ({_status(error) or type(_root(error)).__name__}); trying again in {wait} s")
            time.sleep(wait)
    return call()


@contextmanager
def _in_a_line(repo: str) -> Iterator[None]:
    """Whatever the client raises becomes one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(repo, error)) from None


def explain(repo: str, error: Exception) -> str:
    """What a failure of huggingface_hub means for the user, and what to do; no token, if a server repeats it."""
    from huggingface_hub import get_token

    status, token = _status(error), get_token()
    known = {
        401: f"{repo}: the Hub does not accept the token (401): it has expired, was revoked or is mistyped. Log in "
        "again with `hf auth login`, or set HF_TOKEN to one that may write."
        if token
        else f"{repo}: there is no such repository, or it is not public. Check the name, or log in: `hf auth login`.",
        403: f"{repo}: the token may not do this (403). Use one that may write to {repo.partition('/')[0]}'s "
        "repositories.",
        404: f"{repo}: there is no such repository or revision, or the token may not see it (404). Check the name.",
        409: f"{repo}: the name is taken, by a repository that you may not see (409). Choose another --repo.",
    }
    if status in known:
        return known[status]
    root = _root(error)
    if type(root).__name__ == "OfflineModeIsEnabled":
        return f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it."
    said = (str(root).strip() or type(root).__name__).splitlines()[0]
    said = said.replace(token, "***") if token else said
    if _passing(error):
        return f"{repo}: the Hub cannot be reached ({said}). The same command goes on where this one ended."
    return f"{repo}: the Hub refused: {said}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _root(error: Exception) -> BaseException:
    """The client's own error, of which huggingface_hub may have made another."""
    return next((e for e in _chain(error) if hasattr(e, "response")), error)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error stands for."""
    responses = (getattr(e, "response", None) for e in _chain(error))
    return next((response.status_code for response in responses if response is not None), None)


def _passing(error: Exception) -> bool:
    """Whether another attempt may succeed: a server's error, or none was reached."""
    if (status := _status(error)) is not None:
        return status in PASSING
    return any(type(e).__module__.startswith("httpx") or isinstance(e, TimeoutError) for e in _chain(error))
