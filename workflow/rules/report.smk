# Tables and plots of the whole grid, and one page that shows them.


rule report:
    input:
        expand(f"{GRID.data}/calibration/{{model}}/calibrate.cost.json", model=GRID.models),
        CELL_FILES,
    output:
        index=report(INDEX, caption="../report/index.rst", category="Results"),
        csv=report(f"{REPORT}/comparison.csv", caption="../report/comparison.rst", category="Results"),
        summary=report(f"{REPORT}/summary.csv", caption="../report/summary.rst", category="Results"),
        parquet=multiext(f"{REPORT}/", "comparison.parquet", "summary.parquet"),
        markdown=multiext(f"{REPORT}/", "comparison.md", "tasks.md", "ablation.md"),
        latex=multiext(f"{REPORT}/", "comparison.tex", "tasks.tex", "ablation.tex"),
        metrics=f"{REPORT}/metrics.json",
        quality_cost=report(f"{REPORT}/quality_cost.svg", caption="../report/quality_cost.rst", category="Plots"),
        quality_time=report(f"{REPORT}/quality_time.svg", caption="../report/quality_time.rst", category="Plots"),
        anytime=report(f"{REPORT}/anytime.svg", caption="../report/anytime.rst", category="Plots"),
        allocation=report(f"{REPORT}/allocation.svg", caption="../report/allocation.rst", category="Plots"),
        pdf=multiext(f"{REPORT}/", "quality_cost.pdf", "quality_time.pdf", "anytime.pdf", "allocation.pdf"),
        png=multiext(f"{REPORT}/", "quality_cost.png", "quality_time.png", "anytime.png", "allocation.png"),
    log:
        "logs/report.log",
    benchmark:
        "logs/report.benchmark.tsv"
    localrule: True
    conda:
        ENV
    params:
        grid=EXPERIMENT.file,
        out=subpath(output.index, parent=True),
        settings=report_settings(),
    shell:
        """
        ffp report \
            --config {params.grid:q} \
            --out {params.out:q} \
            2>&1 | tee {log:q}
        """
