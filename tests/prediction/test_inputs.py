import json
import tarfile

import datasets
import pytest
from helpers import add_member, photo, write_hub, write_table, write_tars

from timm_fan import InputError
from timm_fan.data import create_dataset, find_images
from timm_fan.prediction import find_photos, open_images


@pytest.fixture
def photos(tmp_path):
    for name in ('b/2.png', 'b/1.jpg', 'a.jpg', 'b.jpg', 'b/c/3.JPG', 'b/.4.jpg', 'b/5.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(20, 20).save(tmp_path / name, 'png')
    return tmp_path


def keys(images):
    return [images.key(i) for i in range(len(images))]


def test_files_folders_patterns_and_lists(photos, monkeypatch):
    monkeypatch.chdir(photos)
    everything = ['a.jpg', 'b/1.jpg', 'b/2.png', 'b/c/3.JPG', 'b.jpg']
    assert keys(find_photos(['.'])) == everything
    assert list(map(str, find_images(['.']))) == everything
    assert keys(find_photos(['b.jpg', 'b/c'])) == ['b.jpg', 'b/c/3.JPG']
    assert keys(find_photos(['b/*.jpg', '**/*.png'])) == ['b/1.jpg', 'b/2.png']
    (photos / 'list').write_text('b.jpg\n\nno such.jpg\n')
    assert keys(find_photos(['a.jpg'], 'list')) == ['a.jpg', 'b.jpg', 'no such.jpg']
    for path, message in (('none', 'No image file or folder none'), ('*.gif', r'no image in \*.gif')):
        with pytest.raises(InputError, match=message):
            find_photos([path])
    with pytest.raises(InputError, match='`list_file=none` cannot be read'):
        find_photos([], 'none')
    (photos / 'list').write_text('\n')
    with pytest.raises(InputError, match='no image in list'):
        find_photos(['a.jpg'], 'list')


@pytest.mark.parametrize('write, kind', [
    (write_table, 'csv'), (write_table, 'parquet'), (write_hub, 'disk'), (write_tars, 'json')])
def test_data_sets_give_the_images_of_a_split(coco_folder, tmp_path, write, kind):
    data = write(coco_folder, tmp_path, kind)
    expected = create_dataset(data, tmp_path, 'val').images
    images = open_images(data, tmp_path, 'val')
    assert keys(images) == keys(expected) and len(images) == 13
    assert images.read(5) == expected.read(5)


def test_other_data_sets(coco_folder):
    assert len(open_images('coco2014', coco_folder, 'val')) == 13


def test_tables_without_labels(photos):
    (photos / 'new.csv').write_text('number,path\n1,b/2.png\n2,a.jpg\n')
    assert keys(open_images('table:new.csv', photos, 'val')) == ['b/2.png', 'a.jpg']
    (photos / 'new.jsonl').write_text(''.join(
        json.dumps(dict(photo=name, split=split)) + '\n' for name, split in (('1.jpg', 'val'), ('2.png', 'train'))))
    data = 'table:new.jsonl?image=photo&images=b'
    assert keys(open_images(data, photos, 'train')) == ['2.png']
    (photos / 'bad.csv').write_text('image\na.jpg\nmissing.jpg\n')
    with pytest.raises(InputError, match="line 3: no image file 'missing.jpg'"):
        open_images('table:bad.csv', photos, 'val')


def test_shards_without_labels(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f'val-{number}.tar', 'w') as archive:
            for i in range(3):
                add_member(archive, f'{number}{i}.jpg', bytes([number, i]))
                add_member(archive, f'{number}{i}.xyz', b'something else')
    for address in ('shards:{split}-{0..1}.tar', 'shards:val-*.tar', 'shards'):
        images = open_images(address, tmp_path, 'val')
        assert len(images) == 6 and images.key(4) == 'val-1.tar/11.jpg' and images.read(4) == bytes([1, 1])
    with pytest.raises(InputError, match='No shard'):
        open_images('shards:none-*.tar', tmp_path, 'val')


def test_hub_data_sets_without_labels(tmp_path):
    rows = [dict(image=dict(bytes=bytes([i]), path=f'{i}.jpg'), number=i) for i in range(3)]
    features = datasets.Features(dict(image=datasets.Image(), number=datasets.Value('int64')))
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / 'set')
    images = open_images('hub:set', tmp_path, 'train')
    assert images.read(2) == bytes([2]) and images.key(2) == 'row 2 (2.jpg)'
