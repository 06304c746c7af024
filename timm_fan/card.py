"""Model cards of the Hub, filled from what a run folder knows."""
import csv
import json
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

import timm
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import get_pretrained_cfg

from .cost import count_cost
from .errors import InputError
from .hub import WEIGHTS_NAME, default_repo
from .models import FAN, model_folder
from .paper import paper_figures
from .provenance import file_sha256
from .report import template_environment

__all__ = ['card_of_run', 'card_of_variant', 'published_files']

# folders of a repository that hold what a run recorded
RUN_FOLDERS = ('training', 'evaluation')
# options of train.py that say something about the machine, not about the training
_LOCAL_OPTIONS = ('config', 'data_dir', 'output', 'log_with', 'workers')
# what the Hub knows by name of what timm's backbones have, https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENCES = (
    'apache-2.0', 'mit', 'bsd-3-clause', 'bsd-2-clause', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'cc0-1.0',
    'gemma', 'apple-ascl', 'apple-amlr')
_HEADS = {'csra': 'CSRA', 'ml_decoder': 'ML-Decoder', 'query2label': 'Query2Label'}
_FIGURES = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')


class DataSource(NamedTuple):
    """A data source in a card.

    Attributes:
        name: For people.
        licence: Sentence on what may be done with it.
        val_images: Of the whole validation set, where it is a fixed one.
        photographs: Whether its images are.
    """
    name: str
    licence: str
    val_images: Optional[int] = None
    photographs: bool = True


_COCO = "COCO's annotations are CC BY 4.0; its photographs are Flickr users', under the licence of each."
_VOC = "PASCAL VOC's photographs are Flickr users', under Flickr's terms."
_SCENES = 'The scenes are drawn by timm_fan (Apache-2.0).'
_DATA = {
    'scenes': DataSource("timm_fan's drawn scenes", _SCENES, 1000, False),
    'scenes-full': DataSource("timm_fan's drawn scenes, full", _SCENES, None, False),
    'coco2014': DataSource('COCO 2014', _COCO, 40504),
    'coco2017': DataSource('COCO 2017', _COCO, 5000),
    'voc2007': DataSource('PASCAL VOC 2007', _VOC, 4952),
    'voc2012': DataSource('PASCAL VOC 2012', _VOC, 5823),
}


def _data_source(data: str, licence: Optional[str]) -> DataSource:
    name = data.partition('?')[0]
    source = _DATA.get(name) or DataSource(name, 'The licence of the data was not stated.')
    return source._replace(licence=licence) if licence else source


def _percent(value: Optional[float]) -> Optional[float]:
    return None if value is None else round(100 * value, 2)


def _measured(metrics: Dict[str, Any]) -> Dict[str, float]:
    figures = {'mAP': metrics['mAP'], **metrics['all'], **{f'top3_{k}': v for k, v in metrics['top3'].items()}}
    return {k: _percent(v) for k, v in figures.items()}


def _paper_column(data: str, backbone: str) -> Optional[Dict[str, Any]]:
    """The paper's figures of the FAN over this backbone, if it has them."""
    model = {'vgg16': 'VGG-16 FAN', 'resnet101': 'ResNet-101 FAN'}.get(backbone.split('.')[0])
    figures = (paper_figures(data) or {}).get(model)
    return figures and dict(model=model, figures=figures)


def _describe(
        architecture: str,
        model_args: Dict[str, Any],
        num_classes: int,
        input_size: Sequence[int],
) -> Dict[str, Any]:
    """What a card says of the network itself."""
    args = {k: v for k, v in model_args.items() if k not in ('pretrained_backbone', 'backbone_weights')}
    model = timm.create_model(architecture, **{**args, 'num_classes': num_classes, 'device': 'meta'}).eval()
    facts = dict(
        architecture=architecture, num_classes=num_classes, input_size=list(input_size), embed_dim=None, without='',
        head=None, backbone=architecture, backbone_repo=None, backbone_licence=None, cost=count_cost(model, input_size))
    if isinstance(model, FAN):
        parts = {'feature refinement (FRN)': model.frn, 'correlation learning (CLN)': model.cln}
        facts.update(
            backbone=model.backbone.name, embed_dim=model.embed_dim if model.frn is not None else None,
            without=' and '.join(name for name, part in parts.items() if part is None),
            head=_HEADS.get(args.get('head')))
    cfg = get_pretrained_cfg(facts['backbone'])
    if cfg is not None and cfg.hf_hub_id:
        facts.update(backbone_repo=cfg.hf_hub_id, backbone_licence=cfg.license)
    return facts


