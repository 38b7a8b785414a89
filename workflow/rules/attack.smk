# A thief works on the marked model with data of their own.


rule attack:
    input:
        data=RESULTS / "data/{dataset}/manifest.json",
        plugin=plugin("attack"),
        model=RESULTS / f"models/{CELL}/card.json",
    output:
        RESULTS / f"suspects/{CELL}/{{attack}}/index.json",
    log:
        RESULTS / f"logs/attack/{CELL}/{{attack}}.log",
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
