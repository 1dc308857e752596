"""The comparison methods of the paper's table 1: METHOD_paper, METHOD_compact and METHOD_equal.

    python -m Training.train baselines:clam_compact --cohort runs/phantoms/cohort.csv --out runs/clam

paper is the published network; compact a small one, with the cases prepared as for harm3_fusion:compact; both trained as their authors
do. equal is the small network trained as harm3_fusion:compact is, without the epochs that need masks: same optimiser, rate, epochs and
batch. Cases, folds, seed, inner validation and augmentation are HARM3-Fusion's in all of them, as is the limit on gradients, which no
author has. Only 3D RP-Net learns from masks, as only its paper does.

    method    optimiser    rate  decay  batch  epochs  source
    c3d       SGD          1e-3  5e-4      20     100  the port pytorch-video-recognition; rate a tenth every 10 epochs, tenfold on fc8
    resnet3d  SGD          0.1   1e-3     128     200  3D-ResNets-PyTorch, opts.py; rate a tenth at 50, 100, 150
    rpnet3d   SGD          1e-2  0        239    1000  3D_RP-Net, train_siam.py; rate halved after 100 epochs without progress,
                                                       responders five times as often
    clam      Adam         1e-4  1e-5       1     200  CLAM, main.py; stops after 20 epochs without progress, not before the 52nd
    transmil  Lookahead    2e-4  1e-5   2 x 1     200  TransMIL, TransMIL.yaml; RAdam inside, biases and norms do not decay; stops after
                                                       10 epochs without progress
    hmcat     Adam         2e-4  1e-5  32 x 1      20  of MCAT, main.py, whose attention it extends; both labels equally often
    m2fusion  Adam         1e-4  1e-6       8     200  not known; HARM3-Fusion's

SGD has momentum 0.9; the loss is cross-entropy, to which each model adds its own. What differs here:

* All start from random weights; the port of C3D starts from weights of Sports-1M.
* All keep the epoch with the least inner-validation loss and stop without progress: where no number of epochs stands above, after
  HARM3-Fusion's, and 3D RP-Net after 300. Of the authors only those of CLAM and TransMIL do so; the others keep the last epoch,
  RP-Net's the most accurate one.
* Progress that 3D RP-Net's rate waits for is that of the response alone; its authors' includes the masks. A responder counts five times
  by weight, which makes steps larger (by 2.2 at 30 % responders) than five copies of it in a batch.
* The 3D ResNet and 3D RP-Net see 8 cases of a batch at once, so that it fits into memory: the ResNet's batch norm is of 8 cases. So is
  that of HMCAT's trunk, which MCAT lacks, and whose cases go through one by one.
* TransMIL's authors train in 16 bits; here the device decides.

A compact model that its authors would train for hundreds of epochs of few steps makes about as many steps in fewer, with smaller batches
and, for the 3D ResNet, a rate that is smaller in proportion (Goyal et al. 2017).
"""

from dataclasses import replace
from typing import Any

from HARM3Logic.models import c3d, clam, hmcat, m2fusion, resnet3d_classifier, rpnet3d, transmil
from Training.experiment import Augmentation, Experiment
from Training.experiments.harm3_fusion import EXPERIMENTS as FULL

METHODS: dict[str, Any] = {
    "c3d": c3d,
    "resnet3d": resnet3d_classifier,
    "rpnet3d": rpnet3d,
    "clam": clam,
    "transmil": transmil,
    "hmcat": hmcat,
    "m2fusion": m2fusion,
}

ONLY_SLIDE = ("clam", "transmil")

AUTHORS: dict[str, dict[str, Any]] = {
    "c3d": {
        "optimiser": "sgd", "learning_rate": 1e-3, "weight_decay": 5e-4, "batch_size": 20, "epochs": 100,
        "decay_at": tuple(range(10, 100, 10)), "tenfold": ("fc8",),
    },
    "resnet3d": {
        "optimiser": "sgd", "learning_rate": 0.1, "weight_decay": 1e-3, "batch_size": 128, "micro_batch": 8, "epochs": 200,
        "decay_at": (50, 100, 150),
    },
    "rpnet3d": {
        "optimiser": "sgd", "learning_rate": 1e-2, "weight_decay": 0.0, "batch_size": 239, "micro_batch": 8, "epochs": 1000,
        "plateau": 100, "patience": 300, "positive_weight": 5.0,
    },
    "clam": {"learning_rate": 1e-4, "weight_decay": 1e-5, "batch_size": 1, "epochs": 200, "patience": 20, "least_epochs": 52},
    "transmil": {
        "optimiser": "lookahead_radam", "learning_rate": 2e-4, "weight_decay": 1e-5, "batch_size": 2, "micro_batch": 1, "epochs": 200,
        "patience": 10,
    },
    "hmcat": {"learning_rate": 2e-4, "weight_decay": 1e-5, "batch_size": 32, "micro_batch": 8, "epochs": 20, "balanced_sampler": True},
    "m2fusion": {"learning_rate": 1e-4, "weight_decay": 1e-6, "batch_size": 8, "epochs": 200},
}  # fmt: skip

SHORTER: dict[str, dict[str, Any]] = {  # of the compact models
    "c3d": {"epochs": 40},
    "resnet3d": {"learning_rate": 0.025, "batch_size": 32, "epochs": 50, "decay_at": (12, 25, 37)},
    "rpnet3d": {"batch_size": 16, "epochs": 60, "plateau": 6, "patience": 18},
    "m2fusion": {"epochs": 60},
}


def _augmentation(base: Experiment, method: str) -> Augmentation:
    """HARM3-Fusion's; the only input of a model is never withheld."""
    return replace(base.augmentation, drop_slide=0.0) if method in ONLY_SLIDE else base.augmentation


def _paper(method: str) -> Experiment:
    base = replace(FULL["paper"], model=method, config=METHODS[method].paper(), augmentation=_augmentation(FULL["paper"], method))
    return replace(base, **{"optimiser": "adam", **AUTHORS[method]})


def _compact(method: str) -> Experiment:
    small = FULL["compact"]
    own = replace(
        _paper(method), config=METHODS[method].compact(), preprocessing=small.preprocessing, augmentation=_augmentation(small, method)
    )
    return replace(own, **{"patience": AUTHORS[method].get("patience", small.patience), **SHORTER.get(method, {})})


def _equal(method: str) -> Experiment:
    small = FULL["compact"]
    return replace(
        small,
        model=method,
        config=METHODS[method].compact(),
        augmentation=_augmentation(small, method),
        mask_epochs=0,
        mask_steps=0,
        fusion_epochs=0,
        frozen_epochs=0,
    )


EXPERIMENTS = {
    f"{method}_{variant}": make(method)
    for method in METHODS
    for variant, make in (("paper", _paper), ("compact", _compact), ("equal", _equal))
}
