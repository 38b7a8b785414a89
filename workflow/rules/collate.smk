# Evidence of all runs -> rows.


rule suite:
    output:
        RESULTS / "suite.yaml",
    log:
        RESULTS / "logs/suite.log",
    params:
        # A function, because Snakemake fills braces in a text, and a title may have some.
        suite=lambda wildcards: flow(SUITE.model_dump(mode="json")),
    localrule: True
    conda:
        "../../environment.yml"
    shell:
        "echo {params.suite:q} > {output} 2> {log}"


rule collate:
    input:
        [job_folder(STUDY.evidence(cell), *job) / EVIDENCE for cell in SUITE.cells() for job in jobs(SUITE.line_up, cell)],
        [claims_folder(STUDY.evidence(cell)) / EVIDENCE for cell in SUITE.cells() if SUITE.claims and SUITE.pool(cell.method)],
        [
            job_folder(STUDY.explanations(cell), *job) / EXPLANATIONS
            for cell in SUITE.cells()
            for job in jobs(SUITE.explained, cell)
        ],
        [
            STUDY.scan(cell, place.role, place.member, entry.label) / SCAN
            for cell in SUITE.cells()
            for place in SUITE.scanned(cell)
            for entry in SUITE.scanners
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
