"""From the paths in a source to the image files that they mean."""
import os
import re
import unicodedata
from itertools import islice
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set, Union
from urllib.parse import unquote

from PIL import Image

from timm_fan.files import printable


def _drop_folders(path: str, most: Optional[int] = None) -> Iterator[str]:
    """The path without its first folders, of which fewer and fewer are left, at most without `most`."""
    while '/' in path and (most is None or most > 0):
        path = path.partition('/')[2]
        most = None if most is None else most - 1
        yield path


def _is_foreign(path: str) -> bool:
    """Whether a path with `/` starts at a root, a drive or an address, or leaves the folder that it is relative to."""
    return bool(re.match(r'/|[A-Za-z]:|\w+://|(\./)*\.\./', path))


class ImageFinder:
    """Finds image files below a folder by their paths in a source.

    A path that does not exist is looked for with `/` for a backslash, in the other Unicode forms, without escapes of
    addresses, with the extension of an image that it lacks, without the prefix of an upload to Label Studio, and
    without its first folders: those of another machine in an absolute path, those that all relative paths begin with,
    and the name of the folder itself. An absolute path that exists is taken as it is. Relative paths do not leave the
    folder.

    Args:
        root: The folder.
        folder: Folder below `root` that paths are relative to, if it is not `root` itself.
        common: Number of folders that all relative paths begin with.
    """

    def __init__(self, root: Union[str, Path], folder: str = '', common: int = 0):
        self.root, self.folder, self.common = Path(root), folder, common
        self._listings: Dict[str, Set[str]] = {}
        self._stems: Dict[str, Dict[str, List[str]]] = {}

    def find(self, path: str) -> Optional[str]:
        """Normal path, relative to the root or absolute, of the file that `path` means, None if there is none."""
        if os.path.isabs(path):
            inside = os.path.relpath(path, self.root.absolute())
            if not inside.startswith('..') and self._exists(inside):
                return inside
            if os.path.isfile(path):
                return os.path.normpath(path)
        elif self._exists(self._below(path)):
            return os.path.normpath(self._below(path))
        found = next(filter(None, map(self._find_variant, self._variants(path))), None)
        return found and os.path.normpath(found)

    def similar(self, path: str) -> Optional[str]:
        """A file whose path only differs in case or in its extension from one that cannot be found."""
        path = self._below(path.replace('\\', '/'))
        if self.leaves_root(path):
            return None
        folder, _, name = path.rpartition('/')
        names = sorted(self._listing(folder))
        stem = os.path.splitext(name)[0]
        found = next((other for other in names if other.lower() == name.lower()), None) or next(
            (other for other in names if os.path.splitext(other)[0] in (name, stem)), None)
        return f'{folder}/{found}' if found and folder else found

    def _below(self, path: str) -> str:
        return f'{self.folder}/{path}' if self.folder and not os.path.isabs(path) else path

    def _variants(self, path: str) -> Iterator[str]:
        path = path.replace('\\', '/')
        repeated = path.partition('/')[0] == (self.root / self.folder).name
        most = None if _is_foreign(path) else max(self.common, int(repeated))
        forms = (path, unquote(path), *(unicodedata.normalize(form, path) for form in ('NFC', 'NFD')))
        for form in dict.fromkeys(forms):
            yield form
            yield from _drop_folders(form, most)
        name = unquote(path.rpartition('/')[2])
        upload = re.sub(r'^[0-9a-f]{8}-', '', name)
        if upload != name:
            yield upload

    def _find_variant(self, path: str) -> Optional[str]:
        if not path or os.path.isabs(path) or re.match(r'[A-Za-z]:', path):
            return None
        for candidate in dict.fromkeys([self._below(path), path]):
            if self.leaves_root(candidate):
                continue
            if self._exists(candidate):
                return candidate
            folder, _, name = candidate.rpartition('/')
            completed = self._with_stem(folder).get(name, ())
            if len(completed) == 1:
                return f'{folder}/{completed[0]}' if folder else completed[0]
        return None

    def leaves_root(self, path: str) -> bool:
        """Whether a relative path is outside of the root."""
        return '..' in path and os.path.normpath(path).startswith('..')

    def _exists(self, path: str) -> bool:
        if os.path.isabs(path) or self.leaves_root(path):
            return False
        # one listing per folder, because checking every file is slow on network drives
        folder, _, name = path.rpartition('/')
        return name in self._listing(folder)

    def _listing(self, folder: str) -> Set[str]:
        """Names of the files in a folder, without links to nothing."""
        if folder not in self._listings:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._listings[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):  # no such folder, or no name that a folder can have
                self._listings[folder] = set()
        return self._listings[folder]

    def _with_stem(self, folder: str) -> Dict[str, List[str]]:
        """Names of the images in a folder by their names without extension."""
        if folder not in self._stems:
            stems: Dict[str, List[str]] = {}
            extensions = Image.registered_extensions()
            for name in self._listing(folder):
                stem, extension = os.path.splitext(name)
                if extension.lower() in extensions:
                    stems.setdefault(stem, []).append(name)
            self._stems[folder] = stems
        return self._stems[folder]


def find_files(
        root: Union[str, Path], paths: Sequence[str], places: Sequence[str], problems: List[str], hints: List[str],
        folder: str = '') -> List[str]:
    """The files below `root` that the paths of a source mean, as `ImageFinder.find` with the same `folder`.

    Files that are missing, and files that are there twice, are added to `problems` with their places in the source, and
    likely causes to `hints`. The path of a missing file is returned as it is.
    """
    finder = ImageFinder(root, folder, _common_folders(paths))
    files, first_place, missing = [], {}, []
    for path, place in zip(paths, places):
        file = finder.find(path)
        if file is None:
            missing.append(path)
            problems.append(f"{place}: no image file '{printable(path)}'")
        elif file in first_place:
            problems.append(f"{place}: image '{printable(file)}' is already on {first_place[file]}")
        else:
            first_place[file] = place
        files.append(file or path)
    if missing:
        hints += _causes(finder, missing[0], len(missing) == len(paths))
    return files


def _common_folders(paths: Sequence[str]) -> int:
    """Number of folders that all relative paths begin with."""
    relative = [path for path in (path.replace('\\', '/') for path in paths) if not _is_foreign(path)]
    folders = [path.split('/')[:-1] for path in relative]
    return len(os.path.commonprefix(folders)) if folders else 0


def _causes(finder: ImageFinder, path: str, all_missing: bool) -> List[str]:
    """Why an image may be missing."""
    if re.match(r'https?://', path):
        return ['These are addresses on the web: download the images, and give their folder.']
    similar = finder.similar(path)
    if similar is not None:
        return [f"There is '{printable(similar)}', which differs in case or extension."]
    folder = finder.root / finder.folder
    if not folder.is_dir():
        return [f'There is no folder {folder}.']
    if finder.leaves_root(path):
        return ['Paths outside of the folder of the images are not followed: name a folder that contains them.']
    name = path.replace('\\', '/').rpartition('/')[2]
    found = next((f for f in islice(folder.rglob('*'), 100_000) if f.name == name and f.is_file()), None)
    if found is not None:
        return [f'There is {printable(found)}.']
    return [f'Paths are relative to {folder}.'] if all_missing else []
