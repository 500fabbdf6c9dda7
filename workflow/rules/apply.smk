# Which heads and channels go, and what compensates for them.


rule apply:
    input:
        model=MODEL,
        tokens=f"{CALIBRATION}/tokens.safetensors",
        stats=f"{CALIBRATION}/stats.safetensors",
        allocation=f"{CELLS}/{CELL}/allocation.json",
    output:
        masks=f"{CELLS}/{CELL}/masks.safetensors",
        updates=f"{CELLS}/{CELL}/updates.safetensors",
    log:
        f"logs/apply/{CELL}.log",
    benchmark:
        f"logs/apply/{CELL}.benchmark.tsv"
    wildcard_constraints:
        method=one_of(GRID.methods),
    priority: 20
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
        out=subpath(output.masks, parent=True),
        settings=settings("apply"),
    shell:
        """
        ffp apply \
            --config {params.grid:q} \
            --cell {params.cell:q} \
            --model-dir {params.model_dir:q} \
            --calibration {params.calibration:q} \
            --allocation {input.allocation:q} \
            --out {params.out:q} \
            2>&1 | tee {log:q}
        """
