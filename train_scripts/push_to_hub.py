#!/usr/bin/env python3
"""Publish a trained model on the Hugging Face Hub: safetensors, config.json, a model card, and the run's records.

    python train_scripts/push_to_hub.py runs/scenes me/fan_scenes --dry-run
    python train_scripts/push_to_hub.py runs/scenes me/fan_scenes --private
    python train_scripts/push_to_hub.py --update-cards                           # those in hub_cards/

Log in first (hf auth login, or HF_TOKEN). Repeated, it sends what changed, as one commit.
"""
import argparse
import sys
from pathlib import Path

import timm

from timm_fan import InputError
from timm_fan.card import RUN_FOLDERS, card_of_run, card_of_variant, published_files
from timm_fan.errors import exit_on_input_error
from timm_fan.files import write_text
from timm_fan.hub import PushedFile, compare_with_repo, push_files

CARDS = Path(__file__).resolve().parents[1] / 'hub_cards'
UNMEASURED = 'Nothing has been measured yet'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('folder', nargs='?', help='run or model folder of train.py')
    add('repo', nargs='?', help='owner/name on the Hub')
    add('--dry-run', action='store_true', help='show the card and what would be sent, and send nothing')
    add('--private', action='store_true', help='make a new repository private')
    add('--revision', help='push to this branch, which is created if need be')
    add('--pr', action='store_true', help='open a pull request')
    add('--message', default='Upload model', help='of the commit (default: %(default)s)')
    add('--license', help="of the weights (default: the pretrained backbone's, or apache-2.0)")
    add('--data-license', help='a sentence for the card on the licence of the data, where timm_fan does not know it')
    add('--card', help='write the card into this file too, e.g. hub_cards/NAME.TAG.md')
    add('--update-cards', action='store_true', help='rewrite the cards in hub_cards/ that hold no figures')
    args = parser.parse_args()
    if args.update_cards == bool(args.repo):
        parser.error('give FOLDER and REPO, or --update-cards alone')
    return args


def update_cards() -> None:
    for name in timm.list_models('fan*', module='fan'):
        tag = timm.get_pretrained_cfg(name).tag
        file = CARDS / (f'{name}.{tag}.md' if tag else f'{name}.md')
        if not file.is_file() or UNMEASURED in file.read_text():
            write_text(file, str(card_of_variant(name, CARDS / 'template.md')))


def main() -> None:
    args = parse_args()
    if args.update_cards:
        update_cards()
        return
    card = card_of_run(args.folder, args.repo, CARDS / 'template.md', args.license, args.data_license)
    files = {'README.md': str(card).encode(), **published_files(args.folder)}
    if args.card:
        Path(args.card).parent.mkdir(parents=True, exist_ok=True)
        write_text(args.card, str(card))
    if args.dry_run:
        print(card)
        try:
            changes = compare_with_repo(files, args.repo, args.revision, RUN_FOLDERS)
        except InputError as error:
            sys.stderr.write(f'What the repository holds is not known: {error}\n')
            sizes = {k: len(v) if isinstance(v, bytes) else v.stat().st_size for k, v in files.items()}
            changes = [PushedFile(name, size, '?') for name, size in sizes.items()]
    else:
        commit, changes = push_files(
            files, args.repo, args.message, args.private, args.revision, args.pr, RUN_FOLDERS)
    for change in changes:
        print(f'{change.state:<8} {change.size / 1e6:10.3f} MB  {change.name}')
    if args.dry_run:
        print(f'Nothing was sent to {args.repo}.')
    elif commit is None:
        print(f'{args.repo} holds all of it already.')
    else:
        print(commit.pr_url or commit.commit_url)


if __name__ == '__main__':
    with exit_on_input_error():
        main()
