from .class_max import ClassMax
from .correlation_learning import CorrelationLearningNetwork
from .csra import CSRA
from .feature_refinement import (
    FeatureRefinementBlock,
    FeatureRefinementNetwork,
    FeatureTransform,
    FeatureTransformBlock,
    GridPooling,
    fit_grid,
    halve,
)
from .head import HEADS, MapHead, create_head, set_classifier_bias
from .ml_decoder import MLDecoder
from .query2label import Query2Label
