"""A grid of configurations, the runs that it consists of, and what they gave."""
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from command_line import find_config

from runs import decisive

from timm_fan import InputError
from timm_fan.files import read_lines, read_yaml, write_text
from timm_fan.training import TrainingOptions, merge_options

GRIDS = Path(__file__).parent
_KEYS = {
    'base', 'title', 'options', 'rows', 'reference', 'seeds', 'search', 'search_seed', 'search_options', 'views',
    'start_from'}
# options that ablation.py sets
_SET = {'cache_features', 'data_dir', 'report', 'seed'}

Options = Dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        row: Its row.
        seed: Its seed.
        options: Its options, without the seed.
        tried: The values that it tries of the row's search, None if it is not part of one.
        views, start_from: See `Grid`.
    """
    row: str
    seed: int
    options: Options
    tried: Optional[Options] = None
    views: int = 0
    start_from: Optional[str] = None

    @property
    def name(self) -> str:
        parts = [self.row, *(f'{k}={v}' for k, v in (self.tried or {}).items())]
        return re.sub(r'[^\w.=+-]+', '_', '-'.join(parts)) + f'-seed{self.seed}'


class Results:
    """A file with one JSON object per line for each finished run."""

    def __init__(self, file: Path):
        self.file = file
        self.records: List[dict] = []
        if file.is_file():
            try:
                self.records = [json.loads(line) for line in read_lines(file)]
            except json.JSONDecodeError as error:
                raise InputError(f'{file} is damaged: {error}. Remove the line.') from error

    def find(self, run: Run) -> List[dict]:
        wanted = (run.row, run.seed, run.tried is not None, run.views, run.start_from, decisive(run.options))

        def describe(record: dict) -> tuple:
            own = (record[key] for key in ('row', 'seed', 'search'))
            return (*own, record.get('views', 0), record.get('start_from'), decisive(record['options']))

        return [record for record in self.records if describe(record) == wanted]

    def add(self, record: dict) -> None:
        self.records.append(record)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, ''.join(json.dumps(r) + '\n' for r in self.records))


class Choice(NamedTuple):
    """Options of a row with the best values of its search, the records of the search, and its best run if any."""
    options: Options
    tried: List[dict]
    best: Optional[Run]


@dataclass(frozen=True)
class Grid:
    """Configurations to compare.

    Attributes:
        name: Name of the file.
        title: Title of the page.
        options: Options of all rows.
        own: Row -> the options that distinguish it.
        searches: Row -> option -> values to try.
        reference: Row that the others are compared with.
        seeds: Number of seeds.
        search_seed: Seed of the search.
        search_options: Options of the search that the final runs do not have, such as other images.
        views: Random views of each training image whose maps are computed once, by a frozen backbone that all rows
            share. With 0, runs are those of train.py.
        start_from: Another grid. Each run starts from the model that its row has there, with the same seed; runs of the
            search start from the best one of the search there. Rows have the options that distinguish them there.
    """
    name: str
    title: str
    options: Options
    own: Dict[str, Options]
    searches: Dict[str, Dict[str, List[Any]]]
    reference: str
    seeds: int
    search_seed: int
    search_options: Options
    views: int
    start_from: Optional[str]

    def row_options(self, row: str) -> Options:
        return merge_options(self.options, self.own[row])

    def search_runs(self, row: str) -> List[Run]:
        search = self.searches[row]
        values = itertools.product(*search.values()) if search else ()
        tried = [dict(zip(search, v)) for v in values]
        return [
            Run(row, self.search_seed, merge_options(self.row_options(row), self.search_options, t), t, self.views,
                self.start_from)
            for t in tried]

    def choose(self, row: str, results: Results) -> Choice:
        """The options of a row, as far as it has been searched."""
        tried = [(record, run) for run in self.search_runs(row) for record in results.find(run)]
        if not tried:
            return Choice(self.row_options(row), [], None)
        _, best = max(tried, key=lambda pair: pair[0]['mAP'])
        return Choice(merge_options(self.row_options(row), best.tried), [record for record, _ in tried], best)

    def runs(self, rows: List[str], seeds: int, results: Results) -> List[Run]:
        """The runs of some rows, with the options that were chosen for each."""
        chosen = {row: self.choose(row, results).options for row in rows}
        return [self.run(row, seed, chosen[row]) for seed in range(seeds) for row in rows]

    def run(self, row: str, seed: int, options: Options) -> Run:
        """A run with the options that were chosen for its row."""
        return Run(row, seed, options, views=self.views, start_from=self.start_from)


def read_grid(name: str, _above: Tuple[Path, ...] = ()) -> Grid:
    """A grid from a YAML file, or from the one of this name in this folder.

    Raises:
        InputError: The file is missing or wrong.
    """
    file = find_config(name, GRIDS, 'grid')
    content = _load(file, _above)
    own = {row: dict(options or {}) for row, options in content['rows'].items()}
    searches = {row: options.pop('search', content.get('search')) or {} for row, options in own.items()}
    if content.get('start_from'):
        earlier = read_grid(str(content['start_from']), (*_above, file.resolve())).own
        missing = set(own) - set(earlier)
        if missing:
            raise InputError(f"{file}: {content['start_from']} has no row '{min(missing)}' to start from.")
        own = {row: merge_options(earlier[row], options) for row, options in own.items()}
    grid = Grid(
        name=file.stem, title=content.get('title', file.stem), options=content.get('options') or {}, own=own,
        searches=searches, reference=content.get('reference'), seeds=content.get('seeds', 5),
        search_seed=content.get('search_seed', 1000), search_options=content.get('search_options') or {},
        views=content.get('views', 0), start_from=content.get('start_from'))
    _check(file, grid)
    return grid


def _load(file: Path, above: Tuple[Path, ...] = ()) -> Dict[str, Any]:
    """The content of a file on top of that of its base. `above` are the files that build on it."""
    if file.resolve() in above:
        raise InputError(f'{file} builds on itself.')
    content = read_yaml(file)
    if isinstance(content, dict):
        for key in ('options', 'search_options'):
            _check_options(file, key, content.get(key))
        if 'base' in content:
            base = _load(find_config(str(content['base']), GRIDS, 'base'), (*above, file.resolve()))
            content = {**base, **content, 'options': merge_options(base.get('options'), content.get('options'))}
    if not isinstance(content, dict) or not isinstance(content.get('rows'), dict) or set(content) - _KEYS:
        raise InputError(f'{file} must have rows, and of other keys only {", ".join(sorted(_KEYS - {"rows"}))}.')
    for row, options in content['rows'].items():
        _check_options(file, f"row '{row}'", options)
    return content


def _check_options(file: Path, what: str, options: Any) -> None:
    if options is None:
        return
    kwargs = options.get('model_kwargs', {}) if isinstance(options, dict) else None
    if not isinstance(kwargs, dict):
        raise InputError(f'{file}: {what} must be option: value, and model_kwargs likewise, got {options!r:.80}.')
    wrong = sorted(_SET & set(options))
    if wrong:
        raise InputError(f'{file}: {what} must not have {", ".join(wrong)}, which ablation.py sets.')


def _check(file: Path, grid: Grid) -> None:
    if grid.reference not in grid.own:
        raise InputError(f'{file}: reference must be one of the rows, got {grid.reference!r}.')
    for key, lowest in (('seeds', 1), ('search_seed', 0), ('views', 0)):
        value = getattr(grid, key)
        if not isinstance(value, int) or value < lowest:
            raise InputError(f'{file}: {key} must be a whole number of at least {lowest}, got {value!r}.')
    names: Counter = Counter()
    for row, search in grid.searches.items():
        if not isinstance(search, dict) or not all(isinstance(v, list) and v for v in search.values()):
            raise InputError(f"{file}: the search of row '{row}' must be option: [value, ...], got {search}.")
        for run in (Run(row, 0, grid.row_options(row)), *grid.search_runs(row)):
            names[run.name] += 1
            try:
                TrainingOptions.parse({**run.options, 'cache_features': grid.views})
            except InputError as error:
                raise InputError(f"{file}, row '{row}': {error}".replace('`', '')) from error
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise InputError(f"{file}: two rows or searched values have the same run folder '{repeated[0]}'. Rename one.")
