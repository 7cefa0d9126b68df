"""Checkpoints that others published: where each lies, how it is opened, on what data and ball, what is known of it.

Sources: what the authors state in the same repository at the same commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Data = Literal["mnist", "fashion-mnist", "cifar-10"]

#: Means and deviations that are common for CIFAR-10, and those of Wong & Kolter.
CIFAR_MEAN, CIFAR_STD = "0.4914,0.4822,0.4465", "0.2023,0.1994,0.2010"

RELAXED = {"mean": "0.485,0.456,0.406", "std": "0.225,0.225,0.225"}


@dataclass(frozen=True)
class Recipe:
    """One published checkpoint.

    Attributes:
        name: in the table; method: how its authors trained it.
        repository, commit, path: where the file lies on GitHub; beside: other files that it needs.
        data, eps: points and radius in Linf, in the units of `bounds`.
        arch: SPEC of `maskaudit check` in `published_networks`; None for a file that holds its own operations.
        keras: whether it is a Keras file, which is turned into a state dict first.
        row: whether it takes images as one row (N, 1, 1, D); an audit finds that by itself.
        known: (least, most) robust accuracy on the whole test set that its authors proved at this eps, in percent.
        points: points that official AutoAttack gets.
    """

    name: str
    method: str
    repository: str
    commit: str
    path: str
    data: Data
    eps: str
    arch: str | None = None
    mean: str | None = None
    std: str | None = None
    bounds: str | None = None
    options: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    keras: bool = False
    row: bool = False
    known: tuple[float, float] | None = None
    points: int = 48

    @property
    def folder(self) -> Path:
        """Where the file lies below the folder of all files."""
        return Path(self.repository.replace("/", "+"))

    @property
    def sha256(self) -> str:
        """Of the file."""
        return SUMS[self.name][0]

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return SUMS[self.name][1]


def _sums() -> dict[str, tuple[str, int]]:
    """SHA-256 and size of the files by name of the recipe; a name may hold spaces."""
    lines = Path(__file__).with_name("published.sha256").read_text(encoding="utf-8").splitlines()
    parts = [line.split(" ", 2) for line in lines]
    return {name: (digest, int(size)) for digest, size, name in parts}


SUMS = _sums()


RELAXATION = ("Hadisalman/robust-verify-benchmark", "fce1c27c1aef4f1f0a873b4fd88530894f81ce20")
OVAL = ("oval-group/oval-bab", "a317464598feb8debd88969e6d7237f9b7d3d21c")
LIRPA = ("Verified-Intelligence/auto_LiRPA", "a050a3d61f4cb68b108fa7f07dcb3e4d7ef304df")
SMOOTH = ("verivital/vnn-comp", "5d146cb1c0179a97fc75a3521883d6765142f092")
FEW_BITS = ("fastmachinelearning/qonnx_model_zoo", "d44721b3d8dc279078f9a72a069cfe3a628dc055")
SPLINE = ("pranavgupta2603/KAN-Distillation", "8b44cc4bb4aa751b785788b6b1e8151c92f8b7a0")
PRIVATE = ("john-samurai/AttackDefenseMNIST-trainedModel", "9d517e414b4dba18b2507c90dc8f70d004acf88e")
EDGE = ("MiguelCosta94/QNN-Adversarial-Robustness", "665234ae685424e070fbc4e69485a546245e14b7")
MNIST_MEAN = {"mean": "0.1307", "std": "0.3081"}
SMALL_CONVS = "((1,16,4,2),(16,32,4,2))"


def _mlps() -> Sequence[Recipe]:
    """Table 1 of Salman et al. 2019, bounds on the robust accuracy by mixed integer programming on all of MNIST."""
    rows = (
        ("ADV_MLP_B_0.03", "PGD-trained, ε 0.03", "0.03", (94.22, 95.82)),
        ("ADV_MLP_B_0.05", "PGD-trained, ε 0.05", "0.05", (88.62, 93.89)),
        ("ADV_MLP_B_0.1", "PGD-trained, ε 0.1", "0.1", (65.63, 83.75)),
        ("NOR_MLP_B", "ordinary", "0.03", (51.33, 79.57)),
        ("LPD_MLP_B_0.1", "certified (Wong & Kolter), ε 0.1", "0.1", (85.55, 85.55)),
        ("LPD_MLP_B_0.2", "certified (Wong & Kolter), ε 0.2", "0.2", (63.67, 63.67)),
        ("LPD_MLP_B_0.3", "certified (Wong & Kolter), ε 0.3", "0.3", (40.15, 40.15)),
        ("LPD_MLP_B_0.4", "certified (Wong & Kolter), ε 0.4", "0.4", (16.83, 16.83)),
    )
    return [
        Recipe(name, method, *RELAXATION, f"weights/experiment_1/{name}.pth", "mnist", eps, "dense()", known=known)
        for name, method, eps, known in rows
    ]


def _relaxation() -> Sequence[Recipe]:
    """Networks of the second experiment of Salman et al. 2019, trained in three ways."""
    deep = "dense(widths=(784,100,100,100,100,100,100,100,100,100,10))"
    shapes = (
        ("mnist_cnn_small", "mnist", "0.1", "strided()", "NOR ADV LPD"),
        ("mnist_cnn_wide_4", "mnist", "0.1", "strided(hidden=512)", "ADV LPD"),
        ("mnist_MLP_9_100", "mnist", "0.1", deep, "NOR ADV LPD"),
        ("cifar_cnn_small", "cifar-10", "2/255", "strided(convs=((3,16,4,2),(16,32,4,2)),side=8)", "NOR ADV LPD"),
        ("cifar_cnn_wide_2", "cifar-10", "2/255", "strided(convs=((3,8,4,2),(8,16,4,2)),hidden=256,side=8)", "ADV LPD"),
    )
    methods = {"NOR": "ordinary", "ADV": "PGD-trained", "LPD": "certified (Wong & Kolter)"}
    return [
        Recipe(
            f"{name}_{kind}",
            methods[kind],
            *RELAXATION,
            f"weights/experiment_2/{name}_{kind}.pth",
            data,
            eps,
            arch,
            **(RELAXED if data == "cifar-10" else {}),
        )  # type: ignore[arg-type]
        for name, data, eps, arch, kinds in shapes
        for kind in kinds.split()
    ]


RECIPES: Sequence[Recipe] = (
    *_mlps(),
    *_relaxation(),
    Recipe(
        "cifar_madry_8px",
        "PGD-trained, ε 8/255",
        *OVAL,
        "models/cifar_madry_8px.pth",
        "cifar-10",
        "8/255",
        "strided(convs=((3,16,4,2),(16,32,4,2)),side=8)",
        **RELAXED,
    ),
    Recipe(
        "cifar_sgd_8px",
        "ordinary",
        *OVAL,
        "models/cifar_sgd_8px.pth",
        "cifar-10",
        "4/255",
        "strided(convs=((3,16,4,2),(16,32,4,2)),side=8)",
        **RELAXED,
    ),
    Recipe(
        "mnist_fc_3layer",
        "ordinary",
        *LIRPA,
        "examples/vision/pretrained/mnist_fc_3layer.pth",
        "mnist",
        "0.05",
        "small(widths=(784,128,64,10))",
    ),
    Recipe(
        "mnist_cnn_small",
        "ordinary",
        *LIRPA,
        "examples/vision/pretrained/mnist_cnn_small.pth",
        "mnist",
        "0.1",
        "small(convs=((1,8,4,1),(8,16,4,1)),widths=(784,256,10),stride=2,pool=1)",
    ),
    *(
        Recipe(
            name,
            f"ordinary, {kind} activations, softmax, ONNX, 0 … 255",
            *SMOOTH,
            f"2020/NLN/benchmark/mnist/{kind}/{name}_onnx.onnx",
            "mnist",
            "12",
            bounds="0,255",
            row=True,
        )
        for kind, names in (
            ("sigmoid", ("logsig_100_100_30_20", "logsig_1024_50")),
            ("tanh", ("tansig_200_100_50", "tansig_256")),
        )
        for name in names
    ),
    *(
        Recipe(
            f"TFC_{bits}",
            f"{text}, QONNX",
            *FEW_BITS,
            f"models/MNIST/Brevitas_FINN_TFC/TFC/TFC_{bits}.onnx",
            "mnist",
            "0.1" if bits == "1W1A" else "0.2",
        )
        for bits, text in (
            ("1W1A", "binarised weights and activations"),
            ("1W2A", "binary weights, 2-bit activations"),
            ("2W2A", "2-bit weights and activations"),
        )
    ),
    Recipe(
        "in_dev_RN20Q",
        "weights of 3 levels, 4-bit activations",
        "kejeon/in_dev_RN20Q",
        "fbee553de81c4de400114d2683d1a279cbc69bdf",
        "checkpoint/ckpt.pth",
        "cifar-10",
        "4/255",
        "few_bits_resnet20(weight_bits=1)",
        CIFAR_MEAN,
        CIFAR_STD,
    ),
    Recipe(
        "resnet_cifar_pruning",
        "ordinary",
        "zlatasm/resnet_cifar_pruning",
        "62b93b572568e55aa52a076127f5aa91a2fc41e9",
        "checkpoint/ckpt.pth",
        "cifar-10",
        "4/255",
        "resnet20()",
        CIFAR_MEAN,
        CIFAR_STD,
    ),
    *(
        Recipe(f"KAN {part}", method, *SPLINE, f"{part}.pth", "mnist", "0.05", arch)
        for part, method, arch in (
            ("student_model", "distilled, splines", "splines()"),
            ("teacher", "ordinary, splines", "splines(widths=(784,64,10))"),
        )
    ),
    Recipe(
        "a3_mnist",
        "ordinary",
        *PRIVATE,
        "mnist_cnn.pt",
        "mnist",
        "0.2",
        "small(convs=((1,6,3,1),(6,16,5,0)),widths=(400,120,84,10))",
        **MNIST_MEAN,
    ),
    Recipe(
        "a3_mnist_overfitted",
        "overfitted on purpose",
        *PRIVATE,
        "mnist_cnn_overfitted.pt",
        "mnist",
        "0.1",
        "small(convs=((1,8,5,2),),widths=(392,50,10),stride=2)",
    ),
    Recipe(
        "full_MIA-defense",
        "noisy training against membership inference",
        *PRIVATE,
        "full_MIA-defense_model.pt",
        "mnist",
        "0.2",
        "small(convs=((1,32,3,1),(32,64,3,1)),widths=(3136,128,10))",
        **MNIST_MEAN,
    ),
    Recipe(
        "mnist-torch student",
        "distilled",
        "comus/mnist-torch",
        "f7617beee09c5b60704c8e27780ea7ef55d55d6d",
        "models/student_model.pth",
        "mnist",
        "0.2",
        "small(convs=((1,16,3,0),),widths=(2704,64,10))",
        **MNIST_MEAN,
    ),
    Recipe(
        "distilled_model",
        "distilled",
        "MasonC5/model-compression-deployment",
        "614cba1160c5d424ec8032f28704150707ad2e36",
        "distilled_model.pth",
        "cifar-10",
        "4/255",
        "small(convs=((3,16,3,1),(16,32,3,1)),widths=(2048,128,10))",
        "0.5,0.5,0.5",
        "0.5,0.5,0.5",
    ),
    *(
        Recipe(
            f"cifar_{part}",
            method,
            *EDGE,
            f"QNN-Attacks/{folder}/cifar_{part}_float.h5",
            "cifar-10",
            "4/255",
            "keras_resnet8()",
            points=16,
            keras=True,
        )
        for part, method, folder in (
            ("resnet", "ordinary, softmax", "models"),
            ("distil", "defensive distillation (T = 20), softmax", "models-defense_enhanced"),
            ("adv_train", "adversarially trained, softmax", "models-defense_enhanced"),
            ("ens_adv", "ensemble adversarially trained, softmax", "models-defense_enhanced"),
            ("sat", "Sinkhorn adversarially trained, softmax", "models-defense_enhanced"),
        )
    ),
    Recipe(
        "snn_mnist",
        "spiking, random encoder",
        "CodeAlanqian/SNN-MNIST",
        "d8a81b02b3dde01fc1660a2425e83176c5a07bba",
        "snn_mnist.pth",
        "mnist",
        "0.1",
        "spiking()",
        points=24,
    ),
    Recipe(
        "PyTorch_at_a_once",
        "ordinary",
        "majorWallet/PyTorch_at_a_once",
        "0696ad7a435f36b56b479f00736ca081835307bd",
        "fashion_mnist.pth",
        "fashion-mnist",
        "0.04",
        "small(convs=((1,6,3,0),(6,16,3,0)),widths=(400,120,84,10))",
        "0.5",
        "0.5",
    ),
    Recipe(
        "fashion_mnist_cnn",
        "ordinary",
        "ch-yun-01/alpha-beta-crown-fashionmnist",
        "38b20c0764c9130a589e63ba4666620e4bac4320",
        "fashion_mnist_cnn.pth",
        "fashion-mnist",
        "8/255",
        "strided()",
        "0.2860",
        "0.3530",
    ),
    Recipe(
        "mnist_fc",
        "ordinary, ONNX with weights beside it",
        "ch-yun-01/alpha-beta-crown-fashionmnist",
        "38b20c0764c9130a589e63ba4666620e4bac4320",
        "mnist_fc.onnx",
        "mnist",
        "0.05",
        beside=("mnist_fc.onnx.data",),
    ),
    Recipe(
        "HyoChan mnist",
        "ordinary, ONNX with weights beside it",
        "HyoChan1117/mnist",
        "4f2957683488c82cc8ea6d0a52e2c9ef57d701d9",
        "models/mnist.onnx",
        "mnist",
        "0.05",
        beside=("models/mnist.onnx.data",),
    ),
    Recipe(
        "mnist-web-inference",
        "ordinary, ONNX",
        "alexischochina/mnist-web-inference",
        "d8134d26d60353969a172a371eaadad609f85a31",
        "models/mnist.onnx",
        "mnist",
        "0.2",
        **MNIST_MEAN,
    ),
    Recipe(
        "lept_infer mnist",
        "ordinary, ONNX for one image",
        "southw1n4/lept_infer",
        "109178a0480928c9e4bfe497c9287d3249ec8324",
        "example/models/mnist.onnx",
        "mnist",
        "0.2",
        **MNIST_MEAN,
    ),
    Recipe(
        "mnist-12",
        "ordinary, ONNX for one image of 0 … 255",
        "codytheroux96/basic-go-ml-serving-infra",
        "aba04dd63220d83628a7e8f4a0c88c5b2504e4ae",
        "models/mnist-12.onnx",
        "mnist",
        "51",
        bounds="0,255",
        points=24,
    ),
    Recipe(
        "DJL2OnnxExample mnist",
        "ordinary, ONNX for one image",
        "enpasos/DJL2OnnxExample",
        "c971bef3b09424d1105933294c44b91e516b0dbd",
        "models/mnist.onnx",
        "mnist",
        "0.05",
        points=24,
    ),
)
