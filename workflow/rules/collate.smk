# Evidence of all runs -> rows.


rule suite:
    output:
        RESULTS / "suite.yaml",
    log:
        RESULTS / "logs/suite.log",
    params:
        suite=flow(SUITE.model_dump(mode="json")),
    localrule: True
    conda:
        "../../environment.yml"
    shell:
        "echo {params.suite:q} > {output} 2> {log}"


rule collate:
    input:
        [
            RESULTS / "evidence" / CELL.format(**cell._asdict()) / "evidence.json"
            for cell in SUITE.cells()
        ],
        [
            RESULTS / "explanations" / CELL.format(**cell._asdict()) / "explanations.json"
            for cell in SUITE.cells()
            if SUITE.explanations and cell.method != "clean"
        ],
        suite=RESULTS / "suite.yaml",
    output:
        report(RESULTS / "rows.csv", caption="../report/rows.rst", category="Data"),
        RESULTS / "cases.parquet",
        report(RESULTS / "provenance.json", caption="../report/provenance.rst", category="Data"),
    log:
        RESULTS / "logs/collate.log",
    params:
        results=subpath(output[0], parent=True),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark collate --suite {input.suite} --results {params.results} 2> {log}"
