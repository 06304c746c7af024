"""Images that are decoded on the device, here the CPU by torchvision's decoder."""
import io
import json
import random
import shutil

import pytest
import torch
from PIL import Image
from test_programs import TINY, history, run_here
from test_transforms import CONFIG, difference, photo

from timm_fan import InputError
from timm_fan.data import UNKNOWN, MultiLabelDataset, RandomCrop, Sample, create_transform
from timm_fan.data.device import DeviceDecoder, EncodedImage, EncodedImages, collate_encoded

SIZE = CONFIG['input_size'][1:]
CROP = RandomCrop(SIZE, (0.5, 1.), 'bilinear')


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, 'jpeg', **options)
    return buffer.getvalue()


def open_folder(folder, contents) -> EncodedImages:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    dataset = MultiLabelDataset.from_samples(folder, [Sample(name, [0]) for name in contents], ['a', 'b'])
    config = {**CONFIG, 'interpolation': 'bilinear'}
    dataset.transform = create_transform(**config, is_training=True, scale=(0.5, 1.))
    return EncodedImages(dataset, CROP)


def test_pixels_are_those_of_the_workers(tmp_path):
    images = open_folder(tmp_path, {f'{i}.jpg': jpeg(photo(100 + 20 * i, 120)) for i in range(4)})
    decoder = DeviceDecoder(CROP, torch.device('cpu'))
    found = {}
    for name, dataset in (('device', images), ('workers', images.dataset)):
        random.seed(0)
        items = [dataset[i] for i in range(4)]
        batch = collate_encoded(items)
        found[name] = decoder(*batch, range(4)) if name == 'device' else torch.stack(batch[0])
    assert found['device'].dtype == torch.uint8 and found['device'].shape == (4, 3, *SIZE)
    assert difference(found['device'], found['workers']).max() <= 2


def test_only_plain_jpegs_wait(tmp_path):
    rotated = Image.Exif()
    rotated[0x0112] = 6
    whole = jpeg(photo())
    png = io.BytesIO()
    photo().save(png, 'png')
    contents = {
        'plain.jpg': whole, 'grey.jpg': jpeg(photo().convert('L')), 'png.jpg': png.getvalue(),
        'turned.jpg': jpeg(photo(), exif=rotated), 'cmyk.jpg': jpeg(photo().convert('CMYK')),
        'cut.jpg': whole[:-100], 'line.jpg': jpeg(Image.new('RGB', (500, 2))), 'none.jpg': b''}
    images = open_folder(tmp_path, contents)
    items = [images[i] for i in range(len(images))]
    waiting = {name for name, (image, _) in zip(contents, items) if isinstance(image, EncodedImage)}
    assert waiting == {'plain.jpg', 'grey.jpg'}
    batch, targets = collate_encoded(items)
    pixels = DeviceDecoder(CROP, torch.device('cpu'))(batch, targets, range(len(batch)))
    unknown = {name for name, target in zip(contents, targets) if (target == UNKNOWN).all()}
    assert unknown == {'cut.jpg', 'line.jpg', 'none.jpg'}
    assert all((pixels[i] == 128).all() == (name in unknown) for i, name in enumerate(contents))


def test_what_nothing_can_decode_is_reported():
    broken = jpeg(photo())[:160] + b'\xff\xd9'
    images = [EncodedImage(content, CROP.draw(photo())) for content in (jpeg(photo()), broken)]
    targets, reported = torch.zeros(2, 3), []
    decoder = DeviceDecoder(CROP, torch.device('cpu'), lambda index, error: reported.append(index))
    pixels = decoder(images, targets, torch.tensor([7, 9]))
    assert (pixels[1] == 128).all() and pixels[0].float().std() > 10
    assert (targets[1] == UNKNOWN).all() and (targets[0] == 0).all() and reported == [9]


def test_pillow_helps_with_what_the_device_alone_cannot_decode(monkeypatch):
    images = [EncodedImage(jpeg(photo(seed)), CROP.draw(photo(seed))) for seed in (160, 170)]
    decoder = DeviceDecoder(CROP, torch.device('cpu'))
    expected, one = decoder(images, torch.zeros(2, 3), range(2)), decoder._decode

    def picky(contents):
        if images[1].content in contents:
            raise RuntimeError('unsupported')
        return one(contents)

    monkeypatch.setattr(decoder, '_decode', picky)
    assert difference(decoder(images, torch.zeros(2, 3), range(2)), expected).max() <= 2

    def full(contents):
        raise torch.OutOfMemoryError('no memory')

    monkeypatch.setattr(decoder, '_decode', full)
    with pytest.raises(torch.OutOfMemoryError):
        decoder(images, torch.zeros(2, 3), range(2))


def test_devices_without_a_decoder_are_refused():
    with pytest.raises(InputError, match='cannot decode JPEGs on meta'):
        DeviceDecoder(CROP, torch.device('meta'))


def test_the_interpolation_must_be_torchs():
    with pytest.raises(InputError, match='lanczos'):
        DeviceDecoder(RandomCrop(SIZE, (0.5, 1.), 'lanczos'), torch.device('cpu'))


def test_damaged_jpegs_of_a_run_are_listed(monkeypatch, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / 'coco')
    for i in range(3):
        file = data / 'train2014' / f'{i}.jpg'
        content = bytearray(file.read_bytes())
        start = content.index(b'\xff\xc4') + 4  # a Huffman table
        content[start + 1:start + 17] = b'\xff' * 16
        file.write_bytes(content)
    listed = []
    for decode in ('workers', 'device'):
        run = tmp_path / decode
        options = ['--data-dir', data, '--output', run, '--decode', decode, '--no-report']
        assert run_here(monkeypatch, 'train', *TINY, *options) == 0
        listed.append({json.loads(line)['image'] for line in (run / 'bad_samples.jsonl').read_text().splitlines()})
    assert listed[0] == listed[1] != set()


@pytest.mark.parametrize('workers', [0, 1])
def test_training(monkeypatch, coco_folder, tmp_path, workers):
    """The same run, as the decoder's pixels are the same here."""
    losses = []
    for decode in ('workers', 'device'):
        run = tmp_path / decode
        assert run_here(
            monkeypatch, 'train', *TINY, '--data-dir', coco_folder, '--output', run, '--epochs', '1',
            '--decode', decode, '--workers', workers, '--no-report') == 0
        losses.append(history(run)[0]['train_loss'])
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
