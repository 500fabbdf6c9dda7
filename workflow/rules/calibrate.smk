# One streaming pass over the dense model, shared by every cell of that model.


rule calibrate:
    input:
        model=MODEL,
        text=TEXT_ASSET,
    output:
        tokens=f"{CALIBRATION}/tokens.safetensors",
        stats=f"{CALIBRATION}/stats.safetensors",
        cost=f"{CALIBRATION}/calibrate.cost.json",
    log:
        "logs/calibrate/{model}.log",
    benchmark:
        "logs/calibrate/{model}.benchmark.tsv"
    priority: 100
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
        model_dir=subpath(input.model, parent=True),
        text_dir=subpath(input.text, parent=True),
        out=subpath(output.stats, parent=True),
        settings=settings("calibrate"),
    shell:
        """
        ffp calibrate \
            --config {params.grid:q} \
            --model {wildcards.model:q} \
            --model-dir {params.model_dir:q} \
            --text-dir {params.text_dir:q} \
            --out {params.out:q} \
            2>&1 | tee {log:q}
        """


# Assets and calibration of every model: what benchmarks start from.
rule calibrated:
    input:
        expand(f"{CALIBRATION}/stats.safetensors", model=GRID.models),
    localrule: True
