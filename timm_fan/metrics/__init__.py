from .average_precision import DEFINITIONS, average_precision
from .binned import BinnedEvaluator, BinnedScores
from .bootstrap import Comparison, Interval, bootstrap, compare
from .groups import GroupScores, score_groups
from .scores import ClassScores, MultiLabelScores, PrecisionRecall, evaluate_logits, precision_recall, predict_labels
from .thresholds import POLICIES, choose_thresholds, parse_policy
