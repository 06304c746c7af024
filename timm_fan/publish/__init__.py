from .card import DELETE_PATTERNS, card_of_release, card_of_run, card_of_variant, is_unmeasured, write_publication
from .push import PushedFile, PushOptions, compare_with_repo, push_folder
