# What explanations of a suspect's answers show: the owner's QR code, and in which models.


rule explain:
    input:
        data=RESULTS / "data/{dataset}/manifest.json",
        suspects=lambda wildcards: [
            folder / ("card.json" if attack == "none" else "index.json") for _, attack, folder in explained(wildcards)
        ],
    output:
        RESULTS / f"explanations/{CELL}/explanations.json",
    log:
        RESULTS / f"logs/explain/{CELL}.log",
    params:
        suspects=lambda wildcards: [f"--suspect {s}/{a}={folder}" for s, a, folder in explained(wildcards)],
        key=str(RESULTS / f"keys/{CELL}.json"),
        plan=flow(SUITE.explanations.model_dump()) if SUITE.explanations else "",
        seed=seed("explain", "dataset", "architecture", "seed"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        method="|".join(MARKS) or "none",
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark explain --data {params.data} --key {params.key} {params.suspects} --plan {params.plan:q}"
        " --seed {params.seed} --threads {threads} --record-failure --out {params.out} 2> {log}"
