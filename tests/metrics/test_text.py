from timm_fan.metrics import format_scores, short_name, some_names


def test_scores_as_text_have_the_protocol_and_every_score(evaluation):
    text = format_scores(evaluation.scores, evaluation.intervals(samples=20), evaluation.groups())
    for word in ('12 images', 'non-interpolated', 'voc07', 'sample F1', '95% interval over images', 'rarest',
                 'smallest', 'recall by size', '1 images without a known label'):
        assert word in text


def test_names_are_short_and_on_one_line():
    assert short_name('line\nbreak') == r'line\nbreak' and short_name('x' * 40) == 'x' * 31 + '…'
    assert some_names(['a', 'b'], 2) == 'a, b' and some_names(['a', 'b', 'c', 'd'], 2) == 'a, b and 2 more'
