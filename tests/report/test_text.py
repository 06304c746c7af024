from timm_fan.report import format_scores


def test_scores_as_text_have_the_protocol_and_every_score(evaluation):
    text = format_scores(evaluation.scores, evaluation.intervals(samples=20), evaluation.groups())
    for word in ('12 images', 'non-interpolated', 'voc07', 'sample F1', '95% interval over images', 'rarest',
                 'smallest', 'recall by size', '1 images without a known label'):
        assert word in text
