#!/usr/bin/env python3
"""A page to try models: labels of a photograph with their probabilities, and where the network looked.

    python hub_cards/space/app.py                      # the model that comes with timm_fan; then open the printed URL
    python hub_cards/space/app.py runs/scenes          # run folders or hf-hub:REPO

As a Space it takes other models from the variable MODELS, e.g. `hf-hub:timm-fan/fan_resnet101.coco2014`.
"""
import argparse
import functools
import os
import re
from typing import List, Tuple

import gradio as gr

from timm_fan import InputError
from timm_fan.data import UNREADABLE, load_image
from timm_fan.explain import activation_maps, overlay
from timm_fan.models import BUNDLED
from timm_fan.prediction import Predictor

ABOUT = """
# What is in the photo?

Drop a photograph here, or choose one. The network gives **each** label its own probability, so that an image can have
many labels or none. You see those above the threshold of the network. Move the slider to see more or fewer of them, and
**choose a label to see where the network looked**: red marks the strongest evidence.
"""
LIMITS = """
The network only knows the labels that it was trained on, misses small and rare objects more often than others, and its
probabilities are not calibrated. The dimmed edge of a photograph is cropped before the network sees it. Uploads are
deleted from the server within two hours.
"""
CSS = '.gradio-container {max-width: 70rem !important} #labels label {min-height: 2.5rem}'
WHERE = 'Where the network looked'
FONT = ['system-ui', 'sans-serif']


@functools.lru_cache(maxsize=4)
def open_model(source: str) -> Predictor:
    return Predictor.load(source)


@functools.lru_cache(maxsize=16)
def probabilities(file: str, source: str) -> List[float]:
    return open_model(source).probabilities([load_image(file)])[0].tolist()


def escaped(name: str) -> str:
    """A label name as plain text in Markdown."""
    return re.sub(r'([^\w\s])', r'\\\1', ' '.join(name.split()))


def name_labels(file: str, source: str, own: bool, threshold: float) -> Tuple[str, dict, dict]:
    """A sentence, the labels above the threshold, of the model itself with `own`, and no map yet."""
    no_labels, no_map = gr.Radio(choices=[], value=None, visible=False), gr.Image(None, label=WHERE)
    if not file:
        return 'No photograph yet.', no_labels, no_map
    try:
        values = probabilities(file, source)
    except InputError as error:
        return f'⚠️ **{escaped(str(error))}**', no_labels, no_map
    except UNREADABLE:
        return '⚠️ **This file is not a photograph that can be read.** Try a JPEG, PNG or WebP.', no_labels, no_map
    model = open_model(source)
    cuts = model.thresholds.tolist() if own else [threshold] * len(values)
    found = sorted(zip(values, model.names, cuts), reverse=True)
    choices = [(f'{name}  {p:.0%}', name) for p, name, cut in found if p > cut]
    above = f'above {cuts[0]:.2f}' if len(set(cuts)) == 1 else 'above the threshold that the model has for each'
    text = f'**{len(choices)} of {len(values)} labels** {above}.'
    best = f'The most likely one is {escaped(found[0][1])} with {found[0][0]:.0%}.'
    text += ' Choose one to see where the network looked.' if choices else f' {best} Lower the threshold to see it.'
    return text, gr.Radio(choices=choices, value=None, visible=bool(choices)), no_map


def move_threshold(file: str, source: str, threshold: float) -> Tuple[bool, str, dict, dict]:
    """The slider replaces the thresholds of the model."""
    return False, *name_labels(file, source, False, threshold)


def show_where(file: str, source: str, label: str):
    """The photograph below the class activation map of a label."""
    if not (file and label):
        return None
    predictor = open_model(source)
    photo = load_image(file)
    photo.thumbnail((1024, 1024))
    image = predictor.prepare([photo])[0]
    cams, _ = activation_maps(predictor.model, image, [predictor.names.index(label)])
    return gr.Image(overlay(photo, cams[0], predictor.crop(photo).box(*photo.size)), label=f'Where it sees: {label}')


def build(sources: List[str]) -> gr.Blocks:
    with gr.Blocks(title='timm-fan: what is in the photo?', delete_cache=(3600, 3600)) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(min_width=320):
                photo = gr.Image(label='Photograph', sources=['upload', 'clipboard'], height=340, elem_id='photo')
                # the file as it was uploaded, because name_labels reports unreadable ones itself
                photo.preprocess = lambda payload: payload.path if payload else None
                source = gr.Dropdown(sources, value=sources[0], label='Model', elem_id='model', interactive=True)
                own = gr.Checkbox(
                    True, label='Threshold of the model', elem_id='own', info='One for each label, if it has them.')
                threshold = gr.Slider(
                    0.01, 0.99, 0.5, step=0.01, label='Another threshold', elem_id='threshold',
                    info='A label is shown above this probability.')
            with gr.Column(min_width=320):
                text = gr.Markdown('No photograph yet.', elem_id='summary')
                labels = gr.Radio([], label='Labels', visible=False, elem_id='labels')
                where = gr.Image(label=WHERE, interactive=False, height=340, elem_id='where')
        gr.Markdown(LIMITS)
        shown = [text, labels, where]
        for change in (photo.change, source.change, own.input):
            change(name_labels, [photo, source, own, threshold], shown, show_progress='hidden')
        threshold.input(move_threshold, [photo, source, threshold], [own, *shown], show_progress='hidden')
        labels.select(show_where, [photo, source, labels], where)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = os.environ.get('MODELS', '').split() or [BUNDLED]
    parser.add_argument('models', nargs='*', default=models, help=f'run folders, or hf-hub:REPO (default: {BUNDLED})')
    parser.add_argument('--host', default=os.environ.get('GRADIO_SERVER_NAME', '127.0.0.1'))
    parser.add_argument('--port', type=int, help='default: the first free one from 7860')
    args = parser.parse_args()
    try:
        for source in args.models:
            open_model(source)  # a wrong one ends here, not in front of a visitor
    except InputError as error:
        parser.error(str(error))
    theme = gr.themes.Default(font=FONT, font_mono=['monospace'])
    try:
        build(args.models).launch(
            server_name=args.host, server_port=args.port, theme=theme, css=CSS, ssr_mode=False, show_error=True,
            footer_links=[])
    except OSError as error:
        parser.error(f'--host {args.host}, --port {args.port or "from 7860"}: {error}')


if __name__ == '__main__':
    main()
