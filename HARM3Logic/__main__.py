"""The command line: harm3 demo | predict | batch | check | info | features | phantom | import-weights | worker."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from HARM3Logic import __version__, features_command, predict_command
from HARM3Logic.errors import BadOption, HARM3Error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0; 2 for what the user can mend, told in one line; 1 for a bug of ours."""
    options = _parser().parse_args(predict_command.joined(sys.argv[1:] if arguments is None else arguments))
    try:
        return int(options.run(options))
    except HARM3Error as error:
        print(f"harm3: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("harm3: stopped; what was finished is kept.", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print("harm3: this is a bug of ours; please report the lines above.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "harm3", description="Probability of pathological complete response. Research only, not for clinical use."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict_command.add(commands)

    check = commands.add_parser(
        "check", help="find what is wrong with a cohort before it is used", description="Exit code 2 where it is an error."
    )
    check.add_argument("cohort", type=Path, metavar="COHORT.csv")
    check.add_argument("--json", action="store_true", help="print the problems as a JSON list")
    check.add_argument("--workers", type=int, help="processes that read files (default: one per core; 0: this one)")
    check.set_defaults(run=_check)

    info = commands.add_parser("info", help="show a checkpoint's card and this computer")
    info.add_argument("checkpoint", nargs="?", type=Path, help="default: the demo checkpoint")
    info.set_defaults(run=_info)

    features_command.add(commands)

    phantom = commands.add_parser("phantom", help="make a cohort of synthetic patients whose truth is known")
    phantom.add_argument("--cases", type=int, required=True)
    phantom.add_argument("--seed", type=int, required=True)
    phantom.add_argument("--out", type=Path, required=True)
    phantom.add_argument(
        "--kind", choices=["hnscc", "gist"], default="hnscc", help="hnscc: four MRI volumes and a slide; gist: CT and clinical values"
    )
    phantom.add_argument("--size", choices=["small", "full"], default="small", help="small: coarse voxels; full: a clinical matrix")
    phantom.add_argument("--responders", type=float, help="expected share of responders (default: 0.3; gist: 0.545)")
    phantom.add_argument("--crops", type=int, default=0, help="gist: crops of further patients without labels, for pretraining")
    phantom.set_defaults(run=_phantom)

    imported = commands.add_parser(
        "import-weights", help="make a checkpoint of published CLAM or TransMIL weights", description="The second class is the responder."
    )
    imported.add_argument("weights", type=Path, metavar="WEIGHTS.pt", help="a state dict of the official code")
    imported.add_argument("--model", choices=["clam", "transmil"], required=True)
    imported.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT.safetensors")
    imported.add_argument("--encoder", default="default", help="file of the tile encoder they were trained with (default: ours)")
    imported.add_argument("--mpp", type=float, default=0.5, help="µm per pixel of the tiles they were trained with (default: 0.5)")
    imported.add_argument("--compat-nystrom-009", action="store_true", help="TransMIL trained with nystrom-attention 0.0.9")
    imported.set_defaults(run=_import_weights)

    worker = commands.add_parser("worker", help="take jobs as JSON lines on stdin, until it closes; how Slicer predicts")
    worker.set_defaults(run=_worker)
    return parser


def _check(options: argparse.Namespace) -> int:
    import json

    from HARM3Logic.check import as_table, check_cohort
    from HARM3Logic.progress import progress

    if options.workers is not None and options.workers < 0:
        raise BadOption(f"--workers is {options.workers}; 0 or more is wanted.", "Correct it.")
    with progress(desc="reading", unit="case", leave=False) as bar:

        def show(done: int, cases: int) -> None:
            bar.total = cases
            bar.update(done - bar.n)

        report = check_cohort(options.cohort, options.workers, show)
    print(json.dumps(report.to_list(), indent=2, ensure_ascii=False) if options.json else as_table(report))
    return 2 if report.errors else 0


def _info(options: argparse.Namespace) -> int:
    import dataclasses
    import json
    import platform

    import torch

    from HARM3Logic import checkpoint

    path = options.checkpoint or checkpoint.default()
    card = checkpoint.read_card(path)
    devices = ["cpu", *(f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count()))]
    print(json.dumps(dataclasses.asdict(card), indent=2, ensure_ascii=False))
    print(f"checkpoint {path}\nsha256 {checkpoint.file_sha256(path)}")
    print(f"harm3slicer {__version__}, Python {platform.python_version()}, torch {torch.__version__}, devices: {', '.join(devices)}")
    return 0


def _phantom(options: argparse.Namespace) -> int:
    from HARM3Logic import phantom, phantom_gist
    from HARM3Logic.progress import progress

    gist = options.kind == "gist"
    if options.crops and not gist:
        raise BadOption(f"--crops is {options.crops} and the kind {options.kind}; only gist has crops.", "Add --kind gist.")
    with progress(total=options.cases + options.crops, desc="phantoms", unit="case") as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        out, responders = options.out, options.responders
        if gist:
            share = phantom_gist.RESPONDERS if responders is None else responders
            found = phantom_gist.write_phantoms(out, options.cases, options.seed, options.size, share, options.crops, on_progress=show)
        else:
            share = phantom.RESPONDERS if responders is None else responders
            found = phantom.write_phantoms(out, options.cases, options.seed, options.size, share, on_progress=show)
    if options.crops:
        print(f"{options.crops} crops for pretraining: {out / 'crops'}")
    if options.cases:
        print(f"{found['cases']:.0f} synthetic cases, {found['responders']:.0%} responders: {out / 'cohort.csv'}")
    for name, value in found.items():
        if name.startswith("best_auc"):
            print(f"best possible AUC{name.removeprefix('best_auc').replace('_', ', ')} {value:.3f}")
    return 0


def _import_weights(options: argparse.Namespace) -> int:
    from HARM3Logic.import_weights import import_weights

    old = options.compat_nystrom_009
    card = import_weights(options.weights, options.model, options.out, encoder=options.encoder, mpp=options.mpp, compat_nystrom_009=old)
    print(f"{card.model} of {card.config['tile_features']} features a tile: {options.out}")
    return 0


def _worker(options: argparse.Namespace) -> int:
    from HARM3Logic.worker import serve

    serve()


if __name__ == "__main__":
    sys.exit(main())
