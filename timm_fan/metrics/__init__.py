from .average_precision import DEFINITIONS, average_precision
from .binned import BinnedEvaluator, BinnedScores
from .bootstrap import Comparison, Interval, bootstrap, compare
from .confusion import Confusion, confused_labels
from .groups import GroupScores, score_groups
from .scores import ClassScores, MultiLabelScores, PrecisionRecall, evaluate_logits, precision_recall, predict_labels
from .text import format_binned, format_comparison, format_scores, percent, short_name, some_names
from .thresholds import POLICIES, choose_thresholds, parse_policy, rates_over_thresholds
