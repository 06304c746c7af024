"""Model cards, filled from the records of a run."""
import json
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

import timm
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import get_pretrained_cfg

from timm_fan.cost import Cost, count_cost
from timm_fan.errors import InputError
from timm_fan.files import read_json, read_text, write_text
from timm_fan.hub import CONFIG_NAME, WEIGHTS_NAME, default_repo
from timm_fan.layers import FeatureRefinementNetwork
from timm_fan.metrics import percent
from timm_fan.models import FAN, model_folder
from timm_fan.provenance import file_sha256
from timm_fan.report import paper_scores
from timm_fan.report.report import measured_scores
from timm_fan.training import RunFolder, TrainingOptions, merge_options

TEMPLATE = Path(__file__).parent / 'templates' / 'card.md'
# files of a repository that are records of a run, and are removed if a new publication lacks them
DELETE_PATTERNS = ('training/*', 'evaluation/*')
_UNMEASURED = 'Nothing has been measured yet'
# names by which the Hub knows the licences of timm's backbones, https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENCES = (
    'apache-2.0', 'mit', 'bsd-3-clause', 'bsd-2-clause', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'cc0-1.0',
    'gemma', 'apple-ascl', 'apple-amlr')
_HEADS = {
    'linear': 'a linear layer on pooled features', 'csra': 'the head of CSRA', 'ml_decoder': 'the head of ML-Decoder',
    'query2label': 'the head of Query2Label'}
_METRICS = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')


class DataSource(NamedTuple):
    """A data source on a card. `val_images` is the size of its whole validation set, if that is fixed."""
    name: str
    licence: str
    val_images: Optional[int] = None
    photographs: bool = True


_COCO = "COCO's annotations are CC BY 4.0. Its photographs belong to users of Flickr, under the licence of each."
_VOC = "PASCAL VOC's photographs belong to users of Flickr, under the terms of Flickr."
_DATA = {
    'scenes': DataSource("timm_fan's drawn scenes", 'The scenes are drawn by timm_fan (Apache-2.0).', 1000, False),
    'coco2014': DataSource('COCO 2014', _COCO, 40504),
    'coco2017': DataSource('COCO 2017', _COCO, 5000),
    'voc2007': DataSource('PASCAL VOC 2007', _VOC, 4952),
    'voc2012': DataSource('PASCAL VOC 2012', _VOC, 5823),
}


def _data_source(data: str, licence: Optional[str] = None) -> DataSource:
    name, _, options = data.partition('?')
    source = _DATA.get(name) or DataSource(name, 'The licence of the data was not stated.')
    if 'val=' in options:  # other images than those of the official split
        source = source._replace(val_images=None)
    return source._replace(licence=licence) if licence else source


class NetworkFacts(NamedTuple):
    """What a card says about the network."""
    architecture: str
    backbone: str
    num_classes: int
    input_size: Sequence[int]
    embed_dim: Optional[int]
    frn: bool
    cln: bool
    head: Optional[str]
    backbone_repo: Optional[str]
    backbone_licence: Optional[str]
    cost: Cost


def _describe_network(
        architecture: str, model_args: Dict[str, Any], num_classes: int, input_size: Sequence[int]) -> NetworkFacts:
    args = {k: v for k, v in model_args.items() if k not in ('pretrained_backbone', 'backbone_weights')}
    model = timm.create_model(architecture, **{**args, 'num_classes': num_classes, 'device': 'meta'}).eval()
    backbone, embed_dim, frn, cln = architecture, None, False, False
    if isinstance(model, FAN):
        backbone = model.backbone.name
        frn, cln = isinstance(model.frn, FeatureRefinementNetwork), model.cln is not None
        embed_dim = model.embed_dim if frn or cln else None
    cfg = get_pretrained_cfg(backbone)
    known = cfg is not None and cfg.hf_hub_id
    return NetworkFacts(
        architecture, backbone, num_classes, list(input_size), embed_dim, frn, cln,
        _HEADS.get(args.get('head')), cfg.hf_hub_id if known else None, cfg.license if known else None,
        count_cost(model, input_size))


