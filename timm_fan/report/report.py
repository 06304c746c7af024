"""The report of an evaluation: a page, and files with all scores."""
import base64
import csv
import io
import json
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from timm_fan.errors import InputError
from timm_fan.evaluation import Evaluation
from timm_fan.files import filled_folder, write_text
from timm_fan.metrics import (
    ClassScores,
    Confusion,
    GroupScores,
    Interval,
    MultiLabelScores,
    confused_labels,
    percent,
    some_names,
)

from .paper import paper_scores
from .pictures import Shown, choose_errors, choose_predictions, plot_images, thumbnail
from .plots import plot_curves, plot_per_class, plot_precision_recall, plot_thresholds


@dataclass(frozen=True)
class ReportInfo:
    """What a report says about an evaluation beyond its scores.

    Attributes:
        title: Title of the page.
        data: Name of the data source. Scores of the paper for it are shown next to the measured ones.
        split: Split of the data set.
        weights: SHA-256 of the evaluated weights. A model card only takes scores of its own weights.
        thresholds: A sentence about how and on which images the thresholds were chosen, and where they are stored.
        history: One dict per epoch: epoch, train_loss, and val_loss, mAP, CF1, OF1, or None without an evaluation.
    """
    title: str = 'Evaluation'
    data: str = ''
    split: str = 'val'
    weights: Optional[str] = None
    thresholds: str = ''
    history: Sequence[Dict[str, Any]] = field(default=())


def measured_scores(scores: Dict[str, Any]) -> Dict[str, float]:
    """mAP, CP, ..., OF1, top3_CP, ..., top3_OF1 in 0..1, from `MultiLabelScores` as a dict."""
    return {'mAP': scores['mAP'], **scores['all'], **{f'top3_{k}': v for k, v in scores['top3'].items()}}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _render(
        evaluation: Evaluation, info: ReportInfo, intervals: Dict[str, Interval], groups: GroupScores,
        confusions: Sequence[Confusion], plots: Sequence[Path], grids: Dict[str, List[Shown]]) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise InputError('Reports require jinja2: pip install "timm-fan[train]".') from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('timm_fan.report'), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined)
    environment.filters.update(percent=percent, some_names=some_names)
    scores = evaluation.scores
    used = [c.threshold for c in scores.per_class]
    return environment.get_template('report.html').render(
        title=info.title, data=info.data, scores=scores, groups=groups, confusions=confusions,
        paper=paper_scores(info.data) or {}, thresholds=info.thresholds, lowest=min(used), highest=max(used),
        headline=[(name, value, intervals.get(name)) for name, value in (
            ('mAP', scores.mAP), ('CF1', scores.all.CF1), ('OF1', scores.all.OF1))],
        measured={name: percent(value) for name, value in measured_scores(asdict(scores)).items()},
        by_ap=sorted((c for c in scores.per_class if c.AP is not None), key=lambda c: -c.AP),
        classes={c.name: c for c in scores.per_class},
        pictures={p.stem: _base64(p.read_bytes()) for p in plots},
        grids={
            name: [(_base64(thumbnail(evaluation.dataset, s.index)), s.lines) for s in shown]
            for name, shown in grids.items()})


def _per_class_csv(scores: MultiLabelScores) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['class', *(column.name for column in fields(ClassScores)[1:])])
    writer.writerows(map(astuple, scores.per_class))
    return text.getvalue()


def write_report(
        folder: Union[str, Path],
        evaluation: Evaluation,
        info: ReportInfo,
        intervals: Dict[str, Interval],
        groups: GroupScores,
) -> None:
    """Write report.html, which contains all pictures, the pictures themselves, metrics.json and per_class.csv.

    Args:
        folder: Folder to write to. Other files in it stay.
        evaluation: What to report on.
        info: Title, data and training history.
        intervals: From `Evaluation.intervals`.
        groups: From `Evaluation.groups`.

    Raises:
        InputError: matplotlib or jinja2 is not installed.
    """
    confusions = confused_labels(
        evaluation.logits, evaluation.targets, evaluation.dataset.class_names, evaluation.threshold)
    with filled_folder(folder) as new:
        content = dict(
            data=info.data, split=info.split, weights=info.weights, **evaluation.to_dict(intervals, groups),
            confusions=list(map(asdict, confusions)))
        write_text(new / 'metrics.json', json.dumps(content, indent=2) + '\n')
        write_text(new / 'per_class.csv', _per_class_csv(evaluation.scores))
        if info.history:
            plot_curves(info.history, new / 'curves.png')
        if any(c.AP is not None for c in evaluation.scores.per_class):
            plot_per_class(evaluation.scores, new / 'per_class.png')
        plot_precision_recall(evaluation, new / 'precision_recall.png')
        plot_thresholds(evaluation, new / 'thresholds.png')
        plots = sorted(new.glob('*.png'))
        grids = dict(
            predictions=choose_predictions(evaluation),
            **{kind: choose_errors(evaluation, kind) for kind in ('false_positives', 'false_negatives')})
        for name, shown in grids.items():
            plot_images(evaluation.dataset, shown, new / f'{name}.png')
        write_text(new / 'report.html', _render(
            evaluation, info, intervals, groups, confusions, plots, grids))
