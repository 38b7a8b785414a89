# The owner's clean model; and an independent one, which somebody else trained on other data: nobody may win it by a key.


rule train_clean:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        code=code("architecture"),
    output:
        STUDY.model(CLEAN_CELL) / CARD,
    log:
        RESULTS / "logs/train/{dataset}/{architecture}/{seed}/clean.log",
    params:
        share="owner",
        fraction=1,
        architecture=options("architecture"),
        schedule=flow(SUITE.training.model_dump()),
        seed=seed("train", "dataset", "architecture", "seed"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark train --data {params.data} --share {params.share} --fraction {params.fraction}"
        " --architecture {params.architecture:q} --schedule {params.schedule:q} --seed {params.seed} --threads {threads}"
        " --record-failure --out {params.out} 2> {log}"


use rule train_clean as train_independent with:
    output:
        STUDY.independent(CELL) / CARD,
    log:
        RESULTS / "logs/train/{dataset}/{architecture}/{seed}/independent.log",
    params:
        share="attacker",
        fraction=1,
        architecture=options("architecture"),
        schedule=flow(SUITE.training.model_dump()),
        seed=seed("independent", "dataset", "architecture", "seed"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),


# A second clean model of the owner's: for a fingerprint it stands for all that are not the owner's.
use rule train_clean as train_twin with:
    output:
        STUDY.twin(CELL) / CARD,
    log:
        RESULTS / "logs/train/{dataset}/{architecture}/{seed}/twin.log",
    params:
        share="owner",
        fraction=1,
        architecture=options("architecture"),
        schedule=flow(SUITE.training.model_dump()),
        seed=seed("twin", "dataset", "architecture", "seed"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),


# Models that were never marked, each trained by somebody else on part of the data: what a suspect is ranked among.
use rule train_clean as train_null with:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        code=lambda wildcards: code_of("architecture", null_architecture(wildcards).name),
    output:
        STUDY.null(CELL, "{null}") / CARD,
    log:
        RESULTS / "logs/train/{dataset}/{architecture}/{seed}/nulls/{null}.log",
    params:
        share=lambda wildcards: SUITE.nulls.share(int(wildcards.null)),
        fraction=SUITE.nulls.fraction if SUITE.nulls else 1,
        architecture=lambda wildcards: flow(null_architecture(wildcards).options()),
        schedule=flow(SUITE.null_training.model_dump()) if SUITE.nulls else "",
        seed=seed("null", "dataset", "architecture", "seed", "null"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
