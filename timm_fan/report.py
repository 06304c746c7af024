"""An evaluation as text, files and a page to look at."""
import base64
import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import torch

from .data import MultiLabelDataset
from .errors import InputError
from .figures import (
    Shown,
    choose_errors,
    choose_predictions,
    plot_curves,
    plot_images,
    plot_per_class,
    plot_precision_recall,
    thumbnail,
)
from .files import filled_folder
from .groups import GroupScores
from .metrics import Figures, MultiLabelScores
from .paper import paper_figures
from .streaming import BinnedScores
from .uncertainty import Comparison, Interval

__all__ = ['format_binned', 'format_comparison', 'format_scores', 'template_environment', 'write_report']


def _figures_table(all_labels: Figures, top3: Figures) -> List[str]:
    lines = ['          CP     CR    CF1     OP     OR    OF1']
    for name, figures in (('All', all_labels), ('Top-3', top3)):
        values = (figures.CP, figures.CR, figures.CF1, figures.OP, figures.OR, figures.OF1)
        lines.append(f'{name:<6}' + ' '.join(f'{100 * v:6.2f}' for v in values))
    return lines


def format_scores(
        scores: MultiLabelScores,
        intervals: Optional[Dict[str, Interval]] = None,
        groups: Optional[GroupScores] = None,
) -> str:
    """The figures as a table of percentages, with the number of images and the protocol."""
    lines = [f'mAP {100 * scores.mAP:.2f} on {scores.num_images} images']
    lines += _figures_table(scores.all, scores.top3)
    by_definition = ', '.join(f'{name} {100 * v:.2f}' for name, v in scores.mAP_by_definition.items())
    lines.append(f'mAP by definition: {by_definition}')
    lines.append(f'sample F1 {100 * scores.sample_f1:.2f}, exact match {100 * scores.exact_match:.2f}')
    if intervals:
        lines.append('95% over images: ' + ', '.join(
            f'{name} {100 * i.low:.2f} to {100 * i.high:.2f}' for name, i in intervals.items()))
    if groups is not None:
        for name, group in (('rarest', groups.tail), ('smallest', groups.small)):
            if group is not None and group.mAP is not None:
                classes = ', '.join(group.classes)
                lines.append(f'mAP of the {len(group.classes)} {name}: {100 * group.mAP:.2f} ({classes})')
        if groups.recall_by_size:
            lines.append('recall by size of the object: ' + ', '.join(
                f'{name} {100 * r.recall:.2f} ({r.labels})' for name, r in groups.recall_by_size.items()
                if r.recall is not None))
    lines.append(scores.protocol)
    if scores.num_unlabelled:
        lines.append(f'{scores.num_unlabelled} images without a known label, or unreadable, are left out')
    if scores.classes_without_positives:
        lines.append(f'left out of mAP, CP and CR, no positive: {", ".join(scores.classes_without_positives)}')
    return '\n'.join(lines)


def format_binned(scores: BinnedScores) -> str:
    """As `format_scores`, for an evaluation that kept counts only."""
    lines = [f'mAP {100 * scores.mAP:.2f} on {scores.num_images} images, binned; the exact figure is within'
             f' {100 * scores.mAP_low:.2f} to {100 * scores.mAP_high:.2f}']
    return '\n'.join(lines + _figures_table(scores.all, scores.top3))


def format_comparison(first: str, second: str, found: Dict[str, Comparison], num_images: int) -> str:
    """What `timm_fan.uncertainty.compare` found, in percentage points."""
    lines = [f'{second} minus {first}, on the same {num_images} images:']
    for name, c in found.items():
        verdict = 'exceeds' if c.exceeds_noise else 'does not exceed'
        lines.append(
            f'{name:<4} {100 * c.difference:+.2f}, 95% {100 * c.interval.low:+.2f} to'
            f' {100 * c.interval.high:+.2f}: {verdict} the noise of the choice of images')
    lines.append('Another seed of the training is another source of noise, which this does not measure.')
    return '\n'.join(lines)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _percent(value: Optional[float]) -> str:
    return '' if value is None else f'{100 * value:.2f}'


def template_environment(folder: Optional[Path] = None):
    """jinja2 over this package's pages, or over a folder of Markdown, with a filter `percent` for values in 0..1."""
    try:
        import jinja2
    except ImportError as error:
        raise InputError('Reports and cards need jinja2: pip install "timm-fan[train]".') from error
    loader = jinja2.PackageLoader('timm_fan') if folder is None else jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(
        loader=loader, autoescape=folder is None, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined)
    environment.filters['percent'] = _percent
    return environment


