# How much of each module to keep. Searches evaluate candidates and want a compute node; the others take a moment.


rule allocate_search:
    input:
        model=MODEL,
        tokens=f"{CALIBRATION}/tokens.safetensors",
        stats=f"{CALIBRATION}/stats.safetensors",
        init=init_allocation,
    output:
        allocation=f"{CELLS}/{CELL}/allocation.json",
        trace=f"{CELLS}/{CELL}/trace.parquet",
        cost=f"{CELLS}/{CELL}/search.cost.json",
    log:
        f"logs/allocate/{CELL}.log",
    benchmark:
        f"logs/allocate/{CELL}.benchmark.tsv"
    wildcard_constraints:
        method=one_of(SEARCHES),
    priority: 50  # the longest jobs of a grid: begin with them
    conda:
        ENV
    threads: ask("threads")
    resources:
        cpus_per_task=ask("threads"),
        mem_mb=memory,
        gpu=ask("gpu"),
        runtime=ask("runtime_min"),
    params:
        grid=EXPERIMENT.file,
        cell=CELL,
        model_dir=subpath(input.model, parent=True),
        calibration=subpath(input.stats, parent=True),
        out=subpath(output.allocation, parent=True),
        init=folder_flag("init", "init"),
        settings=settings("allocate"),
    shell:
        """
        ffp allocate \
            --config {params.grid:q} \
            --cell {params.cell:q} \
            --model-dir {params.model_dir:q} \
            --calibration {params.calibration:q} \
            --out {params.out:q} \
            {params.init:q} \
            2>&1 | tee {log:q}
        """


use rule allocate_search as allocate_cheap with:
    wildcard_constraints:
        method=one_of(CHEAP),
    priority: 10
    localrule: True
