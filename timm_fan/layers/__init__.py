from .correlation_learning import CorrelationLearningNetwork
from .feature_refinement import (
    FeatureRefinementBlock,
    FeatureRefinementNetwork,
    FeatureTransform,
    FeatureTransformBlock,
    fit_grid,
    halve,
    halvings_to_last,
    num_halvings,
)

__all__ = [
    'CorrelationLearningNetwork',
    'FeatureRefinementBlock',
    'FeatureRefinementNetwork',
    'FeatureTransform',
    'FeatureTransformBlock',
    'fit_grid',
    'halve',
    'halvings_to_last',
    'num_halvings',
]
