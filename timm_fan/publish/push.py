"""Publishing a folder on the Hub in one commit."""
from fnmatch import fnmatch
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from timm_fan.errors import InputError
from timm_fan.hub import hub_errors
from timm_fan.provenance import file_sha256
from timm_fan.version import __version__


class PushedFile(NamedTuple):
    """A file of a publication: its path, its bytes, and 'new', 'changed', 'same' or 'removed'."""
    name: str
    size: int
    state: str


class PushOptions(NamedTuple):
    """How to publish.

    Attributes:
        message: Commit message.
        private: Whether a new repository is private. An existing one is not changed.
        revision: Branch, created if it does not exist.
        create_pr: Propose the commit as a pull request for the branch.
        delete_patterns: Files of the repository to remove if they are not in the folder, e.g. 'training/*'.
    """
    message: str = 'Upload model'
    private: bool = False
    revision: Optional[str] = None
    create_pr: bool = False
    delete_patterns: Sequence[str] = ()


def _api() -> HfApi:
    return HfApi(library_name='timm_fan', library_version=__version__)


def _files(folder: Path) -> Dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob('*')) if file.is_file()}


def compare_with_repo(folder: Path, repo: str, options: PushOptions) -> List[PushedFile]:
    """What `push_folder` would change.

    Args:
        folder: Files to publish.
        repo: `owner/name`. A repository that does not exist has no files.
        options: How to publish. A branch that does not exist has the files of `main`.

    Raises:
        InputError: The repository cannot be read.
    """
    there = {}
    with hub_errors(repo):
        for revision in dict.fromkeys((options.revision, None)):
            try:
                entries = _api().list_repo_tree(repo, recursive=True, revision=revision)
                there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
                break
            except RevisionNotFoundError:
                continue
            except RepositoryNotFoundError:
                break
    files = _files(folder)
    found = [PushedFile(name, file.stat().st_size, _state(file, there.get(name))) for name, file in files.items()]
    removed = sorted(
        name for name in there
        if name not in files and any(fnmatch(name, pattern) for pattern in options.delete_patterns))
    return found + [PushedFile(name, 0, 'removed') for name in removed]


def _state(file: Path, old: Optional[RepoFile]) -> str:
    if old is None:
        return 'new'
    same = old.lfs.sha256 == file_sha256(file) if old.lfs else old.blob_id == git_hash(file.read_bytes())
    return 'same' if same else 'changed'


def push_folder(folder: Path, repo: str, options: PushOptions) -> Tuple[List[PushedFile], Optional[CommitInfo]]:
    """Publish the files of a folder in one commit, so that readers see the old repository or the complete new one.

    Weights are uploaded before the commit that refers to them. Repeat a push that was interrupted.

    Args:
        folder: Files to publish. Those that have not changed are not uploaded again.
        repo: `owner/name`, created if it does not exist.
        options: How to publish.

    Returns:
        The files with their changes; and the commit, or None if nothing has changed.

    Raises:
        InputError: The Hub refuses the token, the name or the upload, or cannot be reached.
    """
    api = _api()
    with hub_errors(repo):
        # a pull request goes to an existing repository, often that of another owner
        if not (options.create_pr and api.repo_exists(repo)):
            repo = api.create_repo(repo, private=options.private, exist_ok=True).repo_id
            if options.revision:
                api.create_branch(repo, branch=options.revision, exist_ok=True)
        changes = compare_with_repo(folder, repo, options)
        if all(file.state == 'same' for file in changes):
            return changes, None
        try:
            return changes, api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=options.message, revision=options.revision,
                create_pr=options.create_pr, delete_patterns=list(options.delete_patterns) or None)
        except ValueError as error:
            raise InputError(f'{repo}: the Hub refuses the upload. {error}') from error
        except RuntimeError as error:
            raise InputError(f'{repo}: the upload failed, and no file has changed: {error} Try again.') from error
