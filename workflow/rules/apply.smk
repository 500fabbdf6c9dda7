# Which units or weights stay, and what makes up for those that go.


rule apply:
    input:
        **CALIBRATED_MODEL,
        grams=needed_grams,
        allocation=CELL.allocation,
    output:
        CELL.cut,
    log:
        log_of("apply"),
    benchmark:
        benchmark_of("apply")
    wildcard_constraints:
        method=one_of(GRID.methods),
    priority: 20
    conda:
        ENV
    threads: THREADS
    resources:
        **SCORE_RESOURCES,
    params:
        **CALIBRATED_CELL_PARAMS,
        settings=settings("apply"),
    message:
        "apply {params.cell}"
    shell:
        """
        ffp apply \
            --config {params.grid:q} \
            --cell {params.cell:q} \
            --model-dir {params.model_dir:q} \
            --calibration {params.calibration:q} \
            --allocation {input.allocation:q} \
            --out {params.out:q} \
            >{log:q} 2>&1
        """
