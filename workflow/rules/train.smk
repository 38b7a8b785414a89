# The owner's clean model; and an independent one, which somebody else trained on other data: nobody may win it by a key.


rule train_clean:
    input:
        data=RESULTS / "data/{dataset}/manifest.json",
    output:
        RESULTS / "models/{dataset}/{architecture}/{seed}/clean/card.json",
    log:
        RESULTS / "logs/train/{dataset}/{architecture}/{seed}/clean.log",
    params:
        share="owner",
        architecture=options("architecture"),
        schedule=flow(SUITE.training.model_dump()),
        seed=seed("train", "dataset", "architecture", "seed"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark train --data {params.data} --share {params.share} --architecture {params.architecture:q}"
        " --schedule {params.schedule:q} --seed {params.seed} --threads {threads} --record-failure --out {params.out}"
        " 2> {log}"


use rule train_clean as train_independent with:
    output:
        RESULTS / "models/{dataset}/{architecture}/{seed}/independent/card.json",
    log:
        RESULTS / "logs/train/{dataset}/{architecture}/{seed}/independent.log",
    params:
        share="attacker",
        architecture=options("architecture"),
        schedule=flow(SUITE.training.model_dump()),
        seed=seed("independent", "dataset", "architecture", "seed"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),


# The pool of null models that a suspect's score is ranked among, where the suite asks for one.
rule train_null:
    input:
        data=RESULTS / "data/{dataset}/manifest.json",
    output:
        RESULTS / "models/{dataset}/{architecture}/{seed}/nulls/{null}/card.json",
    log:
        RESULTS / "logs/train/{dataset}/{architecture}/{seed}/nulls/{null}.log",
    params:
        share=lambda wildcards: "owner" if int(wildcards.null) % 2 else "attacker",
        fraction=SUITE.nulls.fraction if SUITE.nulls else 1,
        architecture=null_architecture,
        schedule=flow(((SUITE.nulls and SUITE.nulls.training) or SUITE.training).model_dump()),
        seed=seed("null", "dataset", "architecture", "seed", "null"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        null="[0-9]+",
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark train --data {params.data} --share {params.share} --fraction {params.fraction}"
        " --architecture {params.architecture:q} --schedule {params.schedule:q} --seed {params.seed} --threads {threads}"
        " --record-failure --out {params.out} 2> {log}"