def _page(
        scores: MultiLabelScores,
        intervals: Optional[Dict[str, Interval]],
        groups: Optional[GroupScores],
        pictures: Sequence[Path],
        grids: Dict[str, Sequence[Shown]],
        dataset: MultiLabelDataset,
        data: str,
        title: str,
) -> str:
    environment = template_environment()
    headline = []
    for name, value in (('mAP', scores.mAP), ('CF1', scores.all.CF1), ('OF1', scores.all.OF1)):
        headline.append((name, value, (intervals or {}).get(name)))
    measured = {'mAP': scores.mAP, **asdict(scores.all), **{f'top3_{k}': v for k, v in asdict(scores.top3).items()}}
    by_ap = sorted((c for c in scores.per_class if c.AP is not None), key=lambda c: -c.AP)
    return environment.get_template('report.html').render(
        title=title, data=data, scores=scores, headline=headline, groups=groups, by_ap=by_ap,
        measured=measured, paper=paper_figures(data) or {},
        aps={c.name: c.AP for c in scores.per_class}, positives={c.name: c.positives for c in scores.per_class},
        pictures={p.stem: _base64(p.read_bytes()) for p in pictures},
        grids={k: [(_base64(thumbnail(dataset, s.index)), s.lines) for s in shown] for k, shown in grids.items()})


def write_report(
        folder: Union[str, Path],
        scores: MultiLabelScores,
        logits: torch.Tensor,
        targets: torch.Tensor,
        dataset: MultiLabelDataset,
        history: Optional[List[Dict[str, Any]]] = None,
        threshold: Union[float, Sequence[float]] = 0.5,
        num_images: int = 16,
        intervals: Optional[Dict[str, Interval]] = None,
        groups: Optional[GroupScores] = None,
        data: str = '',
        title: str = 'Evaluation',
        split: str = 'val',
        weights: Optional[str] = None,
) -> None:
    """Write report.html, which holds all pictures, the pictures beside it, metrics.json and per_class.csv.

    Args:
        folder: What else it holds stays.
        scores: Of `timm_fan.metrics.evaluate_logits`.
        logits: (N, num_classes) in the order of the data set.
        targets: As they were evaluated, (N, num_classes).
        dataset: The data set that was evaluated.
        history: One dict an epoch: epoch, train_loss, and val_loss, mAP, CF1, OF1, or None without an evaluation.
        threshold: Probability above which a label counts as predicted in the pictures, or one for each class.
        num_images: Pictures shown.
        intervals: Of `timm_fan.uncertainty.bootstrap`.
        groups: Of `timm_fan.groups.score_groups`.
        data: Name of the data source; the paper's figures for it stand beside the measured ones.
        title: Of the page.
        split: Of the data set.
        weights: SHA-256 of the weights that were evaluated; a model card takes figures of its own weights only.

    Raises:
        InputError: matplotlib or jinja2 is not installed.
    """
    with filled_folder(folder) as new:
        content = dict(data=data, split=split, weights=weights, **scores.to_dict())
        if intervals:
            content['intervals'] = {name: asdict(i) for name, i in intervals.items()}
        if groups is not None:
            content['groups'] = asdict(groups)
        (new / 'metrics.json').write_text(json.dumps(content, indent=2) + '\n')
        with open(new / 'per_class.csv', 'w', newline='') as file:
            writer = csv.writer(file)
            columns = ['AP', 'precision', 'recall', 'F1', 'positives', 'images', 'threshold']
            writer.writerow(['class', *columns])
            for c in scores.per_class:
                writer.writerow([c.name, *(getattr(c, k) for k in columns)])
        if history:
            plot_curves(history, new / 'curves.png')
        if any(c.AP is not None for c in scores.per_class):
            plot_per_class(scores, new / 'per_class.png')
        plot_precision_recall(logits, targets, scores, new / 'precision_recall.png')
        plots = sorted(new.glob('*.png'))
        grids = {}
        if isinstance(dataset, MultiLabelDataset):  # a stream does not give its images again
            grids['predictions'] = choose_predictions(logits, dataset, threshold, num_images)
            for kind in ('false_positives', 'false_negatives'):
                grids[kind] = choose_errors(logits, targets, dataset, kind)
        for name, shown in grids.items():
            plot_images(dataset, shown, new / f'{name}.png')
        page = _page(scores, intervals, groups, plots, grids, dataset, data, title)
        (new / 'report.html').write_text(page)
