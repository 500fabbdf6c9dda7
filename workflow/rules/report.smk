# Tables and plots of the whole grid, and one page that shows them.


def shown(file):
    """A file of the report; the page, the tables of figures and the plots also appear in `snakemake --report`."""
    category = {".html": "Results", ".csv": "Results", ".svg": "Plots"}.get(file.suffix)
    if category is None:
        return str(file)
    return report(str(file), caption=f"../report/{file.stem}.rst", category=category)


rule report:
    input:
        [LAYOUT.calibration(model).cost for model in GRID.models],
        CELL_FILES,
    output:
        [shown(file) for file in REPORT.all],
    log:
        str(LAYOUT.log("report")),
    benchmark:
        "logs/report.benchmark.tsv"
    localrule: True
    conda:
        ENV
    params:
        grid=str(EXPERIMENT.file),
        out=str(REPORT.folder),
        settings=as_json(report_settings(EXPERIMENT)),
    message:
        "report of {params.grid}"
    shell:
        "ffp report --config {params.grid:q} --out {params.out:q} > {log:q} 2>&1"
