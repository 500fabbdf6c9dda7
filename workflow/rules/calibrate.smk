# One pass of the dense model over the calibration text, shared by all cells of that model.


rule calibrate:
    input:
        model=MODEL.manifest,
        text=TEXT_DIR.manifest,
    output:
        CALIBRATION.tokens,
        CALIBRATION.stats,
        CALIBRATION.cost,
    log:
        log_of("calibrate", "{model}"),
    benchmark:
        benchmark_of("calibrate", "{model}")
    priority: 100
    conda:
        ENV
    threads: THREADS
    resources:
        **SEARCH_RESOURCES,
    params:
        **MODEL_PARAMS,
        text_dir=subpath(input.text, parent=True),
        out=subpath(output[0], parent=True),
        settings=settings("calibrate"),
    message:
        "calibrate {wildcards.model}"
    shell:
        """
        ffp calibrate \
            --config {params.grid:q} \
            --model {wildcards.model:q} \
            --model-dir {params.model_dir:q} \
            --text-dir {params.text_dir:q} \
            --out {params.out:q} \
            >{log:q} 2>&1
        """


# Assets and calibration of every model: what the benchmarks start from.
rule calibrated:
    input:
        [LAYOUT.calibration(model).stats for model in GRID.models],
        [LAYOUT.calibration(model).grams for model in GRID.models if EXPERIMENT.keeps_grams],
    localrule: True
