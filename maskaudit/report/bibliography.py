"""BibTeX of what an audit may rest on, and which of it a given audit used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskaudit.report.records import View

#: Entries by key: kind and fields in the order written.
ENTRIES: Mapping[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    key: (kind, (("author", authors), ("title", title), (where, venue), ("year", year), *more))
    for key, kind, authors, title, where, venue, year, *more in (
        ("andriushchenko2020square", "inproceedings",
         "Andriushchenko, Maksym and Croce, Francesco and Flammarion, Nicolas and Hein, Matthias",
         "Square Attack: A Query-Efficient Black-Box Adversarial Attack via Random Search",
         "booktitle", "European Conference on Computer Vision (ECCV)", "2020", ("eprint", "1912.00049")),
        ("athalye2018obfuscated", "inproceedings", "Athalye, Anish and Carlini, Nicholas and Wagner, David",
         "Obfuscated Gradients Give a False Sense of Security: Circumventing Defenses to Adversarial Examples",
         "booktitle", "International Conference on Machine Learning (ICML)", "2018", ("eprint", "1802.00420")),
        ("carlini2017towards", "inproceedings", "Carlini, Nicholas and Wagner, David",
         "Towards Evaluating the Robustness of Neural Networks",
         "booktitle", "IEEE Symposium on Security and Privacy", "2017", ("eprint", "1608.04644")),
        ("chen2020hopskipjump", "inproceedings", "Chen, Jianbo and Jordan, Michael I. and Wainwright, Martin J.",
         "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack",
         "booktitle", "IEEE Symposium on Security and Privacy", "2020", ("eprint", "1904.02144")),
        ("chen2020rays", "inproceedings", "Chen, Jinghui and Gu, Quanquan",
         "RayS: A Ray Searching Method for Hard-Label Adversarial Attack",
         "booktitle", "ACM SIGKDD Conference on Knowledge Discovery and Data Mining", "2020",
         ("eprint", "2006.12792")),
        ("clopper1934use", "article", "Clopper, C. J. and Pearson, E. S.",
         "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial",
         "journal", "Biometrika", "1934", ("volume", "26"), ("number", "4"), ("pages", "404--413")),
        ("croce2020reliable", "inproceedings", "Croce, Francesco and Hein, Matthias",
         "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
         "booktitle", "International Conference on Machine Learning (ICML)", "2020", ("eprint", "2003.01690")),
        ("goodfellow2015explaining", "inproceedings",
         "Goodfellow, Ian J. and Shlens, Jonathon and Szegedy, Christian",
         "Explaining and Harnessing Adversarial Examples",
         "booktitle", "International Conference on Learning Representations (ICLR)", "2015", ("eprint", "1412.6572")),
        ("kim2020torchattacks", "misc", "Kim, Hoki",
         "Torchattacks: A PyTorch Repository for Adversarial Attacks",
         "howpublished", "arXiv:2010.01950", "2020"),
        ("ma2020imbalanced", "misc",
         "Ma, Xingjun and Jiang, Linxi and Huang, Hanxun and Weng, Zejia and Bailey, James and Jiang, Yu-Gang",
         "Imbalanced Gradients: A Subtle Cause of Overestimated Adversarial Robustness",
         "howpublished", "arXiv:2006.13726", "2020"),
        ("madry2018towards", "inproceedings",
         "M{\\k{a}}dry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris and "
         "Vladu, Adrian",
         "Towards Deep Learning Models Resistant to Adversarial Attacks",
         "booktitle", "International Conference on Learning Representations (ICLR)", "2018", ("eprint", "1706.06083")),
        ("moosavi2017universal", "inproceedings",
         "Moosavi-Dezfooli, Seyed-Mohsen and Fawzi, Alhussein and Fawzi, Omar and Frossard, Pascal",
         "Universal Adversarial Perturbations",
         "booktitle", "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)", "2017",
         ("eprint", "1610.08401")),
        ("papernot2017practical", "inproceedings",
         "Papernot, Nicolas and McDaniel, Patrick and Goodfellow, Ian and Jha, Somesh and Celik, Z. Berkay and "
         "Swami, Ananthram",
         "Practical Black-Box Attacks against Machine Learning",
         "booktitle", "ACM Asia Conference on Computer and Communications Security (ASIA CCS)", "2017",
         ("eprint", "1602.02697")),
        ("tashiro2020diversity", "inproceedings", "Tashiro, Yusuke and Song, Yang and Ermon, Stefano",
         "Diversity Can Be Transferred: Output Diversification for White- and Black-Box Attacks",
         "booktitle", "Advances in Neural Information Processing Systems (NeurIPS)", "2020",
         ("eprint", "2003.06878")),
        ("uesato2018adversarial", "inproceedings",
         "Uesato, Jonathan and O'Donoghue, Brendan and van den Oord, A{\\\"a}ron and Kohli, Pushmeet",
         "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks",
         "booktitle", "International Conference on Machine Learning (ICML)", "2018", ("eprint", "1802.05666")),
        ("yu2023efficient", "inproceedings", "Yu, Yunrui and Xu, Cheng-Zhong",
         "Efficient Loss Function by Minimizing the Detrimental Effect of Floating-Point Errors on "
         "Gradient-Based Attacks",
         "booktitle", "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)", "2023"),
        ("zhang2022branch", "inproceedings",
         "Zhang, Huan and Wang, Shiqi and Xu, Kaidi and Wang, Yihan and Jana, Suman and Hsieh, Cho-Jui and "
         "Kolter, Zico",
         "A Branch and Bound Framework for Stronger Adversarial Attacks of {ReLU} Networks",
         "booktitle", "International Conference on Machine Learning (ICML)", "2022"),
        ("zimmermann2022increasing", "inproceedings",
         "Zimmermann, Roland S. and Brendel, Wieland and Tram{\\`e}r, Florian and Carlini, Nicholas",
         "Increasing Confidence in Adversarial Robustness Evaluations",
         "booktitle", "Advances in Neural Information Processing Systems (NeurIPS)", "2022",
         ("eprint", "2206.13991")),
    )
}  # fmt: skip

#: How a source is named in running text.
SHORT = {
    "andriushchenko2020square": "Andriushchenko et al., 2020",
    "athalye2018obfuscated": "Athalye, Carlini and Wagner, 2018",
    "carlini2017towards": "Carlini and Wagner, 2017",
    "chen2020hopskipjump": "Chen, Jordan and Wainwright, 2020",
    "chen2020rays": "Chen and Gu, 2020",
    "clopper1934use": "Clopper and Pearson, 1934",
    "croce2020reliable": "Croce and Hein, 2020",
    "goodfellow2015explaining": "Goodfellow et al., 2015",
    "kim2020torchattacks": "Kim, 2020",
    "ma2020imbalanced": "Ma et al., 2020",
    "madry2018towards": "Mądry et al., 2018",
    "moosavi2017universal": "Moosavi-Dezfooli et al., 2017",
    "papernot2017practical": "Papernot et al., 2017",
    "tashiro2020diversity": "Tashiro, Song and Ermon, 2020",
    "uesato2018adversarial": "Uesato et al., 2018",
    "yu2023efficient": "Yu and Xu, 2023",
    "zhang2022branch": "Zhang et al., 2022",
    "zimmermann2022increasing": "Zimmermann et al., 2022",
}

#: What an attack rests on, by its name in the report.
_ATTACKS = {
    "pgd": ("madry2018towards",),
    "fgsm": ("goodfellow2015explaining",),
    "pgd-coarse": ("madry2018towards",),
    "apgd-ce": ("croce2020reliable",),
    "apgd-margin": ("croce2020reliable", "carlini2017towards"),
    "apgd-dlr": ("croce2020reliable",),
    "apgd-rescaled": ("croce2020reliable", "yu2023efficient"),
    "apgd-targeted": ("croce2020reliable",),
    "apgd-ce-restarts": ("croce2020reliable",),
    "apgd-ce-near": ("croce2020reliable",),
    "apgd-near": ("croce2020reliable",),
    "square-near": ("andriushchenko2020square",),
    "adaptive-ce": ("tashiro2020diversity",),
    "adaptive": ("ma2020imbalanced", "tashiro2020diversity"),
    "repaired": ("athalye2018obfuscated",),
    "noise": ("athalye2018obfuscated",),
    "transfer": ("papernot2017practical",),
    "square": ("andriushchenko2020square",),
    "finite-differences": ("uesato2018adversarial",),
    "decision": ("chen2020hopskipjump", "chen2020rays"),
    "universal": ("moosavi2017universal",),
    "branch-and-bound": ("zhang2022branch",),
}


def keys_of(attack: str) -> tuple[str, ...]:
    """Keys of what an attack rests on; empty where none is known."""
    return ("kim2020torchattacks",) if attack.startswith("torchattacks") else _ATTACKS.get(attack, ())


def used(view: View) -> list[str]:
    """Keys of everything that this audit rests on, sorted."""
    keys = {key for row in view.attacks_run if row.role != "sanity" for key in keys_of(row.name)}
    keys.add("clopper1934use")
    if "planted" in view.power_method.lower():
        keys.add("zimmermann2022increasing")
    return sorted(keys)


def bibtex(keys: Iterable[str], version: str) -> str:
    """BibTeX of the tool and of the named entries; `version` must be harmless LaTeX."""
    tool = (
        ("author", "{The maskaudit developers}"),
        ("title", "{maskaudit}: Auditing Classifiers for Gradient Masking"),
    )
    blocks = [_entry("maskaudit", "misc", (*tool, *((("note", f"Software, version {version}"),) if version else ())))]
    blocks += [_entry(key, *ENTRIES[key]) for key in keys]
    return "\n\n".join(blocks)


def _entry(key: str, kind: str, fields: tuple[tuple[str, str], ...]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields]
    if any(name == "eprint" for name, _ in fields):
        lines.append("  archiveprefix = {arXiv},")
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
