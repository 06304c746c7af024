"""Paths as other machines write them find the images that they mean."""
import os
import unicodedata

import pytest
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset
from timm_fan.data.paths import ImageFinder


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'root' / 'train' / 'a').mkdir(parents=True)
    for name in ('train/a/1.jpg', 'train/größe.jpg', 'train/Two.JPG', 'train/3.png'):
        Image.new('RGB', (8, 8)).save(tmp_path / 'root' / name)
    Image.new('RGB', (8, 8)).save(tmp_path / 'out.jpg')
    os.symlink(tmp_path / 'nothing.jpg', tmp_path / 'root' / 'train' / 'link.jpg')
    return tmp_path / 'root'


@pytest.mark.parametrize('path, found', [
    ('a/1.jpg', 'train/a/1.jpg'), ('a\\1.jpg', 'train/a/1.jpg'), ('./a/1.jpg', 'train/a/1.jpg'),
    ('a/../a/1.jpg', 'train/a/1.jpg'),
    ('train/a/1.jpg', 'train/a/1.jpg'), ('/home/me/data/train/a/1.jpg', 'train/a/1.jpg'),
    ('C:\\data\\train\\a\\1.jpg', 'train/a/1.jpg'), ('../../upload/a/1.jpg', 'train/a/1.jpg'),
    (unicodedata.normalize('NFD', 'größe.jpg'), 'train/größe.jpg'), ('3', 'train/3.png'),
    ('/data/upload/1/0123abcd-3.png', 'train/3.png'), ('https://example.org/a/1.jpg', 'train/a/1.jpg'),
    ('b/1.jpg', None), ('two.jpg', None), ('link.jpg', None), ('../../out.jpg', None), ('2.png', None), ('', None)])
def test_paths_are_found(root, path, found):
    assert ImageFinder(root, 'train').find(path) == found


def test_an_absolute_path_that_exists_is_taken(root):
    path = str(root.parent / 'out.jpg')
    assert ImageFinder(root).find(path) == path


@pytest.mark.parametrize('path, words', [
    ('train/two.jpg', "There is 'train/Two.JPG', which differs in case or extension"),
    ('https://example.org/9.jpg', 'download the images'), ('../out.jpg', 'Paths outside of the folder'),
    ('1.jpg', r'There is .*train/a/1.jpg'), ('9.jpg', 'Paths are relative to .*root')])
def test_the_cause_of_a_missing_image_is_named(root, path, words):
    (root / 'train.csv').write_text(f'image,labels\n{path},cat\n')
    with pytest.raises(InputError, match=f'(?s)line 2: no image file.*{words}'):
        create_dataset('table', root, 'train')


def test_an_image_is_listed_once_whatever_its_path(root):
    (root / 'train.csv').write_text('image,labels\ntrain/a/1.jpg,cat\ntrain\\a\\1.jpg,dog\n')
    with pytest.raises(InputError, match="line 3: image 'train/a/1.jpg' is already on line 2"):
        create_dataset('table', root, 'train')
