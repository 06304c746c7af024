"""Which labels are confused with each other."""
from dataclasses import dataclass
from typing import List, Sequence, Union

import torch

from .scores import predict_labels


@dataclass(frozen=True)
class Confusion:
    """A pair of labels.

    Attributes:
        missed: Class that is present and not predicted.
        predicted: Class that is absent and predicted instead.
        images: Images with both errors.
        misses: All images where `missed` is not predicted although it is present.
    """
    missed: str
    predicted: str
    images: int
    misses: int


def confused_labels(
        logits: torch.Tensor,
        targets: torch.Tensor,
        class_names: Sequence[str],
        threshold: Union[float, Sequence[float]] = 0.5,
        max_pairs: int = 20,
) -> List[Confusion]:
    """The pairs of a missed and a wrong label that are most frequent in the same images.

    An image with several labels does not say which of them a wrong one was taken for. Labels that were found were not
    confused, so each missed label is paired with each wrong one: category 3 of the Multi-Label Confusion Matrix,
    Heydarian et al., IEEE Access 10, 2022, https://doi.org/10.1109/ACCESS.2022.3151048. Unknown labels are ignored.

    Args:
        logits: (N, num_classes).
        targets: 1 present, 0 absent, -1 unknown, (N, num_classes).
        class_names: Names in class order.
        threshold: Probability above which a label is predicted, one for all classes or one per class.
        max_pairs: Number of pairs to return at most.
    """
    predicted = predict_labels(logits, threshold)
    missed, wrong = ~predicted & (targets == 1), predicted & (targets == 0)
    misses = missed.sum(0)
    both = missed.any(dim=1) & wrong.any(dim=1)
    missed, wrong = missed[both].float(), wrong[both].float()
    found = []
    for start in range(0, len(class_names), 1000):  # the whole matrix may not fit in memory
        counts = (missed[:, start:start + 1000].T @ wrong).flatten()
        highest, cells = counts.topk(min(max_pairs, len(counts)))
        found += [
            (int(count), start + cell // len(class_names), cell % len(class_names))
            for count, cell in zip(highest.tolist(), cells.tolist()) if count]
    found.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [
        Confusion(class_names[i], class_names[j], count, int(misses[i])) for count, i, j in found[:max_pairs]]
