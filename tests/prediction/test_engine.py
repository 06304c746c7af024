import os
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from helpers import photo, save_small_fan
from PIL import Image

from timm_fan.models import load_model
from timm_fan.prediction import Batches, EncodedPhotos, Predictor, find_photos, predict_photos


class Sized:
    """Photographs whose first pixel has their index; each seventh is unreadable."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Image.Image:
        if index % 7 == 6:
            raise OSError(f'broken {index}')
        return Image.new('RGB', (8, 8), (index % 256, index // 256, 0))


class Counting:
    """Gives the index of each photograph as its probability, and counts the batches that are in memory."""

    def __init__(self):
        self.alive, self.most = weakref.WeakSet(), 0

    def transform(self, image: Image.Image) -> torch.Tensor:
        return torch.tensor(image.getpixel((0, 0)), dtype=torch.float32)[:, None, None].expand(3, 4, 4)

    def compute(self, images, embeddings=False):
        self.alive.add(images)
        self.most = max(self.most, len(self.alive))
        return [(images[:, :2, 0, 0] * torch.tensor([1, 256])).sum(dim=1, keepdim=True), images[:, :, 0, 0]]


@pytest.mark.parametrize('workers, threads', [(0, 1), (0, 3), (2, 2)])
def test_every_photograph_once_in_order(workers, threads):
    found = []
    for batch in predict_photos(Counting(), Sized(50), 4, workers, threads, embeddings=True):
        for place, index in enumerate(batch.indices):
            readable = index not in batch.unreadable
            assert readable == (index % 7 != 6)
            if readable:
                assert batch.probabilities[place].item() == index
            else:
                assert batch.unreadable[index] == f'broken {index}'
            found.append(index)
    assert found == list(range(50))


def test_a_batch_of_unreadable_photographs_has_no_results():
    batches = list(predict_photos(Counting(), Sized(8), 1))
    assert batches[6].unreadable == {6: 'broken 6'} and batches[7].probabilities.tolist() == [[7]]


@pytest.mark.parametrize('processes', [1, 2, 3])
@pytest.mark.parametrize('count', [0, 1, 4, 11, 12])
def test_processes_share_the_batches(count, processes):
    found = [list(Batches(count, 4, process, processes)) for process in range(processes)]
    assert sorted((batch for part in found for batch in part), key=lambda b: b.start) == list(Batches(count, 4))
    assert [i for batch in Batches(count, 4) for i in batch] == list(range(count))
    assert list(Batches(count, 4, 0, processes, 1)) == found[0][1:]


def memory_of(count: int) -> int:
    """Peak of the memory that Python and NumPy allocate for some photographs."""
    tracemalloc.start()
    for _ in predict_photos(Counting(), Sized(count), 50, threads=2):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_photographs():
    """A handful of batches is alive at a time, and ten times the images do not allocate more."""
    counting = Counting()
    for batch in predict_photos(counting, Sized(400), 4, threads=2):
        del batch
    assert counting.most <= 5
    memory_of(100)
    assert memory_of(4000) < memory_of(400) + 100_000


def test_names_take_as_many_bytes_as_they_have_characters(tmp_path):
    (tmp_path / 'list.txt').write_text('\n'.join(f'{i:09d}.jpg' for i in range(1000)))
    files = find_photos([], tmp_path / 'list.txt').files
    assert len(files) == 1000 and files.content.nbytes == 13 * 1000 and files.ends.nbytes == 8 * 1000


def test_results_do_not_depend_on_processes_workers_and_threads(tmp_path):
    """Bit for bit, because a photograph is always computed next to the same others."""
    predictor = Predictor(load_model(save_small_fan(tmp_path / 'model')))
    for i in range(9):
        photo(50 + 9 * i, 70).save(tmp_path / f'{i}.png')
    (tmp_path / '4.png').write_bytes(b'')
    photos = EncodedPhotos(find_photos([str(tmp_path / '*.png')]))
    expected = torch.cat([batch.probabilities for batch in predict_photos(predictor, photos, 4)])
    assert expected.std(dim=0).max() > 0
    for processes in (1, 2):
        for workers, threads in ((0, 3), (2, 1)):
            found = torch.zeros_like(expected)
            for process in range(processes):
                batches = Batches(9, 4, process, processes)
                for batch in predict_photos(predictor, photos, 4, workers, threads, batches):
                    found[list(batch.indices)] = batch.probabilities
            assert torch.equal(found, expected)


def test_threads_do_not_mix_the_maps_that_hooks_keep():
    model = timm.create_model('fan', backbone='legacy_xception', num_classes=3, embed_dim=32)
    predictor = Predictor(model)
    images = torch.randint(0, 256, (8, 1, 3, 71, 71), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = [predictor.compute(x, embeddings=True) for x in images]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda x: predictor.compute(x, embeddings=True), images)
        assert all(torch.equal(a, b) for one, other in zip(expected, found) for a, b in zip(one, other))


def test_the_last_batch_of_a_compiled_model_is_filled_up():
    sizes = []

    class Recorded(Counting):
        def compute(self, images, embeddings=False):
            sizes.append(len(images))
            return super().compute(images)

    batches = list(predict_photos(Recorded(), Sized(6), 4, pad=True))
    assert sizes == [4, 4] and [len(batch.probabilities) for batch in batches] == [4, 2]


def test_embeddings_are_what_the_classifier_sees(tmp_path):
    model = load_model(save_small_fan(tmp_path / 'model'))
    predictor = Predictor(model)
    images = torch.stack([predictor.transform(photo(90, 70 + i)) for i in range(3)])
    probabilities, embeddings = predictor.compute(images, embeddings=True)
    assert embeddings.shape == (3, model.head_hidden_size)
    torch.testing.assert_close(probabilities, predictor.compute(images)[0])
    with torch.inference_mode():
        features = model.forward_features(predictor._normalize(images))
        torch.testing.assert_close(embeddings, model.forward_head(features, pre_logits=True))


def test_bf16_is_close(tmp_path):
    model = load_model(save_small_fan(tmp_path / 'model'))
    photos = [photo(90, 70)]
    found = Predictor(model, mixed_precision='bf16').probabilities(photos)
    assert found.dtype == torch.float32
    assert 0 < (found - Predictor(model).probabilities(photos)).abs().max() < 0.02


def test_workers_find_files_with_any_name(tmp_path):
    name = os.fsdecode(b'a \xe9.png')
    photo(40, 40).save(tmp_path / name)
    images = find_photos([tmp_path])
    assert images.key(0) == str(tmp_path / name)
    assert EncodedPhotos(images).load(0).size == (40, 40)