def _without_folders(value: str) -> str:
    """A data source, where absolute paths are reduced to their last part: the rest has no meaning elsewhere."""
    return re.sub(r'(?<=[:=])/[^?&]*/', '', value)


def _training_options(run: RunFolder) -> Dict[str, Any]:
    """Options of a run for its card, without those of the machine and without paths."""
    shown = TrainingOptions.names(card=True)
    options = {name: value for name, value in run.read_options().items() if name in shown}
    for place in (options, options.get('model_kwargs') or {}):
        for key in ('backbone_weights', 'model'):
            if place.get(key):
                scheme, colon, rest = place[key].rpartition(':')
                place[key] = scheme + colon + Path(rest).name if '/' in rest and scheme != 'hf-hub' else place[key]
    if 'data' in options:
        options['data'] = _without_folders(options['data'])
    return options


def _run_of(model: Path) -> Optional[RunFolder]:
    """The run whose best model is in this folder."""
    run = RunFolder(model.parent)
    return run if model == run.best and run.config.is_file() else None


def _metrics_of(run: RunFolder, weights: Path) -> Optional[Dict[str, Any]]:
    """The evaluation of exactly these weights, if the run folder has one."""
    file = run.report / 'metrics.json'
    metrics = read_json(file) if file.is_file() else None
    if not metrics or metrics.get('weights') != file_sha256(weights):
        return None
    return {**metrics, 'data': _without_folders(metrics['data'])} if metrics.get('data') else metrics


def _paper_column(data: str, backbone: str) -> Optional[Dict[str, Any]]:
    """The scores of the paper for a FAN over this backbone, if there are any."""
    model = {'vgg16': 'VGG-16 FAN', 'resnet101': 'ResNet-101 FAN'}.get(backbone.split('.')[0])
    scores = (paper_scores(data) or {}).get(model)
    return scores and dict(model=model, scores=scores)


