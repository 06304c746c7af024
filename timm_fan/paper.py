"""Figures that the FAN paper reports, in percent, to stand beside measured ones in a column of their own.

https://doi.org/10.1109/ACCESS.2019.2929512, Tables 1 and 2.
"""
from typing import Dict, Optional

__all__ = ['paper_figures']

_KEYS = (
    'mAP', 'CF1', 'CP', 'CR', 'OF1', 'OP', 'OR',
    'top3_CF1', 'top3_CP', 'top3_CR', 'top3_OF1', 'top3_OP', 'top3_OR')

_TABLES = {
    'coco2014': {
        'ResNet-101': (75.2, 69.5, 80.8, 63.4, 74.4, 82.2, 68.0, 65.9, 84.3, 57.4, 71.7, 86.5, 61.3),
        'ResNet-101 FAN': (81.8, 77.1, 84.6, 70.8, 79.5, 85.2, 74.5, 73.6, 88.4, 63.0, 75.9, 89.7, 65.7),
    },
    'voc2007': {'ResNet-101 FAN': (92.6,)},
}


def paper_figures(data: str) -> Optional[Dict[str, Dict[str, float]]]:
    """Model -> figure -> percent for a data source, as `create_dataset` names it; None if the paper has none."""
    table = _TABLES.get(data.partition('?')[0])
    return table and {model: dict(zip(_KEYS, values)) for model, values in table.items()}
