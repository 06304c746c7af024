"""The Hugging Face Hub: which repository, what went wrong in plain words, and publishing a folder in one commit."""
import contextlib
import json
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from .errors import InputError
from .version import __version__

__all__ = ['HUB_ORG', 'WEIGHTS_NAME', 'PushedFile', 'compare_with_repo', 'default_repo', 'hub_errors', 'push_files',
           'read_saved_config']

# the organisation whose repositories hold the weights of the default tags; a mirror names its own
HUB_ORG = os.environ.get('TIMM_FAN_HUB_ORG', 'timm-fan')
WEIGHTS_NAME = 'model.safetensors'


def default_repo(variant: str, tag: Optional[str]) -> str:
    """Repository of a model's weights, e.g. `timm-fan/fan_resnet101.coco2014`."""
    return f'{HUB_ORG}/{variant}.{tag}' if tag else f'{HUB_ORG}/{variant}'


def _in_plain_words(error: BaseException) -> str:
    response = getattr(error, 'response', None)
    status = getattr(response, 'status_code', None)
    if isinstance(error, OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set. Unset it to reach the Hub.'
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, HfHubHTTPError):  # it did answer
            return _in_plain_words(error.__cause__)
        if constants.HF_HUB_OFFLINE:
            return 'it is not in the cache, and HF_HUB_OFFLINE is set.'
        return f'it is not in the cache, and the Hub cannot be reached ({error.__cause__ or "no answer"}).'
    if isinstance(error, GatedRepoError):
        return 'its owner asks for consent: accept the conditions on its page and log in (hf auth login, or HF_TOKEN).'
    if isinstance(error, RevisionNotFoundError):
        return 'it has no such revision. Name a branch, a tag or a commit of it.'
    if isinstance(error, EntryNotFoundError):
        return f'it lacks a file that is needed ({str(error).strip().splitlines()[-1]}).'
    if isinstance(error, RepositoryNotFoundError):
        return 'no such repository, or a private one that your token does not open (hf auth login, or HF_TOKEN).'
    if status == 401:
        known = 'does not know your token. Log in again' if get_token() else 'does not know you. Log in'
        return f'the Hub {known} (hf auth login), or set HF_TOKEN.'
    if status == 403:
        return 'your token may not do this. Use one with write access to it (hf auth login, or HF_TOKEN).'
    if status == 409:
        return 'someone else changed it at the same time. Try again.'
    if isinstance(error, HFValidationError):
        return f'{error}'
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """What the Hub's client raises within becomes an InputError: `what`, a colon, and the cause with its remedy."""
    try:
        yield
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(f'{what}: {_in_plain_words(error)}') from error
    except Exception as error:
        # the client lets its HTTP library's failures through: requests' are OSErrors, httpx' are not
        if type(error).__module__.split('.')[0] in ('httpx', 'httpx2', 'httpcore', 'httpcore2'):
            raise InputError(f'{what}: the Hub cannot be reached ({type(error).__name__}: {error}).') from error
        raise


def read_saved_config(
        pretrained_cfg: Dict[str, Any],
        cache_dir: Optional[Union[str, Path]] = None,
) -> Dict[str, Any]:
    """The config.json that a model was loaded with, whole: timm keeps a part of it only.

    Args:
        pretrained_cfg: Of the model. Its source is a folder or a repository, else the result is empty.
        cache_dir: Where the Hub's client keeps files.

    Raises:
        InputError: It cannot be read.
    """
    source = pretrained_cfg.get('source')
    if source == 'local-dir':
        file = Path(pretrained_cfg['file']) / 'config.json'
    elif source == 'hf-hub':
        repo, _, revision = pretrained_cfg['hf_hub_id'].partition('@')
        with hub_errors(f'hf-hub:{pretrained_cfg["hf_hub_id"]}'):
            file = Path(hf_hub_download(repo, 'config.json', revision=revision or None, cache_dir=cache_dir))
    else:
        return {}
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{file} cannot be read: {error}') from error


