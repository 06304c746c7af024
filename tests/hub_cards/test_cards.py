import timm
from helpers import ROOT
from huggingface_hub import ModelCard

from timm_fan.publish import card_of_variant, is_unmeasured

CARDS = ROOT / 'hub_cards'


def card_files():
    tags = {name: timm.get_pretrained_cfg(name).tag for name in timm.list_models('fan*', module='fan')}
    return {name: CARDS / (f'{name}.{tag}.md' if tag else f'{name}.md') for name, tag in tags.items()}


def test_cards_are_up_to_date(server):
    files = card_files()
    assert {f.name for f in CARDS.glob('*.md')} - {'README.md'} == {f.name for f in files.values()}
    for name, file in files.items():
        card = ModelCard(file.read_text())
        card.validate()
        assert card.data.base_model.startswith('timm/') and card.data.pipeline_tag == 'image-classification'
        # update_cards keeps the card of a trained model, and rewrites the others
        if is_unmeasured(card.text):
            assert file.read_text() == str(card_of_variant(name)), 'run push_to_hub.py --update-cards'
