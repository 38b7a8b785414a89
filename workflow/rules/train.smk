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