class PushedFile(NamedTuple):
    """A file of a publication, compared with what the repository holds.

    Attributes:
        name: Path in the repository.
        size: Bytes, 0 for a removed one.
        state: 'new', 'changed', 'same' or 'removed'.
    """
    name: str
    size: int
    state: str


def compare_with_repo(
        files: Dict[str, Union[Path, bytes]],
        repo: str,
        revision: Optional[str] = None,
        folders: Sequence[str] = (),
        token: Optional[str] = None,
) -> List[PushedFile]:
    """What pushing `files` would change.

    Args:
        files: Path in the repository -> local file or content.
        repo: `owner/name`; one that does not exist holds nothing.
        revision: Branch; one that does not exist holds what `main` does.
        folders: Of the repository, in which what is not in `files` is to be removed.
        token: Of the Hub, by default the one that is logged in.

    Raises:
        InputError: The repository cannot be read.
    """
    api = HfApi(token=token, library_name='timm_fan', library_version=__version__)
    there: Dict[str, Any] = {}
    with hub_errors(repo):
        for name in dict.fromkeys((revision, None)):
            try:
                there = {f.path: f for f in api.list_repo_tree(repo, recursive=True, revision=name)
                         if isinstance(f, RepoFile)}
                break
            except RevisionNotFoundError:
                continue
            except RepositoryNotFoundError:
                break
    found = []
    for name, content in files.items():
        addition = CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        old = there.get(name)
        if old is None:
            state = 'new'
        elif old.lfs is not None:
            state = 'same' if old.lfs.sha256 == addition.upload_info.sha256.hex() else 'changed'
        else:
            with addition.as_file() as file:
                state = 'same' if old.blob_id == git_hash(file.read()) else 'changed'
        found.append(PushedFile(name, addition.upload_info.size, state))
    gone = sorted(name for name in there if name not in files and name.split('/')[0] in folders)
    return found + [PushedFile(name, 0, 'removed') for name in gone]


def push_files(
        files: Dict[str, Union[Path, bytes]],
        repo: str,
        message: str,
        private: bool = False,
        revision: Optional[str] = None,
        create_pr: bool = False,
        folders: Sequence[str] = (),
        token: Optional[str] = None,
) -> Tuple[Optional[CommitInfo], List[PushedFile]]:
    """Publish files in one commit: readers see the old repository or the whole new one.

    Weights are uploaded before the commit that refers to them; a push that was interrupted is simply repeated.

    Args:
        files: Path in the repository -> local file or content. What is there already is not sent again.
        repo: `owner/name`, created if it does not exist.
        message: Of the commit.
        private: A new repository is private; an existing one stays what it is.
        revision: Branch, created if it does not exist.
        create_pr: Propose the commit as a pull request on the branch.
        folders: Of the repository, in which what is not in `files` is removed.
        token: Of the Hub, by default the one that is logged in.

    Returns:
        The commit, None where the repository holds all of it already; and what it changed.

    Raises:
        InputError: The token, the name or the network; says what to do.
    """
    api = HfApi(token=token, library_name='timm_fan', library_version=__version__)
    with hub_errors(repo):
        # a pull request goes to a repository that is there, often another one's
        if not (create_pr and api.repo_exists(repo)):
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if revision:
                api.create_branch(repo, branch=revision, exist_ok=True)
        changes = compare_with_repo(files, repo, revision, folders, token)
        if all(f.state == 'same' for f in changes):
            return None, changes
        operations: List[Any] = [CommitOperationDelete(f.name) for f in changes if f.state == 'removed']
        for name, content in files.items():
            operations.append(CommitOperationAdd(name, content if isinstance(content, bytes) else str(content)))
        try:
            return api.create_commit(
                repo, operations, commit_message=message, revision=revision, create_pr=create_pr), changes
        except (RuntimeError, ValueError) as error:
            raise InputError(f'{repo}: the upload failed, nothing of it is visible: {error}. Try again.') from error
