# Each method marks the owner's model and keeps a key.


rule mark:
    input:
        data=RESULTS / "data/{dataset}/manifest.json",
        plugin=plugin("method"),
        clean=RESULTS / "models/{dataset}/{architecture}/{seed}/clean/card.json",
    output:
        RESULTS / f"models/{CELL}/card.json",
    log:
        RESULTS / f"logs/mark/{CELL}.log",
    params:
        method=options("method"),
        schedule=flow(SUITE.marking.model_dump()),
        access=SUITE.access,
        share="owner",
        key=str(RESULTS / f"keys/{CELL}.json"),
        seed=seed("mark", "dataset", "architecture", "seed", "method"),
        data=subpath(input.data, parent=True),
        clean=subpath(input.clean, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        method="|".join(MARKS) or "none",
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark mark --data {params.data} --share {params.share} --clean {params.clean}"
        " --method {params.method:q} --schedule {params.schedule:q} --access {params.access} --seed {params.seed}"
        " --threads {threads} --record-failure --key {params.key} --out {params.out} 2> {log}"


# Another owner, who marks their own model with the same method: a null model for everybody else's key.
use rule mark as mark_with_other_key with:
    input:
        data=RESULTS / "data/{dataset}/manifest.json",
        plugin=plugin("method"),
        clean=RESULTS / "models/{dataset}/{architecture}/{seed}/independent/card.json",
    output:
        RESULTS / "models/{dataset}/{architecture}/{seed}/other-keys/{method}/{null}/card.json",
    log:
        RESULTS / "logs/mark/{dataset}/{architecture}/{seed}/other-keys/{method}/{null}.log",
    params:
        method=options("method"),
        schedule=flow(SUITE.marking.model_dump()),
        access=SUITE.access,
        share="attacker",
        key=str(RESULTS / "keys/{dataset}/{architecture}/{seed}/other-keys/{method}/{null}.json"),
        seed=seed("other-key", "dataset", "architecture", "seed", "method", "null"),
        data=subpath(input.data, parent=True),
        clean=subpath(input.clean, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        method="|".join(MARKS) or "none",
        null="[0-9]+",
