# Source -> arrays, decoded once.


rule prepare:
    input:
        lambda wildcards: dataset.code_of(SUITE.entry("dataset", wildcards.dataset).name),
    output:
        STUDY.data("{dataset}") / MANIFEST,
    log:
        RESULTS / "logs/prepare/{dataset}.log",
    params:
        dataset=dataset_options,
        size=SUITE.size,
        seed=seed("prepare", "dataset"),
        out=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark prepare --dataset {params.dataset:q} --size {params.size} --seed {params.seed}"
        " --out {params.out} 2> {log}"