def _eval_results(data: str, source: DataSource, metrics: Dict[str, Any]) -> List[EvalResult]:
    results = []
    for key, value in _measured(metrics).items():
        top3, _, figure = key.rpartition('_')
        results.append(EvalResult(
            task_type='image-classification', task_name='Multi-label image classification',
            dataset_type=data, dataset_name=f'{source.name}, {metrics["num_images"]} images',
            dataset_split=metrics['split'], metric_type=figure, metric_value=value,
            metric_name=f'{figure} (Top-3)' if top3 else figure))
    return results


def _thresholds(metrics: Dict[str, Any]) -> str:
    used = {c['threshold'] for c in metrics['per_class']}
    return f'{used.pop():g}' if len(used) == 1 else 'one for each class'


def _without_folders(value: str) -> str:
    """A --data whose absolute paths keep their last part only: the rest says nothing on other machines."""
    return re.sub(r'(?<=[:=])/[^?&]*/', '', value)


def _training_options(run_folder: Path) -> Dict[str, Any]:
    options = yaml.safe_load((run_folder / 'config.yaml').read_text())
    options = {k: v for k, v in options.items() if k not in _LOCAL_OPTIONS}
    for place in (options, options.get('model_kwargs') or {}):
        for key in ('backbone_weights', 'model'):
            if place.get(key):  # a path of this machine says nothing elsewhere
                scheme, colon, rest = place[key].rpartition(':')
                place[key] = scheme + colon + Path(rest).name if '/' in rest and scheme != 'hf-hub' else place[key]
    if 'data' in options:
        options['data'] = _without_folders(options['data'])
    return options


def _run_folder(model: Path) -> Optional[Path]:
    """The run that a model folder is the `best` of."""
    is_best = model.name == 'best' and (model.parent / 'config.yaml').is_file()
    return model.parent if is_best else None


def _read_json(file: Path) -> Optional[Dict[str, Any]]:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f'{file} is not valid JSON ({error}). Write it again, or move it away.') from error


def _metrics_of(run_folder: Path, weights: Path) -> Optional[Dict[str, Any]]:
    """The evaluation of these very weights, if the run folder holds one."""
    metrics = _read_json(run_folder / 'report' / 'metrics.json')
    if not metrics or metrics.get('weights') != file_sha256(weights):
        return None
    return {**metrics, 'data': _without_folders(metrics['data'])} if metrics.get('data') else metrics


def _history(run_folder: Path) -> List[Dict[str, str]]:
    file = run_folder / 'history.csv'
    if not file.is_file():
        return []
    with open(file, newline='') as opened:
        return list(csv.DictReader(opened))


