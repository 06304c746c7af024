#!/usr/bin/env python3
"""Publish a trained model on the Hugging Face Hub: safetensors, config.json, a model card, and the records of the run.

    python train_scripts/push_to_hub.py runs/scenes me/fan_scenes --dry-run
    python train_scripts/push_to_hub.py runs/scenes me/fan_scenes --private
    python train_scripts/push_to_hub.py --update-cards                           # those in hub_cards/

Log in first, with hf auth login or HF_TOKEN. Run it again to send what has changed, in one commit.
"""
import argparse
import sys
import tempfile
from pathlib import Path
from typing import List

from command_line import create_parser, run_program

import timm
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from timm_fan import InputError
from timm_fan.files import read_text, write_text
from timm_fan.hub import hub_errors
from timm_fan.publish.card import DELETE_PATTERNS, card_of_run, card_of_variant, is_unmeasured, write_publication
from timm_fan.publish.push import PushedFile, PushOptions, compare_with_repo, push_folder

CARDS = Path(__file__).resolve().parents[1] / 'hub_cards'


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    add = parser.add_argument
    add('folder', nargs='?', help='run or model folder')
    add('repo', nargs='?', help='owner/name on the Hub')
    add('--dry-run', action='store_true', help='show the card and the files, and send nothing')
    add('--private', action='store_true', help='make a new repository private')
    add('--revision', metavar='BRANCH', help='push to this branch, created if it does not exist')
    add('--pr', action='store_true', help='open a pull request')
    add('--message', default='Upload model', help='commit message (default: %(default)s)')
    add('--license',
        help='licence of the weights (default: that of the pretrained backbone; unknown for a fine-tuned model;'
        ' apache-2.0 for one from scratch)')
    add('--data-license', metavar='TEXT', help='sentence for the card about the licence of the data')
    add('--card', type=Path, metavar='FILE', help='also write the card to this file, e.g. hub_cards/NAME.TAG.md')
    add('--update-cards', action='store_true', help='rewrite the cards in hub_cards/ that have no scores')
    return parser


def update_cards() -> None:
    if not CARDS.is_dir():
        raise InputError(f'`update_cards`: no folder {CARDS}. It is only in a clone of the repository.')
    for name in timm.list_models('fan*', module='fan'):
        tag = timm.get_pretrained_cfg(name).tag
        file = CARDS / (f'{name}.{tag}.md' if tag else f'{name}.md')
        if not file.is_file() or is_unmeasured(read_text(file)):
            write_text(file, str(card_of_variant(name)))


def print_changes(changes: List[PushedFile]) -> None:
    for change in changes:
        print(f'{change.state:<8} {change.size / 1e6:10.3f} MB  {change.name}')


def show(folder: Path, card: ModelCard, repo: str, options: PushOptions) -> None:
    """Print what would be sent."""
    print(card)
    try:
        changes = compare_with_repo(folder, repo, options)
    except InputError as error:
        sys.stderr.write(f'The content of the repository is unknown: {error}\n')
        files = sorted(file for file in folder.rglob('*') if file.is_file())
        changes = [PushedFile(f.relative_to(folder).as_posix(), f.stat().st_size, '?') for f in files]
    print_changes(changes)
    print(f'Nothing was sent to {repo}.')


def main(args: argparse.Namespace) -> None:
    if args.update_cards == bool(args.repo) or (args.update_cards and (args.folder or args.dry_run)):
        raise InputError('Pass FOLDER and REPO, or `update_cards` alone.')
    if args.update_cards:
        update_cards()
        return
    with hub_errors(args.repo):
        validate_repo_id(args.repo)
    card = card_of_run(args.folder, args.repo, args.license, args.data_license)
    if args.card:
        args.card.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.card, str(card))
    options = PushOptions(args.message, args.private, args.revision, args.pr, DELETE_PATTERNS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_publication(args.folder, card, folder)
        if args.dry_run:
            show(folder, card, args.repo, options)
            return
        changes, commit = push_folder(folder, args.repo, options)
        print_changes(changes)
        print(f'{args.repo} is up to date.' if commit is None else commit.pr_url or commit.commit_url)


if __name__ == '__main__':
    run_program(build_parser(), main)
