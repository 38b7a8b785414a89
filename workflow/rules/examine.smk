# The owner queries suspects with the key. A job is one role and attack: the stolen model as it is, what one attack made of it,
# an independent model, the null pool. So one more attack in a suite asks that attack's suspects alone.


rule examine:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        model=STUDY.model(CELL) / CARD,
        suspects=cards(at(SUITE.line_up)),
    output:
        job_folder(STUDY.evidence(CELL), "{role}", "{attack}") / EVIDENCE,
    log:
        RESULTS / f"logs/examine/{'/'.join(CELL)}/{{role}}/{{attack}}.log",
    params:
        suspects=suspects(at(SUITE.line_up)),
        key=lambda wildcards: "" if wildcards.method == CLEAN else f"--key {STUDY.key(cell_of(wildcards))}",
        model=subpath(input.model, parent=True),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    wildcard_constraints:
        role=either([STOLEN, INDEPENDENT, NULL]),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark examine --data {params.data} {params.key} --marked {params.model} {params.suspects}"
        " --threads {threads} --record-failure --out {params.out} 2> {log}"


# What others may claim of the model as it was stolen, and of the null models.
rule examine_claims:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        model=STUDY.model(CELL) / CARD,
        suspects=cards(claimed),
    output:
        claims_folder(STUDY.evidence(CELL)) / EVIDENCE,
    log:
        RESULTS / f"logs/examine/{'/'.join(CELL)}/claims.log",
    params:
        suspects=suspects(claimed),
        key=str(STUDY.key(CELL)),
        plan=flow(SUITE.claims.model_dump()) if SUITE.claims else "",
        seed=seed("claims", "dataset", "architecture", "seed", "method"),
        model=subpath(input.model, parent=True),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark examine --data {params.data} --key {params.key} --marked {params.model} {params.suspects}"
        " --claims {params.plan:q} --seed {params.seed} --threads {threads} --record-failure --out {params.out} 2> {log}"
