# The study: which marks take, what they cost, what removes them, and whom they would wrongly accuse.
#
#   prepare  source -> arrays, split by patient into owner, calibration, attacker, test
#   train    a clean model of the owner, and an independent one of somebody else
#   mark     each method marks the owner's model and keeps a key
#   attack   a thief fine-tunes, prunes, ... the marked model, or wraps it
#   examine  the owner queries every suspect with the key
#   explain  what explanations of the suspects' answers show (where the suite asks for it)
#   scan     how backdoored a model looks to somebody who knows no key (where the suite asks for it)
#   collate  evidence of all runs -> rows
#   report   rows -> tables, figures, one page
#
# snakemake --cores 2                                        the default suite, benchmarks/quick.yaml
# snakemake --cores 2 --configfile benchmarks/real.yaml      the same study on Kvasir-SEG

from snakemake.utils import min_version

min_version("9.6")

if "suite" not in config:

    configfile: "benchmarks/quick.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/mark.smk"
include: "workflow/rules/attack.smk"
include: "workflow/rules/examine.smk"
include: "workflow/rules/explain.smk"
include: "workflow/rules/scan.smk"
include: "workflow/rules/collate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        RESULTS / "report.html",
