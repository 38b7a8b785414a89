# Rows -> tables, figures, one page. `snakemake --report FILE.html` gathers them with their captions.


rule report:
    input:
        RESULTS / "rows.csv",
        RESULTS / "cases.parquet",
        RESULTS / "provenance.json",
        suite=RESULTS / "suite.yaml",
    output:
        report(RESULTS / "report.html", caption="../report/page.rst", category="Overview"),
        report(
            directory(RESULTS / "figures"),
            patterns=["{figure}.png"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        report(
            directory(RESULTS / "tables"),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        RESULTS / "logs/report.log",
    params:
        results=subpath(output[0], parent=True),
        captions=lambda wildcards, output: Captions(output[1], "captions.json"),
    conda:
        "../../environment.yml"
    shell:
        "python -m stealthmark report --suite {input.suite} --results {params.results} 2> {log}"