def _result_rows(metrics: Optional[Dict[str, Any]], paper: Optional[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Rows of the table of results: name, and in percent the measured score, its interval and that of the paper."""
    measured = measured_scores(metrics) if metrics else {}
    rows = []
    for name, prefix in (('', ''), ('Top-3 ', 'top3_')):
        for metric in _METRICS[bool(prefix):]:
            interval = (metrics or {}).get('intervals', {}).get(metric) if not prefix else None
            rows.append(dict(
                name=name + metric, measured=percent(measured.get(prefix + metric)) or '–',
                interval=f'{percent(interval["low"])} to {percent(interval["high"])}' if interval else '',
                paper=paper['scores'].get(prefix + metric, '') if paper else ''))
    return rows


def _eval_results(data: str, source: DataSource, metrics: Dict[str, Any]) -> List[EvalResult]:
    """The measured scores as the `model-index` of the Hub."""
    results = []
    for key, value in measured_scores(metrics).items():
        top3, _, metric = key.rpartition('_')
        results.append(EvalResult(
            task_type='image-classification', task_name='Multi-label image classification',
            dataset_type=data, dataset_name=f'{source.name}, {metrics["num_images"]} images',
            dataset_split=metrics['split'], metric_type=metric, metric_value=round(100 * value, 2),
            metric_name=f'{metric} (Top-3)' if top3 else metric))
    return results


def _plain(text: str) -> str:
    """Text in Markdown, also in a cell of a table: on one line, without meaning as Markdown, HTML or math."""
    return re.sub(r'([\\`*_{}\[\]<>|$~])', r'\\\1', ' '.join(text.split()))


def _describe_metrics(metrics: Dict[str, Any]) -> Dict[str, Any]:
    """The best and worst classes, and the threshold, of an evaluation."""
    rated = sorted((c for c in metrics['per_class'] if c['AP'] is not None), key=lambda c: -c['AP'])
    count = min(5, len(rated) // 2)
    used = {c['threshold'] for c in metrics['per_class']}
    return dict(
        extremes=[('best', c) for c in rated[:count]] + [('worst', c) for c in rated[len(rated) - count:]],
        threshold=f'a probability of {used.pop():g}' if len(used) == 1 else 'the threshold of their class')


def _render(
        repo: str, network: NetworkFacts, licence: str, data: str, source: DataSource, facts: Dict[str, Any],
) -> ModelCard:
    """Fill the template. `facts` are `metrics`, `base_model`, and other variables of the template."""
    known = licence in _HUB_LICENCES
    metrics, paper = facts.get('metrics'), _paper_column(data, network.backbone)
    card_data = ModelCardData(
        library_name='timm_fan' if network.architecture.startswith('fan') else 'timm',
        license=licence if known else 'other',
        license_name=None if known else licence,
        pipeline_tag='image-classification',
        tags=['timm', 'image-classification', 'multi-label-image-classification'],
        base_model=facts.get('base_model'),
        model_name=repo.split('/')[-1],
        eval_results=_eval_results(data, source, metrics) if metrics else None)
    variables: Dict[str, Any] = dict(
        label_names=[], pretrained=True, start=None, threshold_policy=None, run=None, options='', history=[],
        metrics=None, release=None, epochs=len(facts.get('history', [])),
        **(_describe_metrics(metrics) if metrics else {}))
    return ModelCard.from_template(card_data, template_str=read_text(TEMPLATE), **{
        **variables, **facts, 'repo': repo, 'network': network, 'licence': licence, 'source': source,
        'paper': paper, 'rows': _result_rows(metrics, paper), 'percent': percent, 'plain': _plain,
        'unmeasured': _UNMEASURED})


def card_of_run(
        folder: Union[str, Path],
        repo: str,
        licence: Optional[str] = None,
        data_licence: Optional[str] = None,
) -> ModelCard:
    """The card of a trained model. What its run did not record is stated to be unknown.

    Args:
        folder: A run or model folder. Scores come from the report of the run if it is about exactly these weights.
        repo: `owner/name` on the Hub.
        licence: Licence of the weights, by default that of the pretrained backbone that they started from, unknown if
            they started from a whole model, otherwise apache-2.0.
        data_licence: A sentence about the licence of the data, if timm_fan does not know it.

    Raises:
        InputError: The folder contains no model, or one of its files is damaged.
    """
    folder = model_folder(folder)
    run = _run_of(folder)
    config = read_json(folder / CONFIG_NAME)
    for key in ('architecture', 'num_classes', 'pretrained_cfg'):
        if not isinstance(config, dict) or key not in config:
            raise InputError(f'{folder / CONFIG_NAME} has no {key}: it does not describe a timm model.')
    cfg = config['pretrained_cfg']
    network = _describe_network(
        config['architecture'], config.get('model_args', {}), config['num_classes'], cfg['input_size'])
    options = _training_options(run) if run else {}
    metrics = _metrics_of(run, folder / WEIGHTS_NAME) if run else None
    data = (metrics or {}).get('data') or options.get('data', '')
    sources = {**options, **(options.get('model_kwargs') or {})}
    pretrained = bool(sources.get('pretrained_backbone') or sources.get('backbone_weights'))
    start = sources['model'] if ':' in sources.get('model', '') else None  # a model that was fine-tuned
    base_model, own_licence = None, 'apache-2.0'
    if start:
        scheme, _, name = start.partition(':')
        base_model, own_licence = name.partition('@')[0] if scheme == 'hf-hub' else None, None
    elif pretrained:
        base_model, own_licence = network.backbone_repo, network.backbone_licence
    return _render(
        repo, network, licence or own_licence or 'unknown', data, _data_source(data, data_licence), dict(
            metrics=metrics, base_model=base_model, pretrained=pretrained, start=start, preprocessing=cfg,
            label_names=config.get('label_names') or [str(i) for i in range(config['num_classes'])],
            threshold_policy=config.get('threshold_policy'), run=run.read_record() if run else None,
            options=yaml.safe_dump(options).strip() if options else '', history=run.read_history() if run else []))


def card_of_release(record: Dict[str, Any], repo: str) -> ModelCard:
    """The card of a model that train_scripts/release.py has made.

    Args:
        record: What release.py has recorded about it.
        repo: `owner/name` on the Hub.
    """
    config, row, trainings = record['config'], record['row'], record['trainings']
    cfg, records = config['pretrained_cfg'], trainings['seed0']
    args = {k: v for k, v in row['options'].items() if k == 'backbone'}
    args.update(row['options'].get('model_kwargs', {}))
    network = _describe_network(config['architecture'], args, config['num_classes'], cfg['input_size'])
    pretrained = bool(row['options'].get('pretrained_backbone'))
    run = {**records[-1], 'seconds': sum(record['seconds'] for record in records)}
    shown = TrainingOptions.names(card=True)
    steps = [merge_options(row['options'], step) for step in row['steps']]
    options = [{key: value for key, value in step.items() if key in shown} for step in steps]
    return _render(
        repo, network, (network.backbone_licence if pretrained else 'apache-2.0') or 'unknown', row['test'],
        _data_source(row['test']), dict(
            metrics=record['metrics'], base_model=network.backbone_repo if pretrained else None, pretrained=pretrained,
            preprocessing=cfg, label_names=config['label_names'], threshold_policy=config['threshold_policy'], run=run,
            epochs=sum(step['epochs'] for step in options), options=yaml.safe_dump_all(options).strip(),
            release=record))


def card_of_variant(name: str) -> ModelCard:
    """The card of a registered model without published weights. Its default tag names the data."""
    cfg = get_pretrained_cfg(name)
    network = _describe_network(name, {}, cfg.num_classes, cfg.input_size)
    data = cfg.tag or ''
    return _render(
        default_repo(name, cfg.tag), network, network.backbone_licence or 'unknown', data, _data_source(data),
        dict(base_model=network.backbone_repo, preprocessing=cfg.to_dict()))


def is_unmeasured(card: str) -> bool:
    """Whether the text of a card is that of `card_of_variant`."""
    return _UNMEASURED in card


def write_publication(folder: Union[str, Path], card: ModelCard, target: Path) -> None:
    """Write the files to publish: the card, the model, and what its run recorded about training and evaluation.

    There are no pickles, photographs, or paths of this machine among them.

    Args:
        folder: A run or model folder.
        card: Its card.
        target: An empty folder.

    Raises:
        InputError: The folder contains no model, or one of its files is damaged.
    """
    folder = model_folder(folder)
    write_text(target / 'README.md', str(card))
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        shutil.copyfile(folder / name, target / name)
    run = _run_of(folder)
    if run is None:
        return
    training, evaluation = target / 'training', target / 'evaluation'
    training.mkdir()
    write_text(training / run.config.name, yaml.safe_dump(_training_options(run)))
    record = run.read_record()
    if record is not None:
        for key in ('command', 'earlier'):  # they contain paths
            record.pop(key, None)
        write_text(training / 'run.json', json.dumps(record, indent=2))
    if run.history.is_file():
        shutil.copyfile(run.history, training / run.history.name)
    metrics = _metrics_of(run, folder / WEIGHTS_NAME)
    if metrics:
        evaluation.mkdir()
        for name in ('per_class.csv', 'per_class.png', 'precision_recall.png'):
            if (run.report / name).is_file():
                shutil.copyfile(run.report / name, evaluation / name)
        write_text(evaluation / 'metrics.json', json.dumps(metrics, indent=2))
