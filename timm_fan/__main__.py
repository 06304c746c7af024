"""The programs of train_scripts as commands: `timm-fan COMMAND`, or `python -m timm_fan COMMAND`."""
import argparse
import importlib
import sys
from pathlib import Path

from .version import __version__

# command -> program, what it does
COMMANDS = {
    'train': ('train', 'train a model'),
    'validate': ('validate', 'evaluate a model, choose thresholds, compare two models'),
    'predict': ('predict', 'predict the labels of photographs'),
    'explain': ('explain', 'show where a model sees its labels'),
    'inspect': ('inspect_data', 'look at a data set before training'),
    'prepare': ('prepare_data', 'write a data set as shards of smaller images'),
    'export': ('export', 'write a model as ONNX and as a torch.export program'),
    'push': ('push_to_hub', 'publish a model on the Hugging Face Hub'),
}


def programs_folder() -> Path:
    """The folder of the programs: train_scripts in a clone, `timm_fan/programs` in an installed wheel."""
    package = Path(__file__).resolve().parent
    installed = package / 'programs'
    return installed if installed.is_dir() else package.parent / 'train_scripts'


def with_commands(text: str) -> str:
    """Replace calls of the programs in the text of a help page by the commands."""
    for command, (program, _) in COMMANDS.items():
        text = text.replace(f'accelerate launch train_scripts/{program}.py', f'accelerate launch -m timm_fan {command}')
        text = text.replace(f'python train_scripts/{program}.py', f'timm-fan {command}')
    return text


def build_parser() -> argparse.ArgumentParser:
    lines = ''.join(f'\n  {command:<10}{text}' for command, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='timm-fan', usage='timm-fan COMMAND [ARGUMENT ...]', formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f'Multi-label image classification, from training to publication.\n\ncommands:{lines}',
        epilog='timm-fan COMMAND --help describes a command.')
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run the command that the arguments of this process begin with."""
    parser = build_parser()
    if len(sys.argv) < 2:
        parser.print_help()
        sys.exit(2)
    command = parser.parse_args(sys.argv[1:2]).command
    program, _ = COMMANDS[command]
    folder = programs_folder()
    sys.path.insert(0, str(folder))
    sys.argv = [str(folder / f'{program}.py'), *sys.argv[2:]]
    try:
        module = importlib.import_module(program)
        run_program = importlib.import_module('command_line').run_program
    except ModuleNotFoundError as error:
        sys.stderr.write(f'error: timm-fan {command} requires {error.name}: pip install "timm-fan[train]"\n')
        sys.exit(2)
    parser = module.build_parser()
    parser.prog, parser.description = f'timm-fan {command}', with_commands(parser.description)
    run_program(parser, module.main)


if __name__ == '__main__':
    main()
