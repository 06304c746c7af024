from .engine import Batches, EncodedPhotos, PredictedBatch, default_batch_size, predict_photos
from .folding import fold_batch_norms
from .inputs import find_photos, open_images
from .output import FORMATS, EmbeddingsFile, PredictionFile, Row, format_of, rows_of
from .predictor import Label, Predictor, predict
