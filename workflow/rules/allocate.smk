# How much of each module to keep. Searches evaluate many candidates; heuristics take seconds, once their model is loaded.


rule allocate_search:
    input:
        **CALIBRATED_MODEL,
        grams=needed_grams,
        init=init_allocation,
        same=same_search,
    output:
        CELL.searched,
    log:
        log_of("allocate"),
    benchmark:
        benchmark_of("allocate")
    wildcard_constraints:
        method=one_of(SEARCHES),
    priority: 50  # the longest jobs of a grid start first
    conda:
        ENV
    threads: THREADS
    resources:
        **SEARCH_RESOURCES,
    params:
        **CALIBRATED_CELL_PARAMS,
        init=folder_option("--init", "init"),
        reuse=folder_option("--reuse", "same"),
        settings=settings("allocate"),
    message:
        "allocate {params.cell}"
    shell:
        """
        ffp allocate \
            --config {params.grid:q} \
            --cell {params.cell:q} \
            --model-dir {params.model_dir:q} \
            --calibration {params.calibration:q} \
            --out {params.out:q} \
            {params.init:q} \
            {params.reuse:q} \
            >{log:q} 2>&1
        """


# Heuristics compute on the host: a job that reads weights needs their memory, and no GPU.
use rule allocate_search as allocate_heuristic with:
    wildcard_constraints:
        method=one_of(HEURISTICS),
    priority: 10
    resources:
        **HOST_RESOURCES,


# Those that read no weights are as quick as a job's start, so that they run where Snakemake does.
use rule allocate_heuristic as allocate_from_sizes with:
    wildcard_constraints:
        method=one_of(FROM_SIZES),
    localrule: True
