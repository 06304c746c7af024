"""Scores that the FAN paper reports, in percent, to show next to measured ones in a separate column.

https://doi.org/10.1109/ACCESS.2019.2929512, Tables 1 and 7.
"""
from typing import Dict, Optional

_KEYS = (
    'mAP', 'CF1', 'CP', 'CR', 'OF1', 'OP', 'OR',
    'top3_CF1', 'top3_CP', 'top3_CR', 'top3_OF1', 'top3_OP', 'top3_OR')

_TABLES = {
    'coco2014': {
        'VGG-16': (67.8, 63.3, 72.0, 56.4, 68.9, 76.8, 62.4, 60.4, 75.1, 50.5, 66.4, 81.5, 66.0),
        'VGG-16 FAN': (73.7, 68.5, 80.0, 59.8, 73.0, 83.1, 65.2, 67.6, 81.6, 57.7, 72.8, 86.8, 62.6),
        'ResNet-101': (75.2, 69.5, 80.8, 63.4, 74.4, 82.2, 68.0, 65.9, 84.3, 57.4, 71.7, 86.5, 61.3),
        'ResNet-101 FAN': (81.8, 77.1, 84.6, 70.8, 79.5, 85.2, 74.5, 73.6, 88.4, 63.0, 75.9, 89.7, 65.7),
    },
    'voc2007': {
        'VGG-16': (86.5, 79.5, 82.9, 76.3, 82.0, 82.9, 81.1),
        'VGG-16 FAN': (91.1, 84.1, 89.7, 79.1, 86.7, 91.2, 82.6),
        'ResNet-101': (87.8, 81.6, 86.8, 76.9, 83.6, 88.8, 78.6),
        'ResNet-101 FAN': (92.6, 87.0, 88.1, 85.6, 88.5, 90.3, 86.8),
    },
}


def paper_scores(data: str) -> Optional[Dict[str, Dict[str, float]]]:
    """Model -> metric -> percent for a data source of `create_dataset`, None if the paper has none for its images."""
    name, _, options = data.partition('?')
    table = None if 'val=' in options else _TABLES.get(name)
    return table and {model: dict(zip(_KEYS, values)) for model, values in table.items()}
