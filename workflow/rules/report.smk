# Tables and plots of the whole grid, and one page that shows them.


rule report:
    input:
        [LAYOUT.calibration(model).cost for model in GRID.models],
        CELL_FILES,
    output:
        [shown(file) for file in REPORT.all],
    log:
        str(LAYOUT.log("report")),
    benchmark:
        str(LAYOUT.logs / "report.benchmark.tsv")
    localrule: True
    conda:
        ENV
    params:
        grid=str(EXPERIMENT.file),
        out=subpath(output[0], parent=True),
        settings=lambda wildcards: as_json(report_settings(EXPERIMENT)),  # a title may look like a wildcard
    message:
        "report of {params.grid}"
    shell:
        "ffp report --config {params.grid:q} --out {params.out:q} > {log:q} 2>&1"
