"""The Hugging Face Hub: names of repositories, and its errors in plain words."""
import contextlib
import os
from typing import Iterator, Optional

from huggingface_hub import constants, errors, get_token

from .errors import InputError

# organization with the weights of the default tags; a mirror sets its own
HUB_ORG = os.environ.get('TIMM_FAN_HUB_ORG', 'timm-fan')
# files of a model, on the Hub and in a folder
CONFIG_NAME, WEIGHTS_NAME = 'config.json', 'model.safetensors'
_LOG_IN = '(hf auth login, or HF_TOKEN)'


def default_repo(variant: str, tag: Optional[str]) -> str:
    """Repository with the weights of a model, e.g. `timm-fan/fan_resnet101.coco2014`."""
    return f'{HUB_ORG}/{variant}.{tag}' if tag else f'{HUB_ORG}/{variant}'


def _in_plain_words(error: BaseException) -> str:
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set. Unset it to reach the Hub.'
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.HfHubHTTPError):  # the Hub did answer
            return _in_plain_words(error.__cause__)
        if constants.HF_HUB_OFFLINE:
            return 'it is not in the cache, and HF_HUB_OFFLINE is set.'
        return f'it is not in the cache, and the Hub cannot be reached ({error.__cause__ or "no answer"}).'
    if isinstance(error, errors.GatedRepoError):
        return f'access is restricted. Accept the conditions on its page, then log in {_LOG_IN}.'
    if isinstance(error, errors.RevisionNotFoundError):
        return 'it has no such revision. Use an existing branch, tag or commit.'
    if isinstance(error, errors.EntryNotFoundError):
        return f'it lacks a required file ({str(error).strip().splitlines()[-1]}).'
    if isinstance(error, errors.RepositoryNotFoundError):
        return f'no such repository, or a private one that your token cannot read {_LOG_IN}.'
    if status == 401:
        known = 'does not know your token. Log in again' if get_token() else 'does not know you. Log in'
        return f'the Hub {known} {_LOG_IN}.'
    if status == 403:
        return f'your token lacks the permission. Use one with write access {_LOG_IN}.'
    if status == 409:
        return 'someone else changed it at the same time. Try again.'
    if isinstance(error, errors.HFValidationError):
        return f'{error}'
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn errors of the Hub's client into an InputError: `what`, a colon, and the cause with its remedy."""
    try:
        yield
    except (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise InputError(f'{what}: {_in_plain_words(error)}') from error
    except Exception as error:
        # errors of the client's HTTP library: those of requests are OSErrors, those of httpx are not
        if type(error).__module__.split('.')[0] in ('httpx', 'httpx2', 'httpcore', 'httpcore2'):
            raise InputError(f'{what}: the Hub cannot be reached ({type(error).__name__}: {error}).') from error
        raise
