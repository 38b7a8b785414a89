# A thief works on the marked model with data of their own, or puts a wrapper around it.


rule attack:
    input:
        data=STUDY.data("{dataset}") / MANIFEST,
        code=code("attack"),
        model=STUDY.model(CELL) / CARD,
    output:
        STUDY.attacked(CELL, "{attack}") / INDEX,
    log:
        RESULTS / f"logs/attack/{'/'.join(CELL)}/{{attack}}.log",
    params:
        attack=options("attack"),
        seed=seed("attack", "dataset", "architecture", "seed", "method", "attack"),
        data=subpath(input.data, parent=True),
        model=subpath(input.model, parent=True),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark attack --data {params.data} --model {params.model} --attack {params.attack:q}"
        " --seed {params.seed} --threads {threads} --record-failure --out {params.out} 2> {log}"
