"""The page of a grid: a table with means, deviations and paired tests, and a plot of accuracy over cost."""
import json
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from timm.data import resolve_model_data_config

from timm_fan.cost import count_cost
from timm_fan.files import read_text, write_text
from timm_fan.models import create_model
from timm_fan.report.plots import saved_figure

from .grid import Grid, Options, Results

TEMPLATE = Path(__file__).parent / 'page.md'
_GROUPS = dict(tail='rarest six', small='smallest six', correlated='most correlated six')


class Row(NamedTuple):
    """A row with results.

    Attributes:
        name: Its name.
        records: One per seed.
        options: Its options, with the best values of its search.
        tried: Records of its search.
        multiply_adds: For one image at the size that it is evaluated with.
    """
    name: str
    records: List[dict]
    options: Options
    tried: List[dict]
    multiply_adds: int


def collect(grid: Grid, results: Results, seeds: int) -> List[Row]:
    """The rows of a grid that have results."""
    rows = []
    for name in grid.own:
        options, tried, _ = grid.choose(name, results)
        records = [r for run in grid.runs([name], seeds, results) for r in results.find(run)]
        if records:
            rows.append(Row(name, records, options, tried, _multiply_adds(options, len(records[0]['AP']))))
    return rows


def _multiply_adds(options: Options, num_classes: int) -> int:
    name = options.get('model', 'fan')
    kwargs = {k: v for k, v in options.items() if k in ('backbone', 'img_size') and name.startswith('fan')}
    model = create_model(
        name, num_classes=num_classes, device='meta', **kwargs, **options.get('model_kwargs', {})).eval()
    size = options.get('val_img_size') or options.get('img_size')
    config = resolve_model_data_config(model, args=dict(img_size=size))
    return count_cost(model, config['input_size']).multiply_adds


def _spread(values: Sequence[Any]) -> str:
    """Mean and standard deviation in percent."""
    values = [100 * v for v in values if v is not None]
    if not values:
        return ''
    return f'{statistics.fmean(values):.2f}' + (f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else '')


def _paired(row: Row, reference: Optional[Row], score: Callable[[dict], Optional[float]]) -> str:
    """Difference of a score over the seeds of both rows, with its 95% interval and the p of a paired t-test."""
    from scipy.stats import ttest_rel

    seeds = {r['seed']: score(r) for r in reference.records} if reference else {}
    pairs = [(100 * score(r), 100 * seeds[r['seed']]) for r in row.records if seeds.get(r['seed']) is not None]
    if row is reference or len(pairs) < 2:
        return ''
    test = ttest_rel(*zip(*pairs))
    low, high = test.confidence_interval()
    p = f'p {test.pvalue:.3f}' if test.pvalue >= 0.001 else 'p < 0.001'
    return f'{statistics.fmean(a - b for a, b in pairs):+.2f} ({low:+.2f} to {high:+.2f}, {p})'


def _group(record: dict, key: str) -> Optional[float]:
    """mAP of a group of classes."""
    return (record[key] or {}).get('mAP')


def _label_cells(row: Row) -> Dict[str, str]:
    """Column -> text of one row of the table of precision, recall and F1."""
    cells = {'': row.name}
    for key, protocol in (('all', 'All'), ('top3', 'Top-3')):
        for name in row.records[0][key]:
            cells[f'{protocol} {name}'] = f'{100 * statistics.fmean(r[key][name] for r in row.records):.1f}'
    return cells


def _cells(row: Row, rows: Sequence[Row], grid: Grid, searched: Sequence[str]) -> Dict[str, str]:
    """Column -> text of one row of the table."""
    reference = next((r for r in rows if r.name == grid.reference), None)
    cells = {'': row.name, **{key: str(row.options.get(key, '')) for key in searched}}
    cells['mAP'] = _spread([r['mAP'] for r in row.records])
    cells[f'minus {grid.reference}'] = _paired(row, reference, lambda r: r['mAP'])
    for key, title in _GROUPS.items():
        cells[title] = _spread([_group(r, key) for r in row.records])
        if key == 'small':
            cells['the same minus'] = _paired(row, reference, lambda r: _group(r, 'small'))
    cells['pointing game'] = _spread([r['pointing'] for r in row.records])
    cells['energy in boxes'] = _spread([r['energy'] for r in row.records])
    cells['M parameters'] = f'{row.records[0]["parameters"] / 1e6:.2f}'
    cells['G multiply-adds'] = f'{row.multiply_adds / 1e9:.3f}'
    cells['minutes'] = f'{statistics.fmean(r["seconds"] for r in row.records) / 60:.1f}'
    cells['seeds'] = str(len(row.records))
    return cells


def _plot_cost(rows: List[Row], file: Path) -> None:
    """mAP over multiply-adds, a point per row with the standard deviation over seeds."""
    with saved_figure(file, figsize=(8, 5)) as (figure, axis):
        for i, row in enumerate(rows):
            values = [100 * r['mAP'] for r in row.records]
            spread = statistics.stdev(values) if len(values) > 1 else 0
            axis.errorbar(
                row.multiply_adds / 1e9, statistics.fmean(values), spread, label=row.name, capsize=3,
                color=f'C{i % 10}', fmt='os^'[i // 10])
        axis.set(xlabel='multiply-adds of one image, in billions', ylabel='mAP in %', title='Accuracy versus cost')
        axis.grid(alpha=0.3)
        figure.legend(loc='outside right center', fontsize='small')


def write_page(file: Path, grid: Grid, results: Results, rows: List[Row]) -> None:
    """Write the Markdown page of a grid, and its plot next to it."""
    import jinja2

    searched = list(dict.fromkeys(key for search in grid.searches.values() for key in search))
    records = [r for row in rows for r in row.records]
    table = [_cells(row, rows, grid, searched) for row in rows]
    template = jinja2.Template(read_text(TEMPLATE), undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = template.render(
        grid=grid, start=grid.start_from and Path(grid.start_from).stem, rows=rows, table=table,
        labels=list(map(_label_cells, rows)), searched=searched,
        json=json.dumps, spread=_spread, first=records[0],
        results=results.file.name, titles=dict(tail='Rarest', small='Smallest', correlated='Most correlated'),
        hardware=sorted({r['hardware'] for r in records}),
        versions=sorted({', '.join(f'{k} {v}' for k, v in r['versions'].items()) for r in records}))
    _plot_cost(rows, file.with_suffix('.png'))
    write_text(file, text)
