"""Scores as text for people."""
from typing import Dict, List, Optional, Sequence

from timm_fan.files import printable

from .binned import BinnedScores
from .bootstrap import Comparison, Interval
from .groups import GroupScores
from .scores import MultiLabelScores, PrecisionRecall


def percent(value: Optional[float], spec: str = '.2f') -> str:
    """A share in 0..1 as a percentage, such as '81.80', or '' for None."""
    return '' if value is None else f'{100 * value:{spec}}'


def short_name(name: str, width: int = 32) -> str:
    """A class name on one line, of at most `width` characters."""
    name = printable(name)
    return name if len(name) <= width else f'{name[:width - 1]}…'


def some_names(names: Sequence[str], count: int = 20) -> str:
    """The first `count` names, and the number of the others."""
    more = f' and {len(names) - count} more' if len(names) > count else ''
    return ', '.join(map(printable, names[:count])) + more


def _table(all_labels: PrecisionRecall, top3: PrecisionRecall) -> List[str]:
    lines = ['          CP     CR    CF1     OP     OR    OF1']
    for name, scores in (('All', all_labels), ('Top-3', top3)):
        values = (scores.CP, scores.CR, scores.CF1, scores.OP, scores.OR, scores.OF1)
        lines.append(f'{name:<6}' + ' '.join(percent(v, '6.2f') for v in values))
    return lines


def format_scores(
        scores: MultiLabelScores,
        intervals: Optional[Dict[str, Interval]] = None,
        groups: Optional[GroupScores] = None,
) -> str:
    """All scores in percent, with the number of images and the protocol."""
    lines = [f'mAP {percent(scores.mAP)} on {scores.num_images} images', *_table(scores.all, scores.top3)]
    by_definition = ', '.join(f'{name} {percent(v)}' for name, v in scores.mAP_by_definition.items())
    lines.append(f'mAP by definition: {by_definition}')
    lines.append(f'sample F1 {percent(scores.sample_f1)}, exact match {percent(scores.exact_match)}')
    if intervals:
        lines.append('95% interval over images: ' + ', '.join(
            f'{name} {percent(i.low)} to {percent(i.high)}' for name, i in intervals.items()))
    if groups is not None:
        for name, group in (('rarest', groups.tail), ('smallest', groups.small)):
            if group is not None and group.mAP is not None:
                classes = some_names(group.classes)
                lines.append(f'mAP of the {len(group.classes)} {name}: {percent(group.mAP)} ({classes})')
        if groups.recall_by_size:
            lines.append('recall by size of the object: ' + ', '.join(
                f'{name} {percent(r.recall)} ({r.labels})' for name, r in groups.recall_by_size.items()
                if r.recall is not None))
    lines.append(scores.protocol)
    if scores.num_unlabelled:
        lines.append(f'{scores.num_unlabelled} images without a known label, or unreadable, were left out')
    if scores.classes_without_positives:
        classes = some_names(scores.classes_without_positives)
        lines.append(f'left out of mAP, CP and CR, without a positive image: {classes}')
    return '\n'.join(lines)


def format_binned(scores: BinnedScores) -> str:
    """Scores of an evaluation in bins."""
    lines = [f'mAP {percent(scores.mAP)} on {scores.num_images} images, in bins; the exact mAP is between'
             f' {percent(scores.mAP_low)} and {percent(scores.mAP_high)}']
    return '\n'.join(lines + _table(scores.all, scores.top3))


def format_comparison(first: str, second: str, found: Dict[str, Comparison], num_images: int) -> str:
    """The result of `timm_fan.metrics.compare`, in percentage points."""
    lines = [f'{second} minus {first}, on the same {num_images} images:']
    for name, c in found.items():
        verdict = 'exceeds' if c.exceeds_noise else 'does not exceed'
        lines.append(
            f'{name:<4} {percent(c.difference, "+.2f")}, 95% {percent(c.interval.low, "+.2f")} to'
            f' {percent(c.interval.high, "+.2f")}: {verdict} the noise from the choice of images')
    lines.append('Training with another seed adds noise, which is not measured here.')
    return '\n'.join(lines)
