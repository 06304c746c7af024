"""The page of the Space in a real browser."""
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
import timm
import torch
from helpers import LABELS, ROOT, open_browser

from timm_fan.data.sources.scenes import SCENES, compose_scene
from timm_fan.models import save_model, save_thresholds

pytest.importorskip('gradio', reason='requires gradio, of the extra [demo]')
exceptions = pytest.importorskip('selenium.common.exceptions', reason='requires selenium')
ui = pytest.importorskip('selenium.webdriver.support.ui')
APP = ROOT / 'hub_cards' / 'space' / 'app.py'
ENVIRONMENT = {**os.environ, 'PYTHONPATH': str(ROOT), 'GRADIO_ANALYTICS_ENABLED': 'False', 'HF_HUB_OFFLINE': '1'}


@pytest.fixture(scope='module')
def model_folders(tmp_path_factory):
    """Two models with constant probabilities for three labels: 90, 60 and 20 %, and 10, 10 and 97 %.

    The second one has thresholds of its own, which show its first and third label.
    """
    folders = []
    for name, bias in (('one', (0.9, 0.6, 0.2)), ('other', (0.1, 0.1, 0.97))):
        torch.manual_seed(0)
        model = timm.create_model('fan', backbone='test_resnet', embed_dim=16, num_classes=3).eval()
        with torch.no_grad():
            model.head.fc.weight.mul_(1e-3)
            model.head.fc.bias.copy_(torch.logit(torch.tensor(bias)))
        folders.append(tmp_path_factory.mktemp('models') / name)
        save_model(model, folders[-1], LABELS, dict(input_size=(3, 64, 64)))
    save_thresholds(folders[1], [0.05, 0.2, 0.9], 'class-f1')
    return folders


@pytest.fixture(scope='module')
def url(model_folders):
    process = subprocess.Popen(
        [sys.executable, '-u', APP, *model_folders], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if 'http://' in line:
                break
        assert lines and 'http://' in lines[-1], ''.join(lines)
        yield 'http://' + lines[-1].split('http://')[1].strip()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=[1200, 390])
def page(url, request):
    with open_browser(request.param) as driver:
        driver.get(url)
        yield Page(driver)


class Page:
    def __init__(self, driver):
        self.driver = driver

    def wait(self, condition: Callable, message: str = ''):
        """Wait until `condition(driver)` is true, and return its value."""
        stale = exceptions.StaleElementReferenceException  # the page has replaced an element meanwhile
        return ui.WebDriverWait(self.driver, 40, ignored_exceptions=[stale]).until(condition, message)

    def find(self, css: str):
        return self.wait(lambda d: d.find_elements('css selector', css))

    def upload(self, file: Path) -> None:
        self.find('#photo input[type=file]')[0].send_keys(str(file))

    def wait_for_summary(self, text: str) -> None:
        self.wait(lambda d: text in d.find_element('id', 'summary').text, f'{text} is not in the summary')

    def wait_for_labels(self, *expected: str) -> None:
        self.wait(lambda d: [x.text for x in d.find_elements('css selector', '#labels label')] == list(expected))

    def set_threshold(self, value: float) -> None:
        self.driver.execute_script("""
            arguments[0].value = arguments[1];
            for (const name of ['input', 'change', 'blur', 'pointerup'])
                arguments[0].dispatchEvent(new Event(name, {bubbles: true}));
        """, self.find('#threshold input[type=number]')[0], str(value))


def test_upload_threshold_label_model_and_bad_file(page, tmp_path):
    photo = tmp_path / 'photo.jpg'
    compose_scene(SCENES, 0, 'val', 3)[0].resize((160, 120)).save(photo)
    page.wait_for_summary('No photograph yet')
    page.upload(photo)
    page.wait_for_summary('2 of 3 labels above 0.50')
    page.wait_for_labels('cat 90%', 'dog 60%')
    page.set_threshold(0.1)
    page.wait_for_summary('3 of 3 labels')
    page.set_threshold(0.95)
    page.wait_for_summary('The most likely one is cat with 90%')
    page.set_threshold(0.5)
    page.wait_for_summary('2 of 3 labels')

    page.wait_for_labels('cat 90%', 'dog 60%')
    page.find('#labels label')[1].click()
    picture = page.find('#where img')[0]
    assert 'dog' in page.find('#where')[0].text
    assert page.driver.execute_script('return arguments[0].naturalWidth', picture) == 160

    # nothing is wider than the screen
    widths = page.driver.execute_script('return [document.documentElement.scrollWidth, innerWidth]')
    assert widths[0] <= widths[1]

    page.find('#model input')[0].click()
    page.find('#model [role=option]:nth-child(2), ul[role=listbox] li:nth-child(2)')[0].click()
    page.wait_for_summary('1 of 3 labels above 0.50')
    page.wait_for_labels('person 97%')
    page.find('#own input')[0].click()
    page.wait_for_summary('2 of 3 labels above the threshold that the model has for each')
    page.wait_for_labels('person 97%', 'cat 10%')

    bad = tmp_path / 'bad.jpg'
    bad.write_text('no photograph')
    page.find('#photo button[aria-label="Remove Image"], #photo button[aria-label="Clear"]')[0].click()
    page.wait_for_summary('No photograph yet')
    page.upload(bad)
    page.wait_for_summary('not a photograph that can be read')
    page.wait_for_labels()


def test_wrong_models_end_the_program_at_its_start(tmp_path):
    result = subprocess.run([sys.executable, APP, tmp_path], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert f'{tmp_path} contains no config.json' in result.stderr
