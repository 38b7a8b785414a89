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
        seed=seed("mark", "dataset", "architecture", "seed", "method"),
        data=subpath(input.data, parent=True),
        clean=subpath(input.clean, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        method="|".join(MARKS) or "none",
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark mark --data {params.data} --clean {params.clean} --method {params.method:q}"
        " --schedule {params.schedule:q} --access {params.access} --seed {params.seed} --threads {threads}"
        " --record-failure --out {params.out} 2> {log}"
