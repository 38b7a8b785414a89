# Somebody who has a model and knows no key asks whether it looks backdoored: of marked models, and of models never marked.


rule scan:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        code=code("scanner"),
        model=lambda wildcards: card(scanned_model(wildcards), Place()),
    output:
        STUDY.scan(CELL, "{role}", "{member}", "{scanner}") / SCAN,
    log:
        RESULTS / f"logs/scan/{'/'.join(CELL)}/{{role}}/{{member}}/{{scanner}}.log",
    params:
        scanner=options("scanner"),
        seed=seed("scan", "dataset", "architecture", "seed", "scanner"),
        data=subpath(input.data, parent=True),
        model=subpath(input.model, parent=True),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark scan --data {params.data} --model {params.model} --scanner {params.scanner:q}"
        " --seed {params.seed} --threads {threads} --record-failure --out {params.out} 2> {log}"
