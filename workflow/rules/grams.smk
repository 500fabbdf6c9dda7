# A second pass, for the cells that need Gram matrices: a grid that gets its first such method keeps its calibration.
rule grams:
    input:
        **CALIBRATED_MODEL,
    output:
        CALIBRATION.grams,
        CALIBRATION.grams_cost,
    log:
        log_of("grams", "{model}"),
    benchmark:
        benchmark_of("grams", "{model}")
    priority: 100
    conda:
        ENV
    threads: THREADS
    resources:
        **SEARCH_RESOURCES,
    params:
        **MODEL_PARAMS,
        calibration=subpath(input.stats, parent=True),
        out=subpath(output[0], parent=True),
        settings=settings("grams"),
    message:
        "grams {wildcards.model}"
    shell:
        """
        ffp grams \
            --config {params.grid:q} \
            --model {wildcards.model:q} \
            --model-dir {params.model_dir:q} \
            --calibration {params.calibration:q} \
            --out {params.out:q} \
            >{log:q} 2>&1
        """
