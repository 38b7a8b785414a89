# The suite, validated, and what the rules ask of it. No science here.

import shlex
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(workflow.basedir))

from stealthmark import suite as suites
from stealthmark import warm
from stealthmark.errors import UserError
from stealthmark.plugins import known, load

DATA_ROOT = config.pop("data_root", None)

try:
    SUITE = suites.parse(dict(config))
except UserError as error:
    raise WorkflowError(str(error))

RESULTS = Path("results") / SUITE.suite
CELL = "{dataset}/{architecture}/{seed}/{method}"

# The commands run from this clone, with the Python that Snakemake runs with unless each rule gets its own environment.
PREFIX = f"export PYTHONPATH={shlex.quote(str(workflow.basedir))}; "
if not workflow.deployment_settings.deployment_method:
    PREFIX += f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
shell.prefix(PREFIX)

MARKS = [entry.label for entry in SUITE.methods if entry.name != "clean"]


wildcard_constraints:
    dataset="|".join(entry.label for entry in SUITE.datasets),
    architecture="|".join(entry.label for entry in SUITE.architectures),
    seed="|".join(map(str, SUITE.seeds)),
    method="|".join(["clean", *MARKS]),
    attack="|".join(entry.label for entry in SUITE.attacks) or "none",


onstart:
    warm.start()


def flow(value):
    """A mapping as one line of YAML, the way a command takes it."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()


def options(kind):
    """The plug-in of the wildcard `kind`, with its options, for a command."""
    return lambda wildcards: flow(SUITE.entry(kind, wildcards[kind]).options())


def plugin(kind):
    """The file that defines the plug-in of the wildcard `kind`: whoever edits it gets its cells computed again."""
    return lambda wildcards: known(kind)[SUITE.entry(kind, wildcards[kind]).name]


def seed(*components):
    """The seed of a job, from the words and wildcards that it may depend on."""
    return lambda wildcards: SUITE.derive(*(wildcards.get(part, part) for part in components))


def dataset_options(wildcards):
    """The dataset's options; where the data lie on this machine comes from --config data_root=..."""
    chosen = SUITE.entry("dataset", wildcards.dataset).options()
    fields = load("dataset", chosen["name"]).model_fields
    if DATA_ROOT and "data_root" in fields and "data_root" not in chosen:
        chosen["data_root"] = DATA_ROOT
    return flow(chosen)


def null_architecture(wildcards):
    """The architecture of a null model, with its options: by turns those that the suite gives, or the cell's own."""
    turns = SUITE.nulls.architectures or [SUITE.entry("architecture", wildcards.architecture)]
    return flow(turns[int(wildcards.null) % len(turns)].options())


def suspects(wildcards):
    """(situation, attack, folder) of every suspect that is examined with a cell's key."""
    models = RESULTS / "models" / wildcards.dataset / wildcards.architecture / wildcards.seed
    yield "stolen", "none", models / wildcards.method
    if wildcards.method != "clean":
        made = RESULTS / "suspects" / wildcards.dataset / wildcards.architecture / wildcards.seed / wildcards.method
        for entry in SUITE.attacks:
            yield "stolen", entry.label, made / entry.label
        yield "independent", "none", models / "independent"
        if SUITE.nulls:
            for null in range(SUITE.nulls.count):
                yield f"null-{null}", "none", models / "nulls" / str(null)
            for other in MARKS:
                if other != wildcards.method:
                    yield f"null-{other}", "none", models / other
            for null in range(SUITE.nulls.other_keys):
                yield f"null-key-{null}", "none", models / "other-keys" / wildcards.method / str(null)


def explained(wildcards):
    """(situation, attack, folder) of the marked model as it was stolen and of an independent one; where the mark carries a
    code, also of what attacks made of it."""
    carries = load("method", SUITE.entry("method", wildcards.method).name).carries
    return [
        (situation, attack, folder)
        for situation, attack, folder in suspects(wildcards)
        if situation in ("stolen", "independent") and (attack == "none" or carries)
    ]