def _rows(metrics: Optional[Dict[str, Any]], paper: Optional[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Of the table of results: name, measured, its interval, the paper's; in percent or None."""
    measured = _measured(metrics) if metrics else {}
    rows = []
    for name, prefix in (('', ''), ('Top-3 ', 'top3_')):
        for figure in _FIGURES[bool(prefix):]:
            interval = (metrics or {}).get('intervals', {}).get(figure) if not prefix else None
            rows.append(dict(
                name=name + figure, measured=measured.get(prefix + figure),
                interval=interval and [_percent(interval['low']), _percent(interval['high'])],
                paper=paper and paper['figures'].get(prefix + figure)))
    return rows


def _by_ap(metrics: Dict[str, Any]) -> Dict[str, List[Dict[str, Any]]]:
    rated = sorted((c for c in metrics['per_class'] if c['AP'] is not None), key=lambda c: -c['AP'])
    count = min(5, len(rated) // 2)
    return dict(best=rated[:count], worst=rated[len(rated) - count:])


def _render(
        template: Union[str, Path],
        repo: str,
        network: Dict[str, Any],
        licence: str,
        data: str,
        source: DataSource,
        metrics: Optional[Dict[str, Any]] = None,
        base_model: Optional[str] = None,
        **facts: Any,
) -> ModelCard:
    known = licence in _HUB_LICENCES
    paper = _paper_column(data, network['backbone'])
    card_data = ModelCardData(
        library_name='timm_fan' if network['architecture'].startswith('fan') else 'timm',
        license=licence if known else 'other',
        license_name=None if known else licence,
        pipeline_tag='image-classification',
        tags=['timm', 'image-classification', 'multi-label-image-classification'],
        base_model=base_model,
        model_name=repo.split('/')[-1],
        eval_results=_eval_results(data, source, metrics) if metrics else None)
    environment = template_environment(Path(template).parent)
    environment.filters['yaml'] = lambda value: yaml.safe_dump(value, sort_keys=True).strip()
    body = environment.get_template(Path(template).name).render(
        repo=repo, name=repo.split('/')[-1], network=network, licence=licence, data=data, source=source,
        metrics=metrics, paper=paper, rows=_rows(metrics, paper), by_ap=_by_ap(metrics) if metrics else None,
        threshold=_thresholds(metrics) if metrics else None, **facts)
    return ModelCard(f'---\n{card_data.to_yaml()}\n---\n\n{body.strip()}\n')


def card_of_run(
        folder: Union[str, Path],
        repo: str,
        template: Union[str, Path],
        licence: Optional[str] = None,
        data_licence: Optional[str] = None,
) -> ModelCard:
    """The card of a trained model: what its run folder knows is filled in, what it does not know is said to be unknown.

    Args:
        folder: A run folder of train.py or a model folder. Figures come from the run's `report/`, if that is of the
            very weights in the folder.
        repo: `owner/name` on the Hub.
        template: A jinja2 template of Markdown.
        licence: Of the weights; by default that of the pretrained backbone they began from, unknown where they began
            from a whole model, else apache-2.0.
        data_licence: A sentence on the data, where timm_fan does not know it.

    Raises:
        InputError: The folder is no model folder, or a file in it is broken.
    """
    folder = model_folder(folder)
    run_folder = _run_folder(folder)
    config = _read_json(folder / 'config.json')
    for key in ('architecture', 'num_classes', 'pretrained_cfg'):
        if not isinstance(config, dict) or key not in config:
            raise InputError(f"{folder / 'config.json'} has no {key}: it is not that of a timm model.")
    cfg = config['pretrained_cfg']
    network = _describe(
        config['architecture'], config.get('model_args', {}), config['num_classes'], cfg['input_size'])
    options = _training_options(run_folder) if run_folder else {}
    metrics = _metrics_of(run_folder, folder / WEIGHTS_NAME) if run_folder else None
    data = (metrics or {}).get('data') or options.get('data', '')
    sources = {**options, **(options.get('model_kwargs') or {})}
    pretrained = bool(sources.get('pretrained_backbone') or sources.get('backbone_weights'))
    start = sources['model'] if ':' in sources.get('model', '') else None  # a model that was fine-tuned
    if start:
        scheme, _, name = start.partition(':')
        base_model, own_licence = name.partition('@')[0] if scheme == 'hf-hub' else None, None
    elif pretrained:
        base_model, own_licence = network['backbone_repo'], network['backbone_licence']
    else:
        base_model, own_licence = None, 'apache-2.0'
    return _render(
        template, repo, network, licence or own_licence or 'unknown', data, _data_source(data, data_licence), metrics,
        base_model=base_model,
        label_names=config.get('label_names') or [str(i) for i in range(config['num_classes'])], preprocessing=cfg,
        pretrained=pretrained, start=start,
        threshold_policy=config.get('threshold_policy'),
        run=_read_json(run_folder / 'run.json') if run_folder else None, options=options,
        history=_history(run_folder) if run_folder else [])


def card_of_variant(name: str, template: Union[str, Path]) -> ModelCard:
    """The card of a named entrypoint of which nothing was trained or measured yet.

    Args:
        name: Of a registered model, e.g. `fan_resnet101`; its default tag names the data.
        template: A jinja2 template of Markdown.
    """
    cfg = get_pretrained_cfg(name)
    network = _describe(name, {}, cfg.num_classes, cfg.input_size)
    data = cfg.tag or ''
    return _render(
        template, default_repo(name, cfg.tag), network, network['backbone_licence'] or 'unknown', data,
        _data_source(data, None), base_model=network['backbone_repo'], label_names=[], preprocessing=cfg.to_dict(),
        pretrained=True, start=None, threshold_policy=None, run=None, options={}, history=[])


def published_files(folder: Union[str, Path]) -> Dict[str, Union[Path, bytes]]:
    """Path in the repository -> file or content: the model, and what its run recorded of training and evaluation.

    Nothing of it is a pickle, nor names a path of this machine; photographs stay here.

    Args:
        folder: A run folder of train.py or a model folder.

    Raises:
        InputError: It is neither, or a file in it is broken.
    """
    folder = model_folder(folder)
    files: Dict[str, Union[Path, bytes]] = {name: folder / name for name in ('config.json', WEIGHTS_NAME)}
    run_folder = _run_folder(folder)
    if run_folder is None:
        return files
    files['training/config.yaml'] = yaml.safe_dump(_training_options(run_folder)).encode()
    run = _read_json(run_folder / 'run.json')
    if run is not None:
        for key in ('command', 'earlier'):  # they hold paths of this machine
            run.pop(key, None)
        files['training/run.json'] = json.dumps(run, indent=2).encode()
    if (run_folder / 'history.csv').is_file():
        files['training/history.csv'] = run_folder / 'history.csv'
    metrics = _metrics_of(run_folder, folder / WEIGHTS_NAME)
    if metrics:
        report = run_folder / 'report'
        for name in ('per_class.csv', 'per_class.png', 'precision_recall.png'):
            if (report / name).is_file():
                files[f'evaluation/{name}'] = report / name
        files['evaluation/metrics.json'] = json.dumps(metrics, indent=2).encode()
    return files
