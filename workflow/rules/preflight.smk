# What would fail a model's cells late is found at once, also on texts and tasks that no other job before `evaluate` reads.
# No job waits for this one, so that a new test text asks no search again; a search that comes first checks for itself.


rule preflight:
    input:
        model=MODEL.manifest,
        texts=[LAYOUT.text(name).manifest for name in GRID.all_texts],
        tasks=[TASKS_DIR.manifest] if TASKS_DIR else [],
        partners=lambda wildcards: [LAYOUT.model(name).manifest for name in EXPERIMENT.partners(wildcards.model)],
    output:
        CALIBRATION.preflight,
    log:
        log_of("preflight", "{model}"),
    priority: 200
    localrule: True
    conda:
        ENV
    params:
        **MODEL_PARAMS,
        text_dirs=folders("texts", "--text-dir"),
        tasks_dir=folder_option("--tasks-dir", "tasks"),
        settings=lambda wildcards: as_json(preflight_settings(EXPERIMENT, wildcards.model)),
    message:
        "preflight {wildcards.model}"
    shell:
        """
        ffp preflight \
            --config {params.grid:q} \
            --model {wildcards.model:q} \
            --model-dir {params.model_dir:q} \
            --text-dir {params.text_dirs:q} \
            {params.tasks_dir:q} \
            --out {output:q} \
            >{log:q} 2>&1
        """
