"""What is requested from a data source: `NAME[:WHERE][?OPTION=VALUE&...]` for a split."""
import inspect
import logging
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from timm_fan.errors import InputError

from .labels import clean_names, read_class_names
from .splits import Division

_logger = logging.getLogger(__name__)

# what the splits are called, if the address does not say it
SPLIT_NAMES = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation', 'dev')}


class Address(NamedTuple):
    """A data source as the user writes it.

    Attributes:
        data: The text.
        name: Name of the source.
        where: Its path or name.
        options: Those of the source.
        split_names: What the user calls the splits: 'train' or 'val' -> name.
        division: How one set of images is divided, None if the source has splits.
    """
    data: str
    name: str
    where: str
    options: Dict[str, str]
    split_names: Dict[str, str]
    division: Optional[Division]

    @classmethod
    def parse(cls, data: str, sources: Mapping[str, Callable]) -> 'Address':
        """Raises InputError for an unknown source or option."""
        address, _, query = data.partition('?')
        name, _, where = address.partition(':')
        if name not in sources:
            raise InputError(f"`data={data}` is not one of {', '.join(sources)}.")
        bound = {'request', *getattr(sources[name], 'keywords', ())}
        known = [p for p in inspect.signature(sources[name]).parameters if p not in bound]
        options, split_names, divisions = {}, {}, []
        pairs = [pair for pair in query.split('&') if pair]
        for pair in pairs:
            key, sep, value = pair.partition('=')
            # 0 and 1 are names of splits if both are named
            named = value in ('0', '1') and any(other.startswith('train=') for other in pairs)
            division = None if named else Division.parse(key, value)
            if division:
                divisions.append(division)
            elif sep and key in SPLIT_NAMES:
                split_names[key] = value
            elif sep and key in known:
                options[key] = value
            else:
                raise InputError(
                    f"`data={data}`: '{pair}' is not an option of {name}, which has:"
                    f" {', '.join([*known, 'val=SHARE', 'fold=K/N', 'train=NAME', 'val=NAME'])}.")
        if len(divisions) > 1:
            raise InputError(f'`data={data}` divides the images twice.')
        return cls(data, name, where, options, split_names, divisions[0] if divisions else None)


class Request(NamedTuple):
    """One split that is requested from a source.

    Attributes:
        data_dir: Folder of the data set.
        where: Path or name in the address.
        split: 'train' or 'val'.
        class_names: Those of a model or of the training split.
        split_names: What the user calls the splits.
        whole: The source gives all images that it has for training, to be divided.
    """
    data_dir: Path
    where: str
    split: str
    class_names: Optional[Sequence[str]] = None
    split_names: Mapping[str, str] = {}
    whole: bool = False

    def other(self) -> 'Request':
        """The request for the other split."""
        return self._replace(split='val' if self.split == 'train' else 'train')

    def names(self, classes: Optional[str]) -> Optional[Sequence[str]]:
        """The class names of the request, otherwise those that `classes` lists, or in the file that it names."""
        if self.class_names or not classes:
            return self.class_names
        if not (self.data_dir / classes).is_file() and (',' in classes or not Path(classes).suffix):
            return clean_names(f'`data`: classes={classes}', classes.split(','))
        return read_class_names(self.data_dir / classes)

    def split_name(self, **defaults: str) -> str:
        """What the source calls the split: as the user says, otherwise as `defaults` do for 'train' and 'val'."""
        return self.split_names.get(self.split, defaults[self.split])

    def known_names(self) -> Sequence[str]:
        """What the source may call the split, the most likely first."""
        return [self.split_names[self.split]] if self.split in self.split_names else SPLIT_NAMES[self.split]

    @property
    def is_shared(self) -> bool:
        """Whether the address names one path for all splits."""
        return bool(self.where) and '{split}' not in self.where

    def folder(self) -> str:
        """The folder of the split, otherwise that of the data set if the images in it are to be divided."""
        path = self.path(self.where_or('{split}'))
        return str(self.data_dir) if self.whole and not (self.where or os.path.isdir(path)) else path

    def images(self, folder: Optional[str]) -> Optional[str]:
        """The path of an option `images`, in which {split} is replaced, too."""
        if folder is None:
            return None
        return self.path(folder) if '{split}' in folder else str(self.data_dir / folder)

    def where_or(self, default: str) -> str:
        """The path in the address, otherwise the default, or the names of the splits if both are given."""
        return self.where or ('{split}' if self.split_names.keys() == {'train', 'val'} else default)

    def path(self, where: str, exists: Callable[[str], bool] = os.path.exists) -> str:
        """The path for the requested split, of the first name of the split that exists."""
        if '{split}' not in where and not self.whole:
            raise InputError(
                f"`data`: '{where}' is the same for all splits. Write {{split}} in place of train and val, or hold out"
                ' a share with ?val=0.2.')
        paths = [str(self.data_dir / where.replace('{split}', name)) for name in self.known_names()]
        return next((path for path in paths if exists(path)), paths[0])


def match_split(values: Sequence[Any], request: Request, place: str) -> List[int]:
    """Indices of the rows of the requested split, by their values in the column of splits.

    Raises:
        InputError: No row has a name of the split.
    """
    names = [str(value if value is not None else '').strip() for value in values]
    wanted = {name.casefold() for name in request.known_names()}
    rows = [i for i, name in enumerate(names) if name.casefold() in wanted]
    if not rows:
        found = ', '.join(repr(name) for name in list(dict.fromkeys(names))[:10])
        raise InputError(
            f"{place} has no {request.known_names()[0]} split, but {found}. Name the splits with"
            ' ?train=...&val=..., or hold out a share with ?val=0.2.')
    known = wanted | {name for names in SPLIT_NAMES.values() for name in names} | set(
        name.casefold() for name in request.split_names.values())
    others = [name for name in names if name.casefold() not in known]
    if others and request.split == 'train':
        some = ', '.join(repr(name) for name in list(dict.fromkeys(others))[:5])
        _logger.warning('%s has %d rows of other splits, which are left out: %s', place, len(others), some)
    return rows
