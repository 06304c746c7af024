"""Tables as spreadsheets and pandas write them: delimiters, encodings, headers, and 1 and 0 in all forms."""
import itertools

import pytest
from PIL import Image

from timm_fan import InputError
from timm_fan.data import create_dataset

NAMES = ['cat', 'red dog']
ROWS = [('0.png', [1, 0]), ('1.png', [1, 1]), ('2.png', [0, 0])]
TARGETS = [values for _, values in ROWS]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for name, _ in ROWS:
        Image.new('RGB', (8, 8), (0, 0, int(name[0]))).save(folder / name)
    return folder


def read(images, folder, text, options='', encoding='utf-8', kind='csv'):
    (folder / f'train.{kind}').write_bytes(text.encode(encoding))
    dataset = create_dataset(f'table:{{split}}.{kind}?images={images}{options}', folder, 'train')
    return dataset.class_names, dataset.targets().tolist()


ENCODINGS = ['utf-8', 'utf-8-sig', 'utf-16']
DELIMITERS = [',', ';', '\t', '|']
HEADERS = ['image', 'Image', ' image', 'FileName', 'file_name']
QUIRKS = ['', 'index', 'Unnamed: 0', 'empty column', 'empty rows', 'sep=', 'blank after']
ONES = [('1', '0'), ('1.0', '0.0'), ('1.00', '0.00'), ('True', 'False'), ('TRUE', 'FALSE')]


def table(lines, delimiter, quirk):
    """Lines of cells as a CSV text with what programs add to it."""
    lines = [list(line) for line in lines]
    if quirk in ('index', 'Unnamed: 0'):
        lines = [['' if quirk == 'index' else quirk, *lines[0]], *([str(i), *row] for i, row in enumerate(lines[1:]))]
    if quirk == 'empty column':
        lines = [[*row, ''] for row in lines]
    if quirk == 'empty rows':
        lines += [[''] * len(lines[0])] * 2
    blank = ' ' if quirk == 'blank after' else ''
    text = '\r\n'.join((delimiter + blank).join(row) for row in lines) + '\r\n'
    return f'sep={delimiter}\r\n{text}' if quirk == 'sep=' else text


CLASS_COLUMNS = list(itertools.product(DELIMITERS, QUIRKS, ONES)) + [
    (delimiter, '', ONES[0]) for delimiter in DELIMITERS]


@pytest.mark.parametrize('delimiter, quirk, ones', CLASS_COLUMNS)
def test_tables_with_a_column_for_each_class(images, tmp_path, delimiter, quirk, ones):
    for number, (encoding, header) in enumerate(zip(itertools.cycle(ENCODINGS), HEADERS)):
        lines = [[header, *NAMES], *([name, *(ones[not v] for v in values)] for name, values in ROWS)]
        text = table(lines, delimiter, quirk)
        assert read(images, tmp_path, text, encoding=encoding) == (NAMES, TARGETS), (number, text)


FORMS = {
    'json': lambda names: '"[' + ', '.join(f'""{name}""' for name in names) + ']"',
    'python': lambda names: '"[' + ', '.join(f"'{name}'" for name in names) + ']"',
    'choices': lambda names: '"{""choices"": [' + ', '.join(f'""{name}""' for name in names) + ']}"',
    **{sep: lambda names, sep=sep: '"' + f'{sep} '.join(names) + '"' for sep in '|;,'},
}
COLUMNS = ['labels', 'Label', 'TAGS', 'choice', 'Finding Labels']


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('delimiter', DELIMITERS)
@pytest.mark.parametrize('quirk', [q for q in QUIRKS if q != 'blank after'])
def test_tables_with_a_column_of_labels(images, tmp_path, delimiter, quirk, form):
    for encoding, column in zip(itertools.cycle(ENCODINGS), COLUMNS):
        lines = [['image', column]]
        for name, values in ROWS:
            cell = FORMS[form]([n for n, v in zip(NAMES, values) if v])
            lines.append([name, cell])
        assert read(images, tmp_path, table(lines, delimiter, quirk), encoding=encoding) == (NAMES, TARGETS)


def test_a_tags_column_of_0_and_1_is_a_class(images, tmp_path):
    assert read(images, tmp_path, 'image,tags,labels\n0.png,1,0\n1.png,0,0\n')[0] == ['tags', 'labels']
    assert read(images, tmp_path, 'image,label\n0.png,1\n1.png,0\n', '&labels=label')[0] == ['0', '1']


@pytest.mark.parametrize('text, words', [
    ('image,cat,sex\n0.png,1,M\n1.png,0,F\n', r"columns that are no classes.*: sex \(line 2: 'M'\).*classes=FILE"),
    ('image,comment\n0.png,nice\n', 'has no column of labels'),
    ('image,cat,cat \n0.png,1,0\n', "several columns named 'cat'"),
    ('cat,dog\n0.png,1\n', 'has no column for the image'),
    ('image,labels\ncat,0.png\ndog,1.png\n', "Are the columns 'image' and 'labels' swapped"),
    ('image,labels\n0.png,cat,dog\n', 'line 2: 3 cells, but the header has 2'),
    ('image,cat,dog\n0.png,1,0\n1.png,yes,1\n2.png,1,1\n', r"line 3: 'yes' \(str\) in column 'cat' is not 1, 0, -1"),
])
def test_tables_that_are_not_clear_are_refused(images, tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read(images, tmp_path, text)


def test_empty_lines_above_the_header(images, tmp_path):
    assert read(images, tmp_path, '\n \nimage;labels\n0.png;a\n1.png;b, a\n') == (['a', 'b'], [[1, 0], [1, 1]])
    with pytest.raises(InputError, match='line 4: 3 cells'):
        read(images, tmp_path, '\n\nimage,labels\n0.png,a,b\n')


def test_a_file_of_a_split_with_lines_of_another(images, tmp_path):
    text = 'image,split,labels\n0.png,train,a\n1.png,Valid,b\n2.png,train,b\n'
    with pytest.raises(InputError, match=r"1 lines are of another split by their column 'split' \(line 3: 'Valid'\)"):
        read(images, tmp_path, text)
    assert read(images, tmp_path, text, '&split=split') == (['a', 'b'], [[1, 0], [0, 1]])


def test_tables_in_latin_1_are_refused(images, tmp_path):
    with pytest.raises(InputError, match='is not UTF-8 text.*Save it as CSV UTF-8'):
        read(images, tmp_path, 'image,labels\n0.png,Löwe\n', encoding='latin-1')
