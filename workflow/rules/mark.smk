# Each method marks the owner's model and keeps a key; a fingerprint keeps a key and leaves the model as it is.


rule mark:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        code=code("method"),
        clean=STUDY.model(CLEAN_CELL) / CARD,
        null=lambda wildcards: null_of_mark(wildcards) / CARD,
    output:
        STUDY.model(CELL) / CARD,
    log:
        RESULTS / f"logs/mark/{'/'.join(CELL)}.log",
    params:
        method=options("method"),
        schedule=flow(SUITE.marking.model_dump() | {"settled": SUITE.marking.settled}),
        access=SUITE.access,
        share="owner",
        key=str(STUDY.key(CELL)),
        seed=seed("mark", "dataset", "architecture", "seed", "method"),
        data=subpath(input.data, parent=True),
        clean=subpath(input.clean, parent=True),
        null=subpath(input.null, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        method=either(SUITE.marks),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark mark --data {params.data} --share {params.share} --clean {params.clean} --null {params.null}"
        " --method {params.method:q} --schedule {params.schedule:q} --access {params.access} --seed {params.seed}"
        " --threads {threads} --record-failure --replace-key --key {params.key} --out {params.out} 2> {log}"


# Another owner, who marks their own model with the same method: a null model for everybody else's key.
use rule mark as mark_with_other_key with:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        code=code("method"),
        clean=STUDY.independent(CELL) / CARD,
        null=STUDY.independent(CELL) / CARD,
    output:
        STUDY.other_key(CELL, "{null}") / CARD,
    log:
        RESULTS / "logs/mark/{dataset}/{architecture}/{seed}/other-keys/{method}/{null}.log",
    params:
        method=options("method"),
        schedule=flow(SUITE.marking.model_dump() | {"settled": SUITE.marking.settled}),
        access=SUITE.access,
        share="attacker",
        key=str(STUDY.key_of_other(CELL, "{null}")),
        seed=seed("other-key", "dataset", "architecture", "seed", "method", "null"),
        data=subpath(input.data, parent=True),
        clean=subpath(input.clean, parent=True),
        null=subpath(input.null, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        method=either(SUITE.marks),
