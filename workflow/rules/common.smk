# The suite, validated, and what the rules ask of it. No science here.

import json
import re
import shlex
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(workflow.basedir))

from stealthmark import dataset, suite as suites, warm
from stealthmark.errors import UserError
from stealthmark.layout import (
    CARD,
    CLEAN,
    EVIDENCE,
    EXPLANATIONS,
    INDEPENDENT,
    INDEX,
    MANIFEST,
    NO_ATTACK,
    NULL,
    SCAN,
    STOLEN,
    Cell,
    Place,
    Study,
    claims_folder,
    job_folder,
)
from stealthmark.plugin_code import code_of
from stealthmark.plugins import load

DATA_ROOT = config.pop("data_root", None)

try:
    SUITE = suites.parse(dict(config))
except UserError as error:
    raise WorkflowError(str(error))

RESULTS = Path("results") / SUITE.suite
STUDY = Study(RESULTS)
#: A cell, and what belongs to one whatever its method, with wildcards for Snakemake to fill in.
CELL = Cell("{dataset}", "{architecture}", "{seed}", "{method}")
CLEAN_CELL = CELL._replace(method=CLEAN)

# The commands run from this clone, with the Python that Snakemake runs with unless each rule gets its own environment.
PREFIX = f"export PYTHONPATH={shlex.quote(str(workflow.basedir))}; "
if not workflow.deployment_settings.deployment_method:
    PREFIX += f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
shell.prefix(PREFIX)


class Captions(type(Path())):
    """The file with a run's captions, which the template of figures reads when `snakemake --report` is asked for: by then the
    run has written it."""

    def __getitem__(self, figure):
        return re.sub(r"([\\*`|_])", r"\\\1", json.loads(self.read_text())[figure])


def either(labels):
    """What a wildcard may be."""
    return "|".join(labels) or "none"


wildcard_constraints:
    dataset=either(entry.label for entry in SUITE.datasets),
    architecture=either(entry.label for entry in SUITE.architectures),
    seed=either(map(str, SUITE.seeds)),
    method=either([CLEAN, *SUITE.marks]),
    attack=either([NO_ATTACK, *(entry.label for entry in SUITE.attacks)]),
    scanner=either(entry.label for entry in SUITE.scanners),
    null="[0-9]+",


onstart:
    warm.start()


def cell_of(wildcards):
    """The cell of a job."""
    return Cell(wildcards.dataset, wildcards.architecture, wildcards.seed, wildcards.get("method", CLEAN))


def flow(value):
    """A value as one line of YAML, the way a command takes it."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()


def options(kind):
    """The plug-in of the wildcard `kind`, with its options, for a command."""
    return lambda wildcards: flow(SUITE.entry(kind, wildcards[kind]).options())


def code(kind):
    """The files that define the plug-in of the wildcard `kind`: whoever edits one gets its jobs run again."""
    return lambda wildcards: SUITE.code_of(kind, wildcards[kind])


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
    """The architecture of a null model: by turns those that the suite gives, or the cell's own."""
    turns = SUITE.nulls.architectures or [SUITE.entry("architecture", wildcards.architecture)]
    return turns[int(wildcards.null) % len(turns)]


def model_folder(cell, place):
    """The folder of the model, or of the attack's suspects, that stands at a place."""
    if place.role == STOLEN:
        return STUDY.model(cell) if place.attack == NO_ATTACK else STUDY.attacked(cell, place.attack)
    if place.role == NULL:
        return STUDY.null(cell, place.member)
    return STUDY.independent(cell) if place.role == INDEPENDENT else STUDY.model(cell._replace(method=CLEAN))


def card(folder, place):
    """The file that is there when such a folder is."""
    return folder / (CARD if place.attack == NO_ATTACK else INDEX)


def cards(places):
    """The cards of the models that a job looks at; `places`: wildcards -> where they stand."""

    def of(wildcards):
        cell = cell_of(wildcards)
        return [card(model_folder(cell, place), place) for place in places(wildcards)]

    return of


def suspects(places):
    """The same models as a command names them."""

    def of(wildcards):
        cell = cell_of(wildcards)
        return [f"--suspect {place.text}={model_folder(cell, place)}" for place in places(wildcards)]

    return of


def at(line_up):
    """The places of the line-up `line_up(cell)` with a job's role and attack."""
    return lambda wildcards: [
        place for place in line_up(cell_of(wildcards)) if (place.role, place.attack) == (wildcards.role, wildcards.attack)
    ]


def claimed(wildcards):
    """Whom claims have to do with: the model as it was stolen, the claimant's own, and the null models."""
    return [place for place in SUITE.line_up(cell_of(wildcards)) if place.attack == NO_ATTACK]


def jobs(line_up, cell):
    """(role, attack) of every job of a line-up, each once."""
    return dict.fromkeys((place.role, place.attack) for place in line_up(cell))


def null_of_mark(wildcards):
    """The model that stands for all that are not the owner's: the clean one, or for a fingerprint, whose model that is, a
    second one."""
    facts = SUITE.facts("method", wildcards.method)
    return STUDY.twin(CELL) if facts["kind"] == "fingerprint" else STUDY.model(CLEAN_CELL)


def scanned_model(wildcards):
    """The folder of the model that a scanner looks at."""
    member = "" if wildcards.member == "none" else wildcards.member
    return model_folder(cell_of(wildcards), Place(wildcards.role, member))
