# What explanations of a suspect's answers show: the owner's QR code, and in which models. A job is one role and attack.


rule explain:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        model=STUDY.model(CELL) / CARD,
        suspects=cards(at(SUITE.explained)),
    output:
        job_folder(STUDY.explanations(CELL), "{role}", "{attack}") / EXPLANATIONS,
    log:
        RESULTS / f"logs/explain/{'/'.join(CELL)}/{{role}}/{{attack}}.log",
    params:
        suspects=suspects(at(SUITE.explained)),
        key=str(STUDY.key(CELL)),
        plan=lambda wildcards: flow(SUITE.explanations.model_dump()),
        seed=seed("explain", "dataset", "architecture", "seed"),
        model=subpath(input.model, parent=True),
        data=subpath(input.data, parent=True),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark explain --data {params.data} --key {params.key} --marked {params.model} {params.suspects}"
        " --plan {params.plan:q} --seed {params.seed} --threads {threads} --record-failure --out {params.out} 2> {log}"
