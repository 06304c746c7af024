"""Whether the rows of the zoo, the cards and the weights belong together."""
from pathlib import Path
from typing import Dict, Iterable, Iterator, List

import timm

from timm_fan.files import read_json, read_text
from timm_fan.hub import CONFIG_NAME, WEIGHTS_NAME
from timm_fan.provenance import file_sha256
from timm_fan.publish import card_of_release, card_of_variant

from .zoo import Row


def find_problems(zoo: Dict[str, Row], names: Iterable[str], cards: Path, weights: Path) -> List[str]:
    """What does not belong together in these rows of the zoo, in words."""
    problems = [problem for name in names for problem in _row_problems(zoo[name], cards, weights)]
    bundled = {row.name for row in zoo.values() if row.bundled}
    for folder in sorted(weights.iterdir()) if weights.is_dir() else ():
        if folder.name not in bundled:
            problems.append(f'{folder} has no row with bundled: true')
    return problems


def _row_problems(row: Row, cards: Path, weights: Path) -> Iterator[str]:
    file, card = cards / f'{row.name}.json', cards / f'{row.name}.md'
    if not file.is_file():
        yield from _unreleased_problems(row, card)
        return
    record = read_json(file)
    if record['row'] != row.model_dump():
        yield f'{row.name}: {file} is of other options than the row'
    if not card.is_file() or read_text(card) != str(card_of_release(record, row.repo)):
        yield f'{row.name}: {card} is not the card of {file}'
    if not card.with_suffix('.png').is_file():
        yield f'{row.name}: no picture {card.with_suffix(".png")}'
    if record['metrics']['weights'] != record['weights']:
        yield f'{row.name}: {file} has scores of other weights'
    if not row.bundled:
        return
    folder = weights / row.name
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            yield f'{row.name}: no file {folder / name}'
            return
    if file_sha256(folder / WEIGHTS_NAME) != record['weights']:
        yield f'{row.name}: {folder / WEIGHTS_NAME} has other weights than {file}'
    if read_json(folder / CONFIG_NAME) != record['config']:
        yield f'{row.name}: {folder / CONFIG_NAME} differs from that in {file}'


def _unreleased_problems(row: Row, card: Path) -> Iterator[str]:
    """A row that was not made has the card without scores, if it is a model that timm lists."""
    if row.bundled:
        yield f'{row.name}: it is bundled, but was not made'
    if row.name != f'{row.model}.{timm.get_pretrained_cfg(row.model).tag}':
        return
    if not card.is_file() or read_text(card) != str(card_of_variant(row.model)):
        yield f'{row.name}: {card} is not the card of a model without weights'
