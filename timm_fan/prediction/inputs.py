"""The photographs to predict: files, folders, patterns and lists of files, and data sets with or without labels."""
import glob
import os
from pathlib import Path
from typing import Iterator, Optional, Sequence, Union

from timm_fan.data import SOURCES, ImageFiles, Images, create_dataset
from timm_fan.data.images import images_at, some_images
from timm_fan.data.sources.hf_datasets import hf_images
from timm_fan.data.sources.request import Address, Request
from timm_fan.data.sources.shards import shard_images
from timm_fan.data.sources.table import table_images
from timm_fan.errors import InputError


def find_photos(paths: Sequence[Union[str, Path]], list_file: Optional[Union[str, Path]] = None) -> Images:
    """The photographs among paths, and in a list of paths. Only their names are in memory, tightly packed.

    Args:
        paths: Files, folders that are searched for images, and patterns with * or ?, where ** also stands for folders.
        list_file: File with a path on each line, relative to the working directory. They are not looked for: a file
            that does not exist is an unreadable image.

    Raises:
        InputError: A path does not exist, or a folder, pattern or list has no image.
    """
    return ImageFiles('', _find(paths, list_file))


def _find(paths: Sequence[Union[str, Path]], list_file: Optional[Union[str, Path]]) -> Iterator[str]:
    for path in map(Path, paths):
        if glob.has_magic(str(path)) and not path.exists():
            yield from some_images(filter(os.path.isfile, sorted(glob.iglob(str(path), recursive=True))), path)
        else:
            yield from images_at(path)
    if list_file is not None:
        yield from some_images(_listed(Path(list_file)), list_file)


def _listed(file: Path) -> Iterator[str]:
    try:
        # names that are not UTF-8 stay what they are
        with open(file, encoding='utf-8-sig', errors='surrogateescape') as lines:
            yield from filter(None, (line.rstrip('\r\n') for line in lines))
    except OSError as error:
        raise InputError(f'`list_file={file}` cannot be read: {error.strerror}.') from error


def open_images(data: str, data_dir: Union[str, Path], split: str) -> Images:
    """The images of a data source. Tables, shards and the Hub's data sets may lack labels.

    Args:
        data, data_dir, split: As for `create_dataset`. A table without a column of splits is taken as a whole.

    Raises:
        InputError: As `create_dataset`.
    """
    address = Address.parse(data, SOURCES)
    reader = dict(table=table_images, shards=shard_images, hub=hf_images).get(address.name)
    if reader is None or address.division is not None:
        return create_dataset(data, data_dir, split).images
    request = Request(Path(data_dir), address.where, split, None, address.split_names)
    return reader(request, **{k: v for k, v in address.options.items() if k in ('image', 'images', 'split', 'config')})
