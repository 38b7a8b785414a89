# The owner queries suspects with the key: the stolen model as it is, what attacks made of it, and an independent model.


rule examine:
    input:
        data=RESULTS / "data/{dataset}/manifest.json",
        suspects=lambda wildcards: [
            folder / ("card.json" if attack == "none" else "index.json") for _, attack, folder in suspects(wildcards)
        ],
    output:
        RESULTS / f"evidence/{CELL}/evidence.json",
    log:
        RESULTS / f"logs/examine/{CELL}.log",
    params:
        suspects=lambda wildcards: [f"--suspect {s}/{a}={folder}" for s, a, folder in suspects(wildcards)],
        key=lambda wildcards: (
            "" if wildcards.method == "clean" else f"--key {RESULTS / 'keys' / CELL.format(**wildcards)}.json"
        ),
        claims=f"--claims {shlex.quote(flow(SUITE.claims.model_dump()))}" if SUITE.claims else "",
        seed=seed("claims", "dataset", "architecture", "seed", "method"),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark examine --data {params.data} {params.key} {params.suspects} {params.claims} --seed {params.seed}"
        " --threads {threads} --record-failure --out {params.out} 2> {log}"
