import pytest

from timm_fan import InputError
from timm_fan.publish import PushOptions, compare_with_repo, push_folder

CARD = b'---\nlicense: mit\n---\n'


def test_changes_are_those_of_the_files(server, tmp_path):
    server.put('me/model', {
        'README.md': b'old', 'LICENSE': b'same', 'notes.txt': b'by hand', 'model.safetensors': b'same weights',
        'training/old.json': b'{}'})
    repo = server.repos['me/model']
    (tmp_path / 'evaluation').mkdir()
    files = {
        'README.md': CARD, 'LICENSE': b'same', 'model.safetensors': b'same weights', 'evaluation/new.json': b'[]'}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    options = PushOptions(delete_patterns=['training/*'])
    states = {
        'README.md': 'changed', 'LICENSE': 'same', 'model.safetensors': 'same', 'evaluation/new.json': 'new',
        'training/old.json': 'removed'}
    assert {f.name: f.state for f in compare_with_repo(tmp_path, 'me/model', options)} == states
    # a repository that does not exist has no files, a branch those of main
    assert {f.state for f in compare_with_repo(tmp_path, 'me/other', options)} == {'new'}
    branch = options._replace(revision='branch')
    assert {f.name: f.state for f in compare_with_repo(tmp_path, 'me/model', branch)} == states

    commits = len(repo.commits)
    changes, commit = push_folder(tmp_path, 'me/model', options)
    assert {f.name: f.state for f in changes} == states
    assert len(repo.commits) == commits + 1 and commit.oid == repo.refs['main']
    contents = {name: file.content for name, file in repo.commits[commit.oid].items()}
    assert contents == {**files, 'notes.txt': b'by hand'}
    assert not [request for request in server.requests if request[0] == 'PUT'], 'the same weights were uploaded'
    changes, commit = push_folder(tmp_path, 'me/model', options)
    assert {f.state for f in changes} == {'same'} and commit is None
    assert len(repo.commits) == commits + 1


def test_card_that_the_hub_refuses_changes_nothing(server, tmp_path):
    server.put('me/model', {'README.md': CARD})
    (tmp_path / 'README.md').write_text('---\nlibrary_name: timm\n---\n')
    with pytest.raises(InputError, match='me/model: the Hub refuses the upload. Invalid metadata'):
        push_folder(tmp_path, 'me/model', PushOptions())
    repo = server.repos['me/model']
    assert [file.content for file in repo.commits[repo.refs['main']].values()] == [CARD]
