import pytest

from timm_fan import InputError
from timm_fan.files import read_yaml, write_text


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(OSError) as error:
        write_text(tmp_path / 'folder', 'text')
    assert error.value.filename == str(tmp_path / 'folder')
    assert [p.name for p in tmp_path.iterdir()] == ['folder']
    with pytest.raises(FileNotFoundError) as error:
        write_text(tmp_path / 'none' / 'file.md', 'text')
    assert error.value.filename == str(tmp_path / 'none' / 'file.md')


@pytest.mark.parametrize('content, words', [
    (b'epochs: 3 # caf\xe9', 'is not UTF-8 text'),
    (b'epochs: [', 'is not valid YAML'),
    (b'a: ' + b'[' * 3000, 'is not valid YAML'),
])
def test_broken_yaml_ends_in_one_message(tmp_path, content, words):
    (tmp_path / 'own.yaml').write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_yaml(tmp_path / 'own.yaml')
    assert str(error.value).count('own.yaml is not') == 1
